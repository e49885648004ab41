"""Estimated quantiles against exact ones, and how much is kept for them."""

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.metrics.config import MetricsConfig
from microkernel.quantiles import AGES, MAX_AGE_NS, Sketch, Target, Window

TARGETS = tuple(MetricsConfig().summary_quantiles)
TURN = MAX_AGE_NS // AGES

targets = st.lists(
    st.builds(
        Target,
        st.floats(0.01, 0.999),
        st.floats(0.001, 0.2),
    ),
    min_size=1,
    max_size=4,
)
batches = st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=80), max_size=20)


def sketched(targets: Sequence[Target], batches: Sequence[Sequence[float]]) -> Sketch:
    sketch = Sketch(targets)
    for batch in batches:
        sketch.add(np.sort(np.array(batch, np.float64)))
    return sketch


def off(numbers: Sequence[float], target: Target, value: float) -> float:
    """By how many ranks a value misses the one that a target wants, 0 where it is among equals of
    it."""
    ordered = sorted(numbers)
    wanted = math.ceil(target.quantile * len(ordered))
    first, last = bisect_left(ordered, value) + 1, bisect_right(ordered, value)
    assert first <= last, "one of the numbers"
    return max(first - wanted, wanted - last, 0)


def check(targets: Sequence[Target], batches: Sequence[Sequence[float]]) -> Sketch:
    sketch, numbers = sketched(targets, batches), [n for batch in batches for n in batch]
    assert sketch.count == len(numbers)
    for target in targets:
        value = sketch.quantile(target)
        assert off(numbers, target, value) <= max(1, target.error * len(numbers)) + 1e-6, target
    return sketch


@given(targets, batches)
def test_a_rank_is_off_by_no_more_than_the_error(
    targets: list[Target], batches: list[list[int]]
) -> None:
    if batches:
        check(targets, batches)


@given(targets, st.integers(1, 30), st.sampled_from(["ascending", "descending", "inward"]))
def test_streams_with_an_order_are_no_harder(targets: list[Target], size: int, order: str) -> None:
    numbers = list(range(size * 40))
    if order == "descending":
        numbers.reverse()
    if order == "inward":
        numbers = [n // 2 if n % 2 else len(numbers) - n // 2 for n in numbers]
    check(targets, [numbers[i : i + size] for i in range(0, len(numbers), size)])


@pytest.mark.parametrize("order", ["random", "ascending", "descending", "growing"])
def test_little_is_kept_of_a_long_stream(order: str) -> None:
    source = random.Random(7)
    numbers = [source.lognormvariate(8, 1) for _ in range(200_000)]
    if order in ("ascending", "descending"):
        numbers.sort(reverse=order == "descending")
    if order == "growing":
        numbers = [number * (1 + index / 1000) for index, number in enumerate(numbers)]
    sketch = check(TARGETS, [numbers[i : i + 1000] for i in range(0, len(numbers), 1000)])
    assert len(sketch) < 600


def test_nothing_is_known_of_no_numbers() -> None:
    assert math.isnan(Sketch(TARGETS).quantile(TARGETS[0]))


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([5], [5, 5, 5, 5, 5]),
        ([1, 2], [1, 2, 2, 2, 2]),
        ([3, 3, 3], [3, 3, 3, 3, 3]),
        (list(range(1, 101)), [52, 90, 95, 99, 100]),
    ],
)
def test_few_numbers(numbers: list[int], expected: list[float]) -> None:
    window = Window(TARGETS, 0)
    for number in numbers:
        window.add(number, 0)
    found = window.quantiles(0)
    allowed = [max(1, target.error * len(numbers)) for target in TARGETS]
    assert all(abs(a - b) <= c for a, b, c in zip(found, expected, allowed, strict=True))
    assert (window.count, window.total) == (len(numbers), sum(numbers))


def test_old_numbers_leave_the_window_but_not_the_count() -> None:
    window = Window(TARGETS, 0)
    window.add(1000, 0)
    window.add(1, TURN)
    assert window.quantiles(MAX_AGE_NS - 1)[-1] == 1000
    assert window.quantiles(MAX_AGE_NS)[-1] == 1
    assert all(map(math.isnan, window.quantiles(MAX_AGE_NS + TURN)))
    assert (window.count, window.total) == (2, 1001)


def test_a_long_silence_empties_the_window() -> None:
    window = Window(TARGETS, 0)
    window.add(7, 0)
    window.add(9, 1000 * MAX_AGE_NS)
    assert window.quantiles(1000 * MAX_AGE_NS) == [9.0] * len(TARGETS)


@given(
    st.lists(
        st.tuples(st.integers(0, 999), st.integers(0, TURN), st.integers(0, 700), st.booleans()),
        max_size=25,
    )
)
def test_a_window_knows_what_its_oldest_sketch_has_seen(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    """Bursts of numbers with pauses between them, and readings now and then."""
    window, now = Window(TARGETS, 0), 0
    seen: list[tuple[int, int]] = []
    for number, pause, burst, read in steps:
        now += pause
        for index in range(burst):
            window.add(number + index, now)
            seen.append((number + index, now))
        if read:
            begin = max(0, now // TURN - (AGES - 1)) * TURN
            there = [value for value, when in seen if when >= begin]
            for target, value in zip(TARGETS, window.quantiles(now), strict=True):
                if there:
                    assert off(there, target, value) <= max(1, target.error * len(there)) + 1e-6
                else:
                    assert math.isnan(value)
    assert window.count == len(seen)
