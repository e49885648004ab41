"""What waits, in the order in which it is to run."""

from collections import OrderedDict
from collections.abc import Iterator
from math import inf
from typing import Protocol, TypeAlias

from microkernel.scheduling.pending import Pending

Rank: TypeAlias = tuple[int, bool]
"""A level, and whether the requests have waited for too long; what is smaller runs first."""


class Lane(Protocol):
    """Requests in the order in which they are to run. No operation takes longer because much
    waits; only the logarithm of it may count."""

    def append(self, pending: Pending) -> None:
        """Let a request wait. Raises Unavailable where it is refused."""
        ...

    def take(self, count: int) -> list[Pending]:
        """The first `count`, which wait no more; there are as many."""
        ...

    def remove(self, pending: Pending) -> bool:
        """Let a request wait no more, wherever it stands; whether it did."""
        ...

    def before(self, pending: Pending, items: int) -> int:
        """How many of the `items` that wait would run before a request that does not wait yet, or
        about how many."""
        ...

    def __iter__(self) -> Iterator[Pending]: ...
    def __len__(self) -> int: ...


class Queue(Protocol):
    """Everything that waits for a scheduler's instances; a `Lane` that may have limits."""

    def append(self, pending: Pending) -> None:
        """See `Lane.append`."""
        ...

    def take(self, count: int) -> list[Pending]:
        """See `Lane.take`."""
        ...

    def remove(self, pending: Pending) -> bool:
        """See `Lane.remove`."""
        ...

    def __iter__(self) -> Iterator[Pending]: ...
    def __len__(self) -> int: ...

    @property
    def timed(self) -> bool:
        """Whether there may ever be deadlines."""
        ...

    def expire(self, now: float) -> list[Pending]:
        """Those whose deadline has come, which are to be refused and wait no more."""
        ...

    def next_deadline(self) -> float:
        """The moment at which `expire` is due; infinity where nobody has a deadline."""
        ...


class PlainQueue(OrderedDict[Pending, None]):
    """First in, first out, without limits. It is a dictionary so that whether it is empty, and who
    is in it, costs no call."""

    timed = False

    def append(self, pending: Pending) -> None:
        """See `Lane.append`; nothing is refused."""
        self[pending] = None

    def take(self, count: int) -> list[Pending]:
        """See `Lane.take`."""
        if count == 1:
            return [self.popitem(last=False)[0]]
        if count == len(self):
            taken = list(self)
            self.clear()
            return taken
        return [self.popitem(last=False)[0] for _ in range(count)]

    def remove(self, pending: Pending) -> bool:
        """See `Lane.remove`."""
        return self.pop(pending, self) is None

    def before(self, pending: Pending, items: int) -> int:
        """See `Lane.before`: all."""
        return items

    def expire(self, now: float) -> list[Pending]:
        """See `Queue.expire`; nobody is refused."""
        return []

    def next_deadline(self) -> float:
        """See `Queue.next_deadline`; there is none."""
        return inf


def plain_lane(rank: Rank) -> Lane:
    """A lane in which whoever comes first is first."""
    return PlainQueue()
