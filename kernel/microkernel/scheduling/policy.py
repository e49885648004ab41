"""When to form a batch, and of what: pure decisions from the head of a queue and a time.

A batch is formed only when an instance is free to run it. Triton prepares batches while all are
busy, and lets them grow until they are picked up. So what an instance finds that has just become
free is judged as what has grown there, and what it finds that was free before is not.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from microkernel.config.model import ModelConfig
from microkernel.scheduling.limits import Limits


class Waiting(Protocol):
    """What a decision needs to know of a request."""

    @property
    def size(self) -> int: ...
    @property
    def key(self) -> Hashable: ...
    @property
    def arrived(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Run the first `count` requests of the queue now."""

    count: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at the time `until`, or when another request arrives."""

    until: float


Decision: TypeAlias = Dispatch | Wait

Joins: TypeAlias = Callable[[Waiting], bool]
"""Whether the next request may join a batch; asked of each in turn, the first included."""


class Policy(Protocol):
    """How the head of a queue becomes a batch."""

    def decide(self, queue: Iterable[Waiting], now: float, *, freed: bool = False) -> Decision:
        """What to do with a queue that is not empty while an instance is free; `freed` says that
        none was before, so that all of the queue came while every one was busy or had been looked
        at before that."""
        ...


_ONE = Dispatch(1)


class OneByOne:
    """The default scheduler's policy: one request is one execution."""

    def decide(self, queue: Iterable[Waiting], now: float, *, freed: bool = False) -> Decision:
        """The oldest request, now."""
        return _ONE


@dataclass(frozen=True, slots=True)
class Batching:
    """The dynamic batcher's policy: a largest size, preferred sizes, and a delay in seconds.
    `open_batch`, where there is one, says of each batch what else may not join it. `ahead` is
    whether Triton would prepare batches while all instances are busy, as it does where the queue
    has no priorities and no limits."""

    largest: int
    preferred: frozenset[int]
    delay: float
    open_batch: Callable[[], Joins] | None = None
    ahead: bool = True

    @classmethod
    def of(cls, config: ModelConfig, open_batch: Callable[[], Joins] | None = None) -> "Batching":
        """The policy of a normalised configuration that has `dynamic_batching`."""
        assert config.dynamic_batching is not None
        largest = max(config.max_batch_size, 1)
        preferred = frozenset(config.dynamic_batching.preferred_batch_size) or {largest}
        delay = config.dynamic_batching.max_queue_delay_microseconds / 1e6
        return cls(largest, frozenset(preferred), delay, open_batch, Limits.of(config).none)

    def decide(self, queue: Iterable[Waiting], now: float, *, freed: bool = False) -> Decision:
        """Scan from the head while requests may join, then choose by the table in Triton's words:
        the largest prefix of a preferred size, what stands before a preferred size is overrun, all
        of a batch that cannot grow, all when the oldest has waited long enough, else wait.

        Such a prefix that was prepared has taken in all that may join, but without a delay Triton
        closes a batch at a preferred size."""
        scan = self._scan(queue)
        expired = self.delay > 0 and now >= scan.oldest + self.delay
        if expired:
            return Dispatch(scan.count)
        if prefix := scan.preferred or scan.before_overrun:
            grown = freed and self.ahead and self.delay > 0
            return Dispatch(scan.count if grown else prefix)
        if self.delay == 0 or scan.closed or scan.total >= max(self.preferred):
            return Dispatch(scan.count)
        return Wait(scan.oldest + self.delay)

    def _scan(self, queue: Iterable[Waiting]) -> "_Scan":
        scan = _Scan()
        top = max(self.preferred)
        joins = None if self.open_batch is None else self.open_batch()
        for request in queue:
            if scan.count == 0:
                scan.key, scan.oldest = request.key, request.arrived
                if joins is not None:
                    joins(request)
            elif (
                request.key != scan.key
                or scan.total + request.size > self.largest
                or (joins is not None and not joins(request))
            ):
                scan.closed = True
                return scan
            elif scan.total < top < scan.total + request.size and not scan.before_overrun:
                scan.before_overrun = scan.count
            scan.oldest = min(scan.oldest, request.arrived)
            scan.count += 1
            scan.total += request.size
            if scan.total in self.preferred:
                scan.preferred = scan.count
        return scan


def never_waits(policy: Policy) -> bool:
    """Whether a policy dispatches a request that is alone at once, whatever came before."""
    return isinstance(policy, OneByOne) or (isinstance(policy, Batching) and policy.delay == 0)


@dataclass(slots=True)
class _Scan:
    """What a look along the queue found: how many requests and items may run together, the longest
    prefix of a preferred size, the prefix before one that overran the largest preferred size, and
    whether the batch is closed by a request that may not join."""

    count: int = 0
    total: int = 0
    preferred: int = 0
    before_overrun: int = 0
    closed: bool = False
    oldest: float = 0.0
    key: Hashable = None
