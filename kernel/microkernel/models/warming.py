"""Running warm-up samples on an instance before it serves."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from microkernel.errors import InvalidArgument, MicrokernelError
from microkernel.models.warmup import Sample
from microkernel.stats import Execution, Failure, ModelStats
from microkernel.workers.contract import Result, WorkerInstance
from microkernel.workers.parts import Part


class Watch(Protocol):
    """Watches over an execution."""

    def cancel(self) -> None:
        """It has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Warming:
    """The samples of a model, and where their executions are counted."""

    samples: Sequence[Sample]
    stats: ModelStats
    decoupled: bool

    async def run(self, instance: WorkerInstance, watched: Callable[[], Watch]) -> None:
        """Run every sample as often as it says, one after the other; outputs are dropped. `watched`
        begins to watch over each execution. Raises InvalidArgument with what the model made of the
        first one that failed."""
        for sample in self.samples:
            for _ in range(sample.count):
                watch = watched()
                try:
                    error = await self._once(instance, sample)
                finally:
                    watch.cancel()
                if error is not None:
                    raise InvalidArgument(f"failed to run warmup sample '{sample.name}': {error}; ")

    async def _once(self, instance: WorkerInstance, sample: Sample) -> MicrokernelError | None:
        arrived = time.monotonic_ns()
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        requests, sizes = sample.requests, [1] * len(sample.requests)
        outcomes = _Outcomes(len(requests), self.stats, lambda: _settle(over))
        if self.decoupled:
            instance.stream(requests, sizes, outcomes)
        else:
            instance.execute(requests, sizes, outcomes.done)
        await over
        outcomes.count(arrived)
        return next((error for error in outcomes.errors if error is not None), None)


def _settle(over: "asyncio.Future[None]") -> None:
    if not over.done():  # else nobody waits any more
        over.set_result(None)


@dataclass(slots=True)
class _Outcomes:
    """What comes of a sample: the first error of each of its requests. Either `done` is called, or
    it is the `Receiver` of a decoupled batch."""

    size: int
    stats: ModelStats
    ended: Callable[[], None]
    errors: list[MicrokernelError | None] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    times: Execution | None = None

    def __post_init__(self) -> None:
        self.errors, self.answers = [None] * self.size, [0] * self.size

    def done(self, result: Result) -> None:
        """The batch has run."""
        for index, answer in enumerate(result.answers):
            if isinstance(answer, MicrokernelError):
                self.errors[index] = answer
        self.times = result.times
        self.ended()

    def part(self, index: int, part: Part) -> None:
        """See `Receiver.part`."""
        if part.began:
            infer, output = part.output_start - part.began, part.end - part.output_start
            self.stats.response(self.answers[index], part.answer, infer, output)
        self.answers[index] += 1
        if isinstance(part.answer, MicrokernelError) and self.errors[index] is None:
            self.errors[index] = part.answer

    def returned(self, times: Execution) -> None:
        """See `Receiver.returned`."""
        self.times = times

    def over(self) -> None:
        """See `Receiver.over`."""
        self.ended()

    def count(self, arrived: int) -> None:
        """Count the batch and each of its requests, as those of clients are."""
        assert self.times is not None
        now = time.monotonic_ns()
        for error in self.errors:
            if error is None:
                self.stats.succeeded(arrived, now, 1, self.times)
            else:
                self.stats.failed(arrived, now, Failure.BACKEND)
        self.stats.executed(self.times, self.size)
