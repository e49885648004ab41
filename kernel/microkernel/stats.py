"""What a model version has done so far: counts and durations, by Triton's rules of accounting.

Kept on the event loop, so without locks. Durations are nanoseconds of the monotonic clock.
"""

import time
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
    `distributions` is None where nobody wants more than counters.
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: Compute = field(default_factory=Compute)
    batches: dict[int, Compute] = field(default_factory=dict)
    responses: dict[str, ResponseStats] = field(default_factory=dict)
    failures: dict[Failure, int] = field(default_factory=lambda: dict.fromkeys(Failure, 0))
    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    pending: int = 0
    load_seconds: float = 0.0
    distributions: Distributions | None = None

    def copy(self) -> "ModelStats":
        """The counters as they are now, without the distributions."""
        return deepcopy(replace(self, distributions=None))

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

    def succeeded(self, arrived: int, now: int, size: int, times: Execution) -> None:
        """Count a successful request; it is charged the whole time of its batch."""
        self.inference_count += size
        self.success.add(now - arrived)
        self.queue.add(times.start - arrived)
        self.compute.add(times)
        if self.distributions is not None:
            self.distributions.succeeded(arrived, now, times)

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
