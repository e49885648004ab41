"""The delay that the batcher finds itself, beside fixed delays: an instance in simulated time."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from microkernel.scheduling.adaptive import Adaptive, Gaps
from microkernel.scheduling.policy import Batching, Dispatch, Wait

LARGEST = 16
FIXED_DELAYS = (0.0, 0.0005, 0.002, 0.005, 0.02)


@dataclass(slots=True, eq=False)
class Asked:
    """A request, and the client who waits for it where clients do."""

    arrived: float
    client: bool
    size: int = 1
    key: str = ""


@dataclass(slots=True)
class Run:
    """One instance on which a batch of n takes `seconds(n)`. `clients` send their next request when
    they have been answered; without them requests come at `rate` per second, at random."""

    policy: Batching | Adaptive
    seconds: Callable[[int], float]
    clients: int = 0
    rate: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    numbers: Any = field(default_factory=itertools.count)
    events: list[tuple[float, int, str, Any]] = field(default_factory=list)
    queue: deque[Asked] = field(default_factory=deque)
    busy: bool = False
    latencies: list[float] = field(default_factory=list)

    def at(self, time: float, what: str, about: Any = None) -> None:
        heapq.heappush(self.events, (time, next(self.numbers), what, about))

    def until(self, answered: int) -> tuple[float, float]:
        """Answers per second, and the mean latency, of so many requests."""
        for number in range(max(self.clients, 1)):
            self.at(number * 1e-4, "arrival")
        now = 0.0
        while len(self.latencies) < answered:
            now, _, what, about = heapq.heappop(self.events)
            if what == "arrival":
                self.arrival(now)
            elif what == "done":
                self.done(now, *about)
            self.dispatch(now)
        return len(self.latencies) / now, sum(self.latencies) / len(self.latencies)

    def arrival(self, now: float) -> None:
        self.queue.append(Asked(now, client=bool(self.clients)))
        if isinstance(self.policy, Adaptive):
            self.policy.arrived(now)
        if not self.clients:
            self.at(now + self.chance.expovariate(self.rate), "arrival")

    def done(self, now: float, batch: list[Asked], began: float) -> None:
        self.busy = False
        if isinstance(self.policy, Adaptive):
            self.policy.executed(len(batch), now - began, now)
        for place, request in enumerate(batch):
            self.latencies.append(now - request.arrived)
            if request.client:
                self.at(now + 2e-4 * (place + self.chance.random()), "arrival")

    def dispatch(self, now: float) -> None:
        if not self.queue or self.busy:
            return
        decision = self.policy.decide(self.queue, now)
        if isinstance(decision, Wait):
            self.at(decision.until, "look")
            return
        batch = [self.queue.popleft() for _ in range(decision.count)]
        self.busy = True
        self.at(now + self.seconds(len(batch)), "done", (batch, now))


MODELS: dict[str, Callable[[int], float]] = {
    "the same for any batch": lambda n: 0.010,
    "mostly fixed": lambda n: 0.010 + 0.001 * n,
    "mostly per item": lambda n: 0.001 + 0.001 * n,
    "per item": lambda n: 0.002 * n,
}


def fixed(delay: float) -> Batching:
    return Batching(LARGEST, frozenset({LARGEST}), delay)


def adaptive() -> Adaptive:
    return Adaptive(fixed(0.0))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("clients", [1, 4, 8, 16])
def test_clients_that_wait_get_the_throughput_of_the_best_fixed_delay(
    model: str, clients: int
) -> None:
    seconds = MODELS[model]
    best = max(Run(fixed(d), seconds, clients).until(2000)[0] for d in FIXED_DELAYS)
    assert Run(adaptive(), seconds, clients).until(2000)[0] >= 0.97 * best


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("load", [0.02, 0.3, 0.9])
def test_requests_at_random_wait_no_longer_than_with_the_best_fixed_delay(
    model: str, load: float
) -> None:
    seconds = MODELS[model]
    rate = load * LARGEST / seconds(LARGEST)
    best = min(Run(fixed(d), seconds, rate=rate).until(4000)[1] for d in FIXED_DELAYS)
    assert Run(adaptive(), seconds, rate=rate).until(4000)[1] <= 1.03 * best


def test_a_full_batch_goes_at_once() -> None:
    policy = adaptive()
    queue = [Asked(0.0, client=False) for _ in range(LARGEST + 1)]
    assert policy.decide(queue, 0.0) == Dispatch(LARGEST)


def test_nobody_waits_before_anything_is_known() -> None:
    policy = adaptive()
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


def test_one_client_that_waits_for_its_answers_is_not_held_back() -> None:
    gaps = Gaps()
    now = 0.0
    for _ in range(30):
        gaps.arrived(now)
        now += 0.01
        gaps.answered(now)
        now += 0.0005
    assert gaps.worth_until(0.01, now) > now  # after answers its request always comes
    gaps.arrived(now)
    assert gaps.worth_until(0.01, now) == now


def learnt(delay: float) -> tuple[Adaptive, float]:
    """A policy that saw requests come every 10 ms, and batches that took 1 s whatever their size;
    and the time then, at which another comes."""
    policy, now = Adaptive(fixed(delay)), 0.0
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
