"""Clients that take turns, so that one that floods the queue does not keep the others from it.

Every request gets a number when it comes: that of the request which ran last, or where its client
has more waiting, the number of the latest of those plus its size. The smallest number runs first.
So a client's next turn is as far away as what it has asked for already is large, and a client that
has nothing waiting is served next. That is start-time fair queueing: the shares of deficit round
robin, but an order that is known when a request comes, so that looking along the queue changes
nothing.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TypeAlias

from microkernel.config.model import ModelConfig
from microkernel.config.queue_rules import FAIR_KEY, FAIR_MOST, HEADER
from microkernel.errors import Unavailable
from microkernel.request import InferRequest
from microkernel.scheduling.pending import Pending
from microkernel.scheduling.waiting import Rank

KeyOf: TypeAlias = Callable[[InferRequest], Hashable]
_Entry: TypeAlias = tuple[int, int, Pending]
_Waiting: TypeAlias = dict[tuple[int, Hashable], int]
"""How many requests of a client wait at a level, whether they are late or not."""


@dataclass(frozen=True, slots=True)
class Fairness:
    """What tells the clients of a model apart, and how many requests of one may wait at a level; 0
    for any number."""

    name: str
    key: KeyOf
    most: int = 0

    @classmethod
    def of(cls, config: ModelConfig) -> "Fairness | None":
        """What a model's parameters ask for, None where they do not."""
        name = config.parameter(FAIR_KEY)
        return cls(name, key_of(name), int(config.parameter(FAIR_MOST, "0"))) if name else None

    def lanes(self) -> "Callable[[Rank], FairLane]":
        """What makes the lanes of one queue, in which clients take turns."""
        return partial(FairLane, self, {})


def key_of(name: str) -> KeyOf:
    """What reads a client's key from its request: the parameter of that name, or after `header:`
    the header, whose case does not matter and which a front end must forward. Requests without it
    are of one client."""
    if not name.startswith(HEADER):
        return lambda request: request.parameters.get(name, "")
    header = name.removeprefix(HEADER).lower()

    def forwarded(request: InferRequest) -> Hashable:
        found = [v for n, v in request.parameters.items() if n.lower() == header]
        return found[-1] if found else ""  # headers come after the client's own parameters

    return forwarded


@dataclass(slots=True)
class _Client:
    """One that has requests waiting: how many of them, of how many items, and the number that its
    next request gets."""

    next: int
    requests: int = 0
    items: int = 0


class FairLane:
    """Requests by turns of their clients; promises what `Lane` does."""

    def __init__(self, fairness: Fairness, waiting: _Waiting, rank: Rank) -> None:
        """`waiting` is shared by the lanes of a queue, where both of a level count."""
        self._fairness = fairness
        self._waiting = waiting
        self._level, self._late = rank
        self._heap: list[_Entry] = []  # some have left already
        self._keys: dict[Pending, Hashable] = {}
        self._clients: dict[Hashable, _Client] = {}
        self._arrivals = count()
        self._turn = 0

    def append(self, pending: Pending) -> None:
        """See `Lane.append`: refused is a client that has too much waiting, unless it was let in
        before and is only late."""
        key = self._fairness.key(pending.request)
        if self._fairness.most:
            self._count(pending, key)
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = _Client(self._turn)
        number = max(self._turn, client.next)
        heappush(self._heap, (number, next(self._arrivals), pending))
        client.next = number + pending.size
        client.requests += 1
        client.items += pending.size
        self._keys[pending] = key

    def _count(self, pending: Pending, key: Hashable) -> None:
        most, waiting = self._fairness.most, self._waiting.get((self._level, key), 0)
        if waiting >= most and not self._late:
            raise Unavailable(
                f"{pending.request.tag()}Exceeds maximum queue size of one client: {most} requests "
                f"of '{self._fairness.name}' '{key!s:.100}' wait already"
            )
        self._waiting[self._level, key] = waiting + 1

    def take(self, count: int) -> list[Pending]:
        """See `Lane.take`."""
        taken: list[Pending] = []
        while len(taken) < count:
            number, _, pending = heappop(self._heap)
            if pending in self._keys:
                self._forget(pending)
                self._turn = number
                taken.append(pending)
        return taken

    def remove(self, pending: Pending) -> bool:
        """See `Lane.remove`."""
        if pending not in self._keys:
            return False
        self._forget(pending)
        if len(self._heap) > 2 * len(self._keys):
            self._heap = [entry for entry in self._heap if entry[2] in self._keys]
            heapify(self._heap)
        return True

    def _forget(self, pending: Pending) -> None:
        key = self._keys.pop(pending)
        client = self._clients[key]
        client.requests -= 1
        client.items -= pending.size
        if client.requests == 0:
            del self._clients[key]
        if self._fairness.most:
            place = self._level, key
            self._waiting[place] -= 1
            if self._waiting[place] == 0:
                del self._waiting[place]

    def before(self, pending: Pending, items: int) -> int:
        """See `Lane.before`: about as much of every other client as of its own."""
        client = self._clients.get(self._fairness.key(pending.request))
        own = client.items if client is not None else 0
        others = len(self._clients) - (client is not None)
        return min(items, own + others * (own + pending.size))

    def __iter__(self) -> Iterator[Pending]:
        return (entry[2] for entry in _in_order(self._heap) if entry[2] in self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _in_order(heap: list[_Entry]) -> Iterator[_Entry]:
    """The entries of a heap, the smallest first, as far as somebody asks; the heap stays as it
    is."""
    reached = [(heap[0], 0)] if heap else []
    while reached:
        entry, index = heappop(reached)
        yield entry
        for child in (2 * index + 1, 2 * index + 2):
            if child < len(heap):
                heappush(reached, (heap[child], child))
