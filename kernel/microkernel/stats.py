"""What a model version has done so far: counts and durations, by Triton's rules of accounting.

Kept on the event loop, so without locks. Durations are nanoseconds of the monotonic clock.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum


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

    def add(self, ns: int, count: int = 1) -> None:
        """Count something that took `ns` each time."""
        self.count += count
        self.ns += ns * count


@dataclass(slots=True)
class Compute:
    """The three parts of an execution."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def add(self, execution: "Execution", count: int = 1) -> None:
        """Charge an execution `count` times."""
        self.compute_input.add(max(execution.input_end - execution.start, 0), count)
        self.compute_infer.add(max(execution.output_start - execution.input_end, 0), count)
        self.compute_output.add(max(execution.end - execution.output_start, 0), count)


@dataclass(frozen=True, slots=True)
class Execution:
    """The moments of one execution."""

    start: int
    input_end: int
    output_start: int
    end: int


@dataclass(frozen=True, slots=True)
class Finished:
    """One request of an execution: its size, when it arrived, and whether it succeeded."""

    size: int
    arrived: int
    succeeded: bool


@dataclass(slots=True)
class ModelStats:
    """The counters of one loaded model version; they restart with every load."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: Compute = field(default_factory=Compute)
    batches: dict[int, Compute] = field(default_factory=dict)
    failures: dict[Failure, int] = field(default_factory=lambda: dict.fromkeys(Failure, 0))
    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    pending: int = 0
    load_seconds: float = 0.0

    def executed(self, execution: Execution, finished: Sequence[Finished], now: int) -> None:
        """Account one execution that was given to the backend and answered at `now`.

        Each successful request is charged the whole batch's times once; the batch size's entry is
        charged once per execution.
        """
        self.execution_count += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        total = sum(request.size for request in finished)
        self.batches.setdefault(total, Compute()).add(execution)
        succeeded = 0
        for request in finished:
            if not request.succeeded:
                self.failed(request.arrived, now, Failure.BACKEND)
                continue
            succeeded += 1
            self.inference_count += request.size
            self.success.add(now - request.arrived)
            self.queue.add(max(execution.start - request.arrived, 0))
        self.compute.add(execution, succeeded)

    def failed(self, arrived: int, now: int, reason: Failure) -> None:
        """Account a request that was accepted and failed."""
        self.fail.add(now - arrived)
        self.failures[reason] += 1
