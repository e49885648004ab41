"""The delay that the batcher finds itself, beside fixed delays: instances in simulated time."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from batching_world import Asked, World, adaptive, beside_fixed, fixed

from microkernel.scheduling.gaps import Gaps
from microkernel.scheduling.policy import Dispatch, Wait
from microkernel.scheduling.returns import Returns, Target, target

LARGEST = 16
CLIENTS = (1, 2, 4, 8, 16, 24, 32, 64)

MODELS: dict[str, Callable[[int], float]] = {
    "hardly per item": lambda n: 0.010 + 0.0002 * n,
    "mostly fixed": lambda n: 0.010 + 0.001 * n,
    "mostly per item": lambda n: 0.001 + 0.001 * n,
    "per item": lambda n: 0.002 * n,
}


def in_turn(place: int, chance: random.Random) -> float:
    """Clients are told one after the other."""
    return 2e-4 * (place + chance.random())


def far(place: int, chance: random.Random) -> float:
    """The same, of clients that are slower and some way off."""
    return 1.5e-3 + 3e-4 * (place + chance.random())


def anyhow(place: int, chance: random.Random) -> float:
    """Clients that think, some of them for long."""
    return chance.expovariate(2000)


LATE = {("hardly per item", 32, 32): 1.40, ("mostly fixed", 16, 24): 1.25}
"""Where everybody in one batch and half of them in turn get about as much done, and some wait for
two batches."""


@pytest.mark.parametrize(
    ("model", "largest", "clients"),
    [
        (model, largest, clients)
        for model in ("hardly per item", "mostly fixed")
        for largest in (8, 16, 32)
        for clients in CLIENTS
        if clients <= 2 * largest  # more of them fill every batch
    ],
)
def test_clients_that_wait_get_what_the_best_fixed_delay_gets_them(
    model: str, largest: int, clients: int
) -> None:
    thinks = far if model == "hardly per item" else in_turn
    world = {"seconds": MODELS[model], "clients": clients, "thinks": thinks}
    found, best, near = beside_fixed(largest, 600, 800, **world)
    assert found.rate >= 0.97 * best.rate
    late = LATE.get((model, largest, clients), 1.10)
    assert found.p99 <= late * min(seen.p99 for seen in near)


@pytest.mark.parametrize("model", ["mostly per item", "per item"])
@pytest.mark.parametrize("clients", [1, 4, 8, 16])
def test_clients_that_think_get_as_much_done_where_batches_gain_little(
    model: str, clients: int
) -> None:
    world = {"seconds": MODELS[model], "clients": clients, "thinks": anyhow}
    found, best, _ = beside_fixed(LARGEST, 600, 800, **world)
    assert found.rate >= 0.97 * best.rate


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("load", [0.1, 0.3, 0.5, 0.7, 0.85, 0.95])
def test_requests_at_random_wait_hardly_longer_than_with_the_best_fixed_delay(
    model: str, load: float
) -> None:
    rate = load * LARGEST / MODELS[model](LARGEST)
    found, best, _ = beside_fixed(LARGEST, 1500, 500, seconds=MODELS[model], rate=rate)
    assert found.mean <= 1.06 * best.mean
    assert found.p99 <= 1.10 * best.p99


def test_half_batches_that_take_turns_become_whole_ones() -> None:
    """What a fixed delay gets only where it is longer than all clients need to come back."""
    halves = World(fixed(LARGEST, 0.005), MODELS["hardly per item"], LARGEST, far).until(600, 800)
    whole = World(adaptive(LARGEST), MODELS["hardly per item"], LARGEST, far).until(600, 800)
    assert whole.rate >= 1.15 * halves.rate


@pytest.mark.parametrize("clients", [8, 16, 24])
def test_an_instance_that_is_free_is_not_kept_waiting_for_the_clients_of_another(
    clients: int,
) -> None:
    world = {"seconds": MODELS["hardly per item"], "clients": clients, "thinks": far}
    found, best, _ = beside_fixed(LARGEST, 600, 800, instances=2, **world)
    assert found.rate >= 0.97 * best.rate


@pytest.mark.parametrize("clients", [2, 4])
def test_requests_of_several_items_are_told_from_clients(clients: int) -> None:
    world = {"seconds": MODELS["mostly fixed"], "clients": clients, "thinks": far, "size": 4}
    found, best, _ = beside_fixed(LARGEST, 600, 800, **world)
    assert found.rate >= 0.97 * best.rate


# What is expected of clients


def came_back(batches: int, *times: float, left: int = 0) -> Returns:
    """What was seen of batches a second apart whose clients came back after these times, but for
    some who left; the last one has just been answered."""
    returns = Returns()
    for number in range(batches):
        returns.answered(len(times) + left, float(number))
        for time in times:
            returns.arrived(number + time)
    returns.answered(len(times) + left, float(batches))
    return returns


def test_when_clients_are_back() -> None:
    returns = came_back(20, 0.001, 0.002, 0.003, 0.004)
    assert returns.time_of(0.25) == pytest.approx(0.001, rel=0.25)  # as they are counted
    assert returns.time_of(1.0) == pytest.approx(0.004, rel=0.25)
    assert 0.003 <= returns.time_of(0.5, elapsed=0.0032) <= 0.0045
    assert returns.time_of(0.5, elapsed=0.1) == float("inf")


def test_clients_that_left_are_not_expected() -> None:
    returns = came_back(20, 0.001, 0.002, left=2)
    assert returns.time_of(0.4) < 0.003
    assert returns.time_of(0.6) == float("inf")


def test_only_so_many_requests_are_clients_that_come_back() -> None:
    returns = came_back(3, 0.001)
    assert (returns.owed, returns.came) == (1, 0)
    for number in range(3):
        returns.arrived(3.001 + number)
    assert (returns.owed, returns.came) == (0, 3)


def test_nothing_is_expected_before_anything_was_seen() -> None:
    returns = Returns()
    assert returns.time_of(0.1) == float("inf")
    returns.answered(1, 5.0)
    assert returns.time_of(0.1) == float("inf")
    assert returns.elapsed(6.0) == 1.0


def test_old_clients_are_forgotten_and_weights_stay_finite() -> None:
    returns, now = Returns(), 0.0
    for number in range(2000):
        returns.answered(1, now)
        returns.arrived(now + (0.5 if number < 1000 else 0.001))
        now += 1.0
    returns.answered(1, now)
    assert returns.time_of(0.99) < 0.0015


@pytest.mark.parametrize(
    ("clients", "largest", "fixed", "each", "spread", "size"),
    [
        (16, 16, 0.010, 0.0, 0.001, 16),  # all meet where that takes a tenth of an execution
        (16, 16, 0.010, 0.0, 0.020, 0),  # and not where it takes two
        (16, 16, 0.000, 0.001, 0.001, 0),  # nor where batches gain nothing
        (24, 16, 0.010, 0.0, 0.001, 16),  # as many as fit
        (24, 16, 0.010, 0.0, 0.010, 0),
        (40, 16, 0.010, 0.0, 0.001, 0),  # more than two batches are there anyway
        (1, 16, 0.010, 0.0, 0.001, 1),
        (2, 16, 0.010, 0.0, 0.001, 2),
    ],
)
def test_how_many_are_waited_for(
    clients: int, largest: int, fixed: float, each: float, spread: float, size: int
) -> None:
    found = target(clients, largest, fixed, each, lambda share: share * spread)
    assert found.size == size


def test_what_a_wait_may_cost() -> None:
    aim = target(16, 16, 0.010, 0.0, within_a_millisecond)
    worth = [aim.worth(waiting, 16, within_a_millisecond) for waiting in range(16)]
    assert worth == sorted(worth, reverse=True)
    assert worth[8] == pytest.approx(0.005, rel=0.3)  # half of an execution
    assert worth[15] > 0
    assert Target().size == 0


def within_a_millisecond(share: float) -> float:
    return share * 0.001


# Decisions one by one


def test_a_full_batch_goes_at_once() -> None:
    policy = adaptive(LARGEST)
    queue = [Asked(0.0, client=False) for _ in range(LARGEST + 1)]
    assert policy.decide(queue, 0.0) == Dispatch(LARGEST)


def test_nobody_waits_before_anything_is_known() -> None:
    policy = adaptive(LARGEST)
    policy.arrived(0.0)
    assert policy.decide([Asked(0.0, client=False)], 0.0) == Dispatch(1)


def test_a_burst_is_waited_for_and_what_comes_after_it_is_not() -> None:
    gaps = Gaps()
    now = 0.0
    for _ in range(30):  # five requests within a millisecond, then nothing for a second
        for _ in range(5):
            gaps.arrived(now)
            now += 0.0002
        now += 1.0
    gaps.arrived(now)
    until = gaps.worth_until(0.01, now)
    assert now + 0.0002 < until < now + 0.001
    assert gaps.worth_until(0.01, now + 0.01) == pytest.approx(now + 0.01)


def test_after_answers_no_burst_goes_on() -> None:
    gaps = Gaps()
    now = 0.0
    for _ in range(30):
        gaps.arrived(now)
        now += 0.01
        gaps.answered(now)
        assert gaps.worth_until(0.01, now) == now
        now += 0.0005
    gaps.arrived(now)
    assert gaps.worth_until(0.01, now) == now


def test_old_gaps_are_forgotten_and_weights_stay_finite() -> None:
    gaps, now = Gaps(), 0.0
    for number in range(6000):
        gaps.arrived(now)
        now += 5.0 if number < 3000 else 0.0001
    gaps.arrived(now)
    assert now < gaps.worth_until(0.01, now) < now + 0.001


def test_one_client_that_waits_for_its_answers_is_not_held_back() -> None:
    policy, now = adaptive(LARGEST), 0.0
    for _ in range(50):
        policy.arrived(now)
        assert policy.decide([Asked(now, client=True)], now) == Dispatch(1)
        policy.executed(1, 0.01, now + 0.01)
        now += 0.0105


def learnt(delay: float) -> tuple[Any, float]:
    """A policy that saw requests come every 10 ms, and batches that took 1 s whatever their size;
    and the time then, at which another comes."""
    policy, now = adaptive(LARGEST, delay), 0.0
    for number in range(200):
        policy.executed(1 + number % LARGEST, 1.0, now)
    for _ in range(200):
        policy.arrived(now)
        now += 0.01
    policy.arrived(now)
    return policy, now


@pytest.mark.parametrize(
    ("delay", "shortest", "longest"),
    [(0.0, 0.01, 0.1), (0.001, 0.001, 0.001), (60.0, 0.01, 0.1)],
)
def test_a_configured_delay_is_the_longest(delay: float, shortest: float, longest: float) -> None:
    policy, now = learnt(delay)
    decision = policy.decide([Asked(now, client=False)], now)
    assert isinstance(decision, Wait)
    assert shortest - 1e-9 <= decision.until - now <= longest + 1e-9
