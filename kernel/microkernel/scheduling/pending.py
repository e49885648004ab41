"""A request that waits."""

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from microkernel.request import InferRequest, InferResponse


@dataclass(slots=True, eq=False)
class Pending:
    """A request in a queue. `reply` is the only way back and gets exactly one final answer.

    `size` is the request's batch size, 1 where the model does not batch. Only requests with equal
    `key` may share a batch. `arrived` is on the loop's clock, in seconds; `arrived_ns` is the same
    moment on the monotonic clock, which statistics use.
    """

    request: InferRequest
    size: int
    key: Hashable
    reply: "asyncio.Future[InferResponse]"
    arrived: float
    arrived_ns: int


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
