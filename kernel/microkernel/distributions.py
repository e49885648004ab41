"""How the times of a model version are distributed: histograms, and summaries where asked for.

Recorded for every request, so each observation is a search in a short tuple and an addition.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic_ns
from typing import Protocol

from microkernel.quantiles import Target, Window

SECONDS = (
    *(0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""The buckets of our own histograms of time."""

_SECONDS_NS = tuple(round(seconds * 1e9) for seconds in SECONDS)


class Histogram:
    """Counts observations by the bucket they fall into."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are the upper ends of the buckets, ascending and included in them; one more
        bucket has no end."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total: float = 0

    def add(self, value: float) -> None:
        """Count an observation; what is not a number, in the bucket without an end."""
        place = bisect_left(self.bounds, value) if value == value else -1  # noqa: PLR0124 - NaN
        self.counts[place] += 1
        self.total += value


class Moments(Protocol):
    """The moments of one execution; see `microkernel.stats.Execution`."""

    start: int
    input_end: int
    output_start: int
    end: int


@dataclass(slots=True)
class Summaries:
    """The quantiles of what successful requests took in microseconds."""

    request: Window
    queue: Window
    compute_input: Window
    compute_infer: Window
    compute_output: Window
    cache_hit: Window
    cache_miss: Window

    @classmethod
    def of(cls, targets: Sequence[Target], now: int) -> "Summaries":
        """Empty ones. `now` is in nanoseconds of the monotonic clock."""
        return cls(*(Window(targets, now) for _ in range(7)))

    def add(self, arrived: int, now: int, times: Moments) -> None:
        """Record a successful request, which is charged the whole time of its batch."""
        for window, ns in (
            (self.request, now - arrived),
            (self.queue, times.start - arrived),
            (self.compute_input, times.input_end - times.start),
            (self.compute_infer, times.output_start - times.input_end),
            (self.compute_output, times.end - times.output_start),
        ):
            window.add(ns // 1000, now)


class Distributions:
    """The histograms and summaries of one loaded model version. Times are nanoseconds.

    `request` and `queue` count successful requests and `compute` executions by the buckets of
    `SECONDS`; their sums are those of the counters. `first_response` and `summaries` are None where
    they are off.
    """

    __slots__ = ("compute", "first_response", "queue", "request", "summaries")

    def __init__(
        self, first_response: Sequence[float] | None = None, summaries: Summaries | None = None
    ) -> None:
        """`first_response` are the bounds in milliseconds."""
        self.request, self.queue, self.compute = ([0] * (len(SECONDS) + 1) for _ in range(3))
        self.first_response = None if first_response is None else Histogram(first_response)
        self.summaries = summaries

    def succeeded(self, arrived: int, now: int, times: Moments, *, first: bool = False) -> None:
        """Record a successful request, whose response was also the `first` or was not."""
        self.request[bisect_left(_SECONDS_NS, now - arrived)] += 1
        self.queue[bisect_left(_SECONDS_NS, times.start - arrived)] += 1
        if self.summaries is not None:
            self.summaries.add(arrived, now, times)
        if first and self.first_response is not None:
            self.first_response.add((now - arrived) / 1e6)

    def hit(self, ns: int, now: int) -> None:
        """Record a request that was answered from the cache, without a wait."""
        self.request[bisect_left(_SECONDS_NS, ns)] += 1
        self.queue[0] += 1
        if self.summaries is not None:
            self.summaries.queue.add(0, now)
            self.summaries.cache_hit.add(ns // 1000, now)

    def missed(self, ns: int) -> None:
        """Record what the cache took of a request that was not in it."""
        if self.summaries is not None:
            self.summaries.cache_miss.add(ns // 1000, monotonic_ns())

    def executed(self, ns: int) -> None:
        """Record an execution."""
        self.compute[bisect_left(_SECONDS_NS, ns)] += 1

    def responded(self, ns: int) -> None:
        """Record how long a request waited for its first response."""
        if self.first_response is not None:
            self.first_response.add(ns / 1e6)
