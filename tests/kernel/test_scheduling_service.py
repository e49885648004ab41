"""What is learnt from executions about how long the next will take."""

import pytest

from microkernel.scheduling.service import ServiceTimes


def learnt(*executions: tuple[int, float]) -> ServiceTimes:
    times = ServiceTimes()
    for size, seconds in executions:
        times.observe(size, seconds)
    return times


def test_nothing_is_known_at_first() -> None:
    times = ServiceTimes()
    assert not times.known
    assert (times.fixed, times.per_item, times.expected(8)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("fixed", "per_item"), [(0.010, 0.0), (0.010, 0.001), (0.001, 0.001), (0.0, 0.002)]
)
def test_a_line_is_found_where_sizes_vary(fixed: float, per_item: float) -> None:
    sizes = [1, 7, 3, 16, 2, 9] * 20
    times = learnt(*((size, fixed + per_item * size) for size in sizes))
    assert times.fixed == pytest.approx(fixed, abs=2e-4)
    assert times.per_item == pytest.approx(per_item, abs=5e-5)
    assert times.expected(10) == pytest.approx(fixed + per_item * 10, rel=0.02)


def test_half_of_the_time_is_fixed_where_sizes_do_not_vary() -> None:
    times = learnt(*[(4, 0.008)] * 50)
    assert times.known
    assert times.fixed == pytest.approx(0.004)
    assert times.expected(4) == pytest.approx(0.008)


def test_a_model_that_becomes_slower_is_noticed() -> None:
    before, after = [(1, 0.01), (2, 0.011)] * 100, [(1, 0.03), (2, 0.031)] * 150
    assert learnt(*before, *after).expected(1) == pytest.approx(0.03, rel=0.02)


def test_larger_batches_are_never_expected_to_take_less() -> None:
    times = learnt(*[(1, 0.02), (8, 0.01)] * 20)  # noise
    assert times.per_item == 0
    assert times.expected(8) >= times.expected(1) > 0
