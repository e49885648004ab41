"""A queue delay that is found, not configured.

While an instance is free and a batch is not full, waiting costs every request that waits. It pays
when others come in time: run by themselves they would cost the fixed part of an execution once
more. There are two reasons to expect others.

Clients that were answered come back. With as many as are waiting or were answered last, the batcher
asks which size of a batch would get most done by all of them, and waits for that size as long as
the clients that it lacks may be expected in time to gain more than is waited. Half batches that
take turns become whole ones so, where that is worth it.

Where nobody waited when the last answers went out, a request may be the first of a burst. Then the
batcher waits as long as the chance that another comes soon, times what an execution costs whatever
its size, is more than what the requests that are there are likely to lose.
"""

from collections.abc import Iterable
from dataclasses import replace
from math import inf

from microkernel.scheduling.gaps import Gaps
from microkernel.scheduling.policy import Batching, Decision, Dispatch, Wait, Waiting
from microkernel.scheduling.returns import Returns, Target, target
from microkernel.scheduling.service import ServiceTimes

_FORGET = 0.98
"""What a batch weighs after the next one when requests are held against items."""


class Adaptive:
    """The dynamic batcher's policy with a delay that it finds itself; see this module."""

    def __init__(self, batching: Batching) -> None:
        """As `batching`, but for its delay, which is the longest unless it is 0."""
        self._patient = replace(batching, delay=batching.delay or inf)
        self._gaps = Gaps()
        self._returns = Returns()
        self._service = ServiceTimes()
        self._target: Target | None = None
        self._clients = 0
        self._new = 0  # requests since the last answers
        self._requests = self._items = 0.0
        self._running, self._instances = 0, 1

    def arrived(self, now: float) -> None:
        """A request has come."""
        self._new += 1
        self._gaps.arrived(now)
        self._returns.arrived(now)

    def executed(self, size: int, seconds: float, now: float) -> None:
        """A batch of that size took so long; its answers go out now."""
        self._service.observe(size, seconds)
        self._gaps.answered(now)
        self._requests = self._requests * _FORGET + self._new
        self._items = self._items * _FORGET + size
        self._new = 0
        self._returns.answered(max(round(size * self._share()), 1), now)
        self._running = max(self._running - 1, 0)
        self._target = None

    def _share(self) -> float:
        """Requests per item."""
        return min(self._requests / self._items, 1.0) if self._requests else 1.0

    def decide(self, queue: Iterable[Waiting], now: float, *, freed: bool = False) -> Decision:
        """See `Policy.decide`."""
        decision = self._patient.decide(queue, now, freed=freed)
        if isinstance(decision, Dispatch):
            return self._dispatched(decision)
        count = sum(1 for _ in queue)  # which all fit into one batch
        until = self._until(count, now)
        if until <= now:
            return self._dispatched(Dispatch(count))
        return Wait(min(until, decision.until))

    def _dispatched(self, decision: Dispatch) -> Dispatch:
        """As many run at once as there are instances: a batch that fails, and is never told of,
        adds one to both numbers, and what counts is their difference."""
        self._running += 1
        self._instances = max(self._instances, self._running)
        return decision

    def _until(self, count: int, now: float) -> float:
        until = self._until_back(count, now)
        if count <= self._returns.came:
            until = max(until, self._gaps.worth_until(self._service.fixed / count, now))
        return until

    def _until_back(self, count: int, now: float) -> float:
        """Until when to wait for clients that come back, `now` where that is not worth it."""
        returns = self._returns
        if not returns.owed:
            return now
        free = max(self._instances - self._running, 1)
        clients = -(-(count + returns.owed) // free)  # the others are for the other instances
        wanted = self._wanted(clients)
        if count >= wanted.size:
            return now
        elapsed = returns.elapsed(now)
        expected = returns.time_of((wanted.size - count) / (returns.owed + 1), elapsed)
        if expected - elapsed >= wanted.worth(count, clients, returns.time_of):
            return now
        return now - elapsed + max(expected, returns.next_look(elapsed))

    def _wanted(self, clients: int) -> Target:
        if self._target is None or self._clients != clients:
            service, each = self._service, self._service.per_item / self._share()
            largest = self._patient.largest
            self._clients = clients
            self._target = target(clients, largest, service.fixed, each, self._returns.time_of)
        return self._target
