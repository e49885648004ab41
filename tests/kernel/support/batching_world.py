"""Instances, clients and a batcher's policy in simulated time, so that what a policy gets done is
exactly the same each time."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from microkernel.scheduling.adaptive import Adaptive
from microkernel.scheduling.policy import Batching, Wait

FIXED_DELAYS = (0.0, 0.001, 0.002, 0.005, 0.010, 0.020)

Thinks = Callable[[int, random.Random], float]
"""The seconds until a client comes back whose answer was the n-th of its batch."""


@dataclass(slots=True, eq=False)
class Asked:
    """A request, and whether a client waits for it who comes back."""

    arrived: float
    client: bool
    size: int = 1
    key: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """Answers per second, and latencies in seconds."""

    rate: float
    mean: float
    p99: float


@dataclass(slots=True)
class World:
    """Instances on which a batch of n takes `seconds(n)`. Each of `clients` comes back when it has
    been answered and has thought; without them requests come at `rate` per second, at random."""

    policy: Batching | Adaptive
    seconds: Callable[[int], float]
    clients: int = 0
    thinks: Thinks = lambda place, chance: 0.0
    rate: float = 0.0
    instances: int = 1
    size: int = 1
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    _numbers: Any = field(default_factory=itertools.count)
    _events: list[tuple[float, int, str, Any]] = field(default_factory=list)
    _queue: deque[Asked] = field(default_factory=deque)
    _latencies: list[float] = field(default_factory=list)

    def until(self, answered: int, before: int = 0) -> Seen:
        """What is seen of so many requests, after as many as were answered before."""
        for _ in range(max(self.clients, 1)):
            self._at(self.chance.random() * 2 * self.seconds(1), "arrival")
        now, began, first = 0.0, 0.0, 0
        while len(self._latencies) < max(before, first) + answered:
            now, _, what, about = heapq.heappop(self._events)
            if what == "arrival":
                self._arrival(now)
            elif what == "done":
                self._done(now, *about)
                if first < before <= len(self._latencies):
                    began, first = now, len(self._latencies)
            self._dispatch(now)
        latencies = sorted(self._latencies[first:])
        count = len(latencies)
        return Seen(count / (now - began), sum(latencies) / count, latencies[int(0.99 * count)])

    def _at(self, time: float, what: str, about: Any = None) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), what, about))

    def _arrival(self, now: float) -> None:
        self._queue.append(Asked(now, client=bool(self.clients), size=self.size))
        if isinstance(self.policy, Adaptive):
            self.policy.arrived(now)
        if not self.clients:
            self._at(now + self.chance.expovariate(self.rate), "arrival")

    def _done(self, now: float, batch: list[Asked], began: float) -> None:
        self.instances += 1
        if isinstance(self.policy, Adaptive):
            self.policy.executed(sum(each.size for each in batch), now - began, now)
        for place, request in enumerate(batch):
            self._latencies.append(now - request.arrived)
            if request.client:
                self._at(now + self.thinks(place, self.chance), "arrival")

    def _dispatch(self, now: float) -> None:
        while self._queue and self.instances:
            decision = self.policy.decide(self._queue, now)
            if isinstance(decision, Wait):
                assert decision.until > now
                self._at(decision.until, "look")
                return
            batch = [self._queue.popleft() for _ in range(decision.count)]
            self.instances -= 1
            items = sum(each.size for each in batch)
            self._at(now + self.seconds(items), "done", (batch, now))


def fixed(largest: int, delay: float) -> Batching:
    """A batcher with a configured delay in seconds."""
    return Batching(largest, frozenset({largest}), delay)


def adaptive(largest: int, longest: float = 0.0) -> Adaptive:
    """A batcher that finds its delay."""
    return Adaptive(fixed(largest, longest))


def beside_fixed(
    largest: int, answered: int, before: int, **world: Any
) -> tuple[Seen, Seen, list[Seen]]:
    """What is seen of the adaptive delay; of the best at everything that any fixed delay is; and of
    those fixed delays that get nearly as much done as the best of them."""
    found = World(adaptive(largest), **world).until(answered, before)
    others = [World(fixed(largest, d), **world).until(answered, before) for d in FIXED_DELAYS]
    rate = max(seen.rate for seen in others)
    best = Seen(rate, min(seen.mean for seen in others), min(seen.p99 for seen in others))
    return found, best, [seen for seen in others if seen.rate >= 0.97 * rate]
