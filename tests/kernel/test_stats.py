"""The rules of accounting."""

import time

import pytest

from microkernel.stats import Compute, Duration, Execution, Failure, ModelStats

EXECUTION = Execution(start=100, input_end=110, output_start=150, end=155)


def durations(compute: Compute) -> list[tuple[int, int]]:
    parts = (compute.compute_input, compute.compute_infer, compute.compute_output)
    return [(part.count, part.ns) for part in parts]


def test_a_duration_counts_and_adds() -> None:
    duration = Duration()
    duration.add(5)
    duration.add(7)
    assert (duration.count, duration.ns) == (2, 12)


def test_a_batch_of_a_large_and_a_small_request() -> None:
    stats = ModelStats()
    stats.succeeded(arrived=50, now=200, size=8, times=EXECUTION)
    stats.succeeded(arrived=90, now=200, size=1, times=EXECUTION)
    stats.executed(EXECUTION, size=9)
    assert (stats.success.count, stats.success.ns) == (2, 150 + 110)
    assert (stats.queue.count, stats.queue.ns) == (2, 50 + 10)
    assert (stats.inference_count, stats.execution_count) == (9, 1)
    assert durations(stats.compute) == [(2, 20), (2, 80), (2, 10)]
    assert {size: durations(c) for size, c in stats.batches.items()} == {
        9: [(1, 10), (1, 40), (1, 5)]
    }


def test_batches_of_one_size_are_added_up() -> None:
    stats = ModelStats()
    for size in (2, 3, 2):
        stats.executed(EXECUTION, size)
    assert stats.execution_count == 3
    assert {size: durations(c)[1] for size, c in stats.batches.items()} == {2: (2, 80), 3: (1, 40)}


@pytest.mark.parametrize("reason", Failure)
def test_a_failure_adds_to_nothing_but_the_failures(reason: Failure) -> None:
    stats = ModelStats()
    stats.failed(arrived=100, now=130, reason=reason)
    assert (stats.fail.count, stats.fail.ns) == (1, 30)
    assert stats.failures == {**dict.fromkeys(Failure, 0), reason: 1}
    assert stats.success.count == stats.queue.count == stats.inference_count == 0
    assert durations(stats.compute) == [(0, 0)] * 3


def test_the_last_execution_is_dated() -> None:
    stats, before = ModelStats(), time.time_ns() // 1_000_000
    assert stats.last_inference_ms == 0
    stats.executed(EXECUTION, 1)
    assert before <= stats.last_inference_ms <= time.time_ns() // 1_000_000
