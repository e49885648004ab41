"""A request that waits."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from microkernel.errors import MicrokernelError
from microkernel.request import InferRequest, InferResponse


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
    moment on the monotonic clock, which statistics use. `instance` is the one that runs the request
    and `number` the one it is known by there, once it was dispatched.
    """

    request: InferRequest
    size: int
    key: Hashable
    reply: Reply
    arrived: float
    arrived_ns: int
    instance: Runner | None = None
    number: int = 0


class Executor(Protocol):
    """What a scheduler hands batches to; it calls the scheduler's `wake` when it can take one."""

    def idle(self) -> bool:
        """Whether a batch would start at once."""
        ...

    def execute(self, batch: Sequence[Pending]) -> None:
        """Run a batch; only while `idle()`. Every reply is answered in time."""
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
