"""What a model version has done so far: counts and durations, by Triton's rules of accounting.

Kept on the event loop, so without locks. Durations are nanoseconds of the monotonic clock.
"""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from enum import Enum

from microkernel.distributions import Distributions
from microkernel.errors import Cancelled, MicrokernelError


class Failure(Enum):
    """Why a request failed, as the failure metric labels it."""

    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    BACKEND = "BACKEND"
    OTHER = "OTHER"


@dataclass(slots=True)
class Duration:
    """How often something took time, and how much in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count something that took `ns`."""
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class Compute:
    """The three parts of an execution."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def add(self, times: "Execution", count: int = 1) -> None:
        """Charge an execution `count` times."""
        part = self.compute_input
        part.count += count
        part.ns += (times.input_end - times.start) * count
        part = self.compute_infer
        part.count += count
        part.ns += (times.output_start - times.input_end) * count
        part = self.compute_output
        part.count += count
        part.ns += (times.end - times.output_start) * count


@dataclass(slots=True)
class Execution:
    """The moments of one execution, each no earlier than the one before."""

    start: int
    input_end: int
    output_start: int
    end: int


MOST_POSITIONS = 1024
"""How many responses of a request have counters of their own; a model may send any number."""


@dataclass(slots=True)
class ResponseStats:
    """The responses at one position in the answers of a decoupled model."""

    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    empty_response: Duration = field(default_factory=Duration)
    cancel: Duration = field(default_factory=Duration)

    def add(self, answer: object, infer_ns: int, output_ns: int) -> None:
        """Count a response: outputs, an error, or None for no more than the end."""
        if isinstance(answer, Cancelled):
            self.cancel.add(infer_ns + output_ns)
            return
        self.compute_infer.add(infer_ns)
        if answer is None:
            self.empty_response.add(infer_ns)
            return
        if isinstance(answer, MicrokernelError):
            self.fail.add(infer_ns + output_ns)
            return
        self.compute_output.add(output_ns)
        self.success.add(infer_ns + output_ns)


@dataclass(slots=True)
class ModelStats:
    """The counters of one loaded model version; they restart with every load.

    `responses` are those of a decoupled model by their position, "0" for the first of a request.
    `distributions` is None where nobody wants more than counters. `learn` is told the size of every
    batch and the seconds that it took, None where nobody learns from that. `cached` says whether
    responses may come from a cache.
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)
    compute: Compute = field(default_factory=Compute)
    batches: dict[int, Compute] = field(default_factory=dict)
    responses: dict[str, ResponseStats] = field(default_factory=dict)
    failures: dict[Failure, int] = field(default_factory=lambda: dict.fromkeys(Failure, 0))
    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    pending: int = 0
    load_seconds: float = 0.0
    cached: bool = False
    distributions: Distributions | None = None
    learn: Callable[[int, float], None] | None = None

    def copy(self) -> "ModelStats":
        """The counters as they are now, and nothing but them."""
        return deepcopy(replace(self, distributions=None, learn=None))

    def executed(self, times: Execution, size: int) -> None:
        """Count one execution of a batch of `size` that was given to the backend."""
        self.execution_count += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        batch = self.batches.get(size)
        if batch is None:
            batch = self.batches[size] = Compute()
        batch.add(times)
        if self.distributions is not None:
            self.distributions.executed(times.end - times.start)
        if self.learn is not None:
            self.learn(size, (times.end - times.start) / 1e9)

    def succeeded(
        self, arrived: int, now: int, size: int, times: Execution, *, first: bool = False
    ) -> None:
        """Count a successful request; it is charged the whole time of its batch. `first` is whether
        its response was also its first, which is recorded as `first_response` does."""
        self.inference_count += size
        duration = self.success
        duration.count += 1
        duration.ns += now - arrived
        duration = self.queue
        duration.count += 1
        duration.ns += times.start - arrived
        self.compute.add(times)
        if self.distributions is not None:
            self.distributions.succeeded(arrived, now, times, first=first)

    def hit(self, began: int, now: int) -> None:
        """Count a request that was answered from the cache, which was asked at once."""
        self.success.add(now - began)
        self.queue.add(0)
        self.cache_hit.add(now - began)
        if self.distributions is not None:
            self.distributions.hit(now - began, now)

    def missed(self, ns: int) -> None:
        """Count that the response to a request, which is counted already, was not in the cache,
        which took so much of the request's time."""
        self.success.ns += ns
        self.cache_miss.add(ns)
        if self.distributions is not None:
            self.distributions.missed(ns)

    def first_response(self, ns: int) -> None:
        """Record how long a request, of whatever kind, waited for its first response."""
        if self.distributions is not None:
            self.distributions.responded(ns)

    def response(self, position: int, answer: object, infer_ns: int, output_ns: int) -> None:
        """Count a response of a decoupled model; see `ResponseStats.add`."""
        if position < MOST_POSITIONS:
            stats = self.responses.get(key := str(position))
            if stats is None:
                stats = self.responses[key] = ResponseStats()
            stats.add(answer, infer_ns, output_ns)

    def failed(self, arrived: int, now: int, reason: Failure) -> None:
        """Account a request that was accepted and failed."""
        self.fail.add(now - arrived)
        self.failures[reason] += 1
