"""A request that waits; what schedulers and those who run their batches promise each other."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol, TypeAlias

from microkernel.errors import MicrokernelError
from microkernel.request import Answer, InferRequest, InferResponse, Reschedule
from microkernel.stats import Failure

Outcome: TypeAlias = Answer | MicrokernelError | Reschedule | None
"""What a model made of a request; None for the end of a stream that says nothing else."""


class Reply(Protocol):
    """The way back of a request: an `asyncio.Future`, or what puts responses on a stream."""

    def done(self) -> bool:
        """Whether nothing more can be answered: the final answer was given, or nobody waits."""
        ...

    def set_result(self, response: InferResponse, /) -> None:
        """Answer; for a decoupled model, which answers until a response is final."""
        ...

    def set_exception(self, error: MicrokernelError, /) -> None:
        """Answer with an error, which is final."""
        ...


class Runner(Protocol):
    """An instance that runs requests, as far as their callers have something to tell it; see
    `WorkerInstance`, whose numbers they are."""

    @property
    def name(self) -> str:
        """The instance's name."""
        ...

    def cancel(self, number: int) -> None:
        """Nobody waits for the request any more."""
        ...

    def pause(self, number: int) -> None:
        """The responses of the request are not read."""
        ...

    def resume(self, number: int) -> None:
        """The responses of the request are read again."""
        ...


@dataclass(slots=True, eq=False)
class Pending:
    """A request in a queue. `reply` is the only way back and gets exactly one final answer.

    `size` is the request's batch size, 1 where the model does not batch. Only requests with equal
    `key` may share a batch. `arrived` is on the loop's clock, in seconds; `arrived_ns` is the same
    moment on the monotonic clock, which statistics use. `deadline` is on the loop's clock, too: the
    moment at which the scheduler gives up waiting. `instance` is the one that runs the request and
    `number` the one it is known by there, once it was dispatched. One that is `null` fills a row of
    a batch and belongs to nobody: it is not counted, and its reply is never used. One that comes
    `again` has run before, so it is not counted as waiting.
    """

    request: InferRequest
    size: int
    key: Hashable
    reply: Reply
    arrived: float
    arrived_ns: int
    deadline: float = inf
    instance: Runner | None = None
    number: int = 0
    null: bool = False
    again: bool = False


class Executor(Protocol):
    """What a scheduler hands batches to; it calls the scheduler's `wake` when it can take one."""

    def idle(self, on: Runner | None = None) -> bool:
        """Whether a batch would start at once, on that instance or on any."""
        ...

    def execute(self, batch: Sequence[Pending], on: Runner | None = None) -> None:
        """Run a batch on that instance or on any; only while `idle(on)`. Every reply is answered in
        time."""
        ...

    def reject(self, pending: Pending, error: MicrokernelError, reason: Failure) -> None:
        """Answer a request that waited and will not run, and count it as failed. The scheduler has
        forgotten it already."""
        ...


class Scheduler(Protocol):
    """Decides which requests run when. Knows no instance and no worker."""

    def submit(self, pending: Pending) -> None:
        """Queue a request. Raises Unavailable when it is refused."""
        ...

    def wake(self) -> None:
        """The executor may be idle now."""
        ...

    def abandon(self, pending: Pending) -> bool:
        """The caller has gone: forget the request if it still waits, and say whether it did."""
        ...

    def take_all(self) -> Sequence[Pending]:
        """Give up everything that waits; the caller answers it."""
        ...

    def close(self) -> None:
        """Refuse new requests from now on; what waits still runs."""
        ...

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        ...


class SequenceKeeper(Scheduler, Protocol):
    """A scheduler whose requests depend on each other, so that it must know where they run and what
    became of them."""

    def joined(self, instance: Runner) -> None:
        """An instance is there from now on, and idle."""
        ...

    def left(self, instance: Runner) -> None:
        """An instance is gone, and what it knew with it. What it ran is answered right after."""
        ...

    def advanced(self, pending: Pending, outcome: Outcome) -> Outcome:
        """A model has answered a request that was dispatched, finally or not: the outcome as the
        caller may see it."""
        ...

    def released(self, pending: Pending, *, again: bool) -> None:
        """The model is done with a request, or wants to go on with it in a later batch (`again`),
        for which it waits from now on. Called after `advanced`, before the next `wake`. Raises
        MicrokernelError where it cannot go on."""
        ...
