"""The queue of a model with priorities, timeouts, limits of length, or clients to be fair to."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import chain, count
from math import inf
from typing import TypeAlias

from microkernel.errors import Unavailable
from microkernel.scheduling.limits import Limits
from microkernel.scheduling.pending import Pending
from microkernel.scheduling.waiting import Lane, Rank, plain_lane

Admission: TypeAlias = Callable[[Pending, int], None]
"""Looks at a request, whose deadline is set and is its last, and at how many items would run before
it; raises Unavailable where it should not wait."""

_SLACK = 64
"""How many deadlines of requests that are gone are kept in any case."""


class LevelledQueue:
    """Level by level, the most urgent first; within one in the order of its lane, and then those
    that have waited for too long in the order of theirs. Promises what `Queue` does."""

    def __init__(
        self,
        limits: Limits,
        new_lane: Callable[[Rank], Lane] = plain_lane,
        admission: Admission | None = None,
    ) -> None:
        """`new_lane` makes what the requests of a rank wait in; one that is late is refused by
        none."""
        self.timed = limits.timed
        self._limits = limits
        self._new_lane = new_lane
        self._admission = admission
        self._lanes: dict[Rank, Lane] = {}
        self._ranks: list[Rank] = []  # of the lanes, sorted
        self._items: dict[Rank, int] = {}
        self._places: dict[Pending, Rank] = {}
        self._deadlines: list[tuple[float, int, Pending]] = []  # a heap; some do not hold any more
        self._arrivals = count()

    def append(self, pending: Pending) -> None:
        """See `Lane.append`: refused is what finds its level full. Sets the deadline."""
        request = pending.request
        level = self._limits.level(request)
        limits = self._limits.at(level)
        if limits.most and self._waiting(level) >= limits.most:
            raise Unavailable(f"{request.tag()}Exceeds maximum queue size")
        pending.deadline = limits.deadline(pending.arrived, request.timeout_us)
        if self._admission is not None and not limits.delays:
            self._admission(pending, self._before(pending, level))
        self._put(pending, (level, False))
        if pending.deadline < inf:
            heappush(self._deadlines, (pending.deadline, next(self._arrivals), pending))

    def _waiting(self, level: int) -> int:
        lanes = (self._lanes.get((level, late)) for late in (False, True))
        return sum(len(lane) for lane in lanes if lane is not None)

    def _before(self, pending: Pending, level: int) -> int:
        """How many items would run before a request that is about to wait."""
        total = 0
        for rank in self._ranks:
            if rank > (level, False):
                break
            items = self._items[rank]
            total += self._lanes[rank].before(pending, items) if rank[0] == level else items
        return total

    def _put(self, pending: Pending, rank: Rank) -> None:
        lane = self._lanes.get(rank)
        if lane is not None:
            lane.append(pending)
        else:
            lane = self._new_lane(rank)
            lane.append(pending)  # which may refuse it
            self._lanes[rank], self._items[rank] = lane, 0
            insort(self._ranks, rank)
        self._places[pending] = rank
        self._items[rank] += pending.size

    def take(self, count: int) -> list[Pending]:
        """See `Lane.take`."""
        taken: list[Pending] = []
        while len(taken) < count:
            rank = self._ranks[0]
            lane = self._lanes[rank]
            some = lane.take(min(count - len(taken), len(lane)))
            self._left(some, rank)
            taken += some
        return taken

    def _left(self, pendings: list[Pending], rank: Rank) -> None:
        for pending in pendings:
            del self._places[pending]
            self._items[rank] -= pending.size
        if not self._lanes[rank]:
            del self._lanes[rank], self._items[rank]
            del self._ranks[bisect_left(self._ranks, rank)]

    def remove(self, pending: Pending) -> bool:
        """See `Lane.remove`."""
        rank = self._places.get(pending)
        if rank is None:
            return False
        self._lanes[rank].remove(pending)
        self._left([pending], rank)
        return True

    def expire(self, now: float) -> list[Pending]:
        """See `Queue.expire`; where the level's policy says so, one that is too late waits on
        behind the others of its level, without a deadline."""
        refused: list[Pending] = []
        while self.next_deadline() <= now:
            _, _, pending = heappop(self._deadlines)
            level, _ = self._places[pending]
            self.remove(pending)
            if self._limits.at(level).delays:
                pending.deadline = inf
                self._put(pending, (level, True))
            else:
                refused.append(pending)
        return refused

    def next_deadline(self) -> float:
        """See `Queue.next_deadline`."""
        if len(self._deadlines) > 2 * len(self._places) + _SLACK:
            self._deadlines = [entry for entry in self._deadlines if self._holds(entry)]
            heapify(self._deadlines)
        while self._deadlines and not self._holds(self._deadlines[0]):
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else inf

    def _holds(self, entry: tuple[float, int, Pending]) -> bool:
        return entry[2] in self._places and entry[2].deadline == entry[0]

    def __iter__(self) -> Iterator[Pending]:
        return chain.from_iterable(map(self._lanes.__getitem__, self._ranks))

    def __len__(self) -> int:
        return len(self._places)
