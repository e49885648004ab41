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
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TypeAlias

from microkernel.config.model import ModelConfig
from microkernel.errors import InvalidArgument, Unavailable
from microkernel.request import InferRequest
from microkernel.scheduling.pending import Pending

KEY = "FAIR_QUEUE_KEY"
MOST = "FAIR_QUEUE_MAX_PER_KEY"
_HEADER = "header:"

KeyOf: TypeAlias = Callable[[InferRequest], Hashable]
_Entry: TypeAlias = tuple[int, int, Pending]


@dataclass(frozen=True, slots=True)
class Fairness:
    """What tells the clients of a model apart, and how many requests of one may wait at a level; 0
    for any number."""

    name: str
    key: KeyOf
    most: int = 0

    @classmethod
    def of(cls, config: ModelConfig) -> "Fairness | None":
        """What a model's parameters ask for, None where they do not. Raises InvalidArgument for
        what cannot be."""
        name = config.parameter(KEY)
        most = _number(config.parameter(MOST, "0"), config)
        if not name:
            if MOST in config.parameters:
                raise InvalidArgument(
                    f"parameter '{MOST}' of model '{config.name}' needs '{KEY}' beside it"
                )
            return None
        dynamic = config.dynamic_batching
        if dynamic is not None and dynamic.preserve_ordering:
            raise InvalidArgument(
                f"parameter '{KEY}' of model '{config.name}' cannot be set when "
                "'preserve_ordering' is true: who comes first is answered first then"
            )
        return cls(name, key_of(name), most)

    def lane(self) -> "FairLane":
        """A lane in which clients take turns."""
        return FairLane(self)


def _number(text: str, config: ModelConfig) -> int:
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgument(
            f"parameter '{MOST}' of model '{config.name}' must be a number of requests, 0 for no "
            f"limit, got '{text}'"
        )
    return int(text)


def key_of(name: str) -> KeyOf:
    """What reads a client's key from its request: the parameter of that name, or after `header:`
    the header, whose case does not matter and which a front end must forward. Requests without it
    are of one client."""
    if not name.startswith(_HEADER):
        return lambda request: request.parameters.get(name, "")
    header = name.removeprefix(_HEADER).lower()

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

    def __init__(self, fairness: Fairness) -> None:
        self._fairness = fairness
        self._heap: list[_Entry] = []  # some have left already
        self._keys: dict[Pending, Hashable] = {}
        self._clients: dict[Hashable, _Client] = {}
        self._arrivals = count()
        self._turn = 0

    def append(self, pending: Pending) -> None:
        """See `Lane.append`: refused is a client that has too much waiting."""
        key, most = self._fairness.key(pending.request), self._fairness.most
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = _Client(self._turn)
        elif client.requests >= most > 0:
            raise Unavailable(
                f"{pending.request.tag()}Exceeds maximum queue size of one client: {most} requests "
                f"of '{self._fairness.name}' '{key!s:.100}' wait already"
            )
        number = max(self._turn, client.next)
        heappush(self._heap, (number, next(self._arrivals), pending))
        client.next = number + pending.size
        client.requests += 1
        client.items += pending.size
        self._keys[pending] = key

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
