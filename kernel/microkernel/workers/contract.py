"""What a worker is to the rest of the kernel, and what it is told to host."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from microkernel.backend import BackendType, Placement
from microkernel.config.model import ModelConfig
from microkernel.errors import MicrokernelError
from microkernel.request import Answered, InferRequest
from microkernel.stats import Execution
from microkernel.workers.flights import Receiver
from microkernel.workers.limits import NO_LIMITS, Limits
from microkernel.workers.readiness import Readiness
from microkernel.workers.timeouts import NO_TIMEOUTS, Timeouts


@dataclass(frozen=True, slots=True)
class Hosted:
    """A model version to host: its backend and that plug-in's settings (None where it declares
    none), its name, version and directory, and the limits of a process that hosts it, those of its
    time apart."""

    backend: BackendType
    settings: Any
    model: str
    version: int
    files: Path
    limits: Limits = NO_LIMITS
    timeouts: Timeouts = NO_TIMEOUTS


@dataclass(slots=True)
class Result:
    """What became of a batch: its moments on the monotonic clock, from the beginning of gathering,
    and what became of each request, in order."""

    times: Execution
    answers: Sequence[Answered]


Done: TypeAlias = Callable[[Result], None]
Lost: TypeAlias = Callable[[MicrokernelError], None]


class WorkerInstance(Protocol):
    """One instance in a worker, on the server's side. Busy from `execute` until it calls `done`, or
    from `stream` until the receiver's `returned`. Requests are known by numbers, which the instance
    gives them and never gives again."""

    @property
    def name(self) -> str:
        """The instance's name."""
        ...

    @property
    def readiness(self) -> Readiness | None:
        """Asks the instance whether it is ready; None where it always is."""
        ...

    def execute(self, requests: Sequence[InferRequest], sizes: Sequence[int], done: Done) -> int:
        """Run a batch whose requests have the same inputs, in configuration order. `done` is called
        once, on the loop, whatever happens to the worker. Returns the number of the first request;
        the others have those that follow."""
        ...

    def stream(
        self, requests: Sequence[InferRequest], sizes: Sequence[int], receiver: Receiver
    ) -> int:
        """As `execute`, for a decoupled model: what comes of the batch goes to the receiver, which
        gets one final part for every request, whatever happens to the worker."""
        ...

    def cancel(self, number: int) -> None:
        """Tell the model that nobody waits for the request any more. One that is finished is left
        alone."""
        ...

    def pause(self, number: int) -> None:
        """Let the model wait with further responses of the request, for they are not read. One that
        is finished is left alone, also by `resume`."""
        ...

    def resume(self, number: int) -> None:
        """The responses of the request are read again."""
        ...


class Worker(Protocol):
    """Where instances of one model version live."""

    async def complete(self, config: ModelConfig) -> ModelConfig:
        """Let the backend fill in what the model's files tell. Raises what the backend raised, and
        Unavailable when the worker died of it."""
        ...

    async def start(
        self, config: ModelConfig, placements: Sequence[Placement]
    ) -> Sequence[WorkerInstance]:
        """Load the model and make its instances, which are all bound alike where the worker is a
        process. Raises as `complete` does."""
        ...

    def watch(self, lost: Lost) -> None:
        """Have `lost(error)` called if the worker dies by itself; every running batch is answered
        with that error right after it."""
        ...

    def kill(self, reason: str) -> None:
        """End the worker at once, as if it had died of `reason`: nobody waits for it to be gone.
        What cannot be ended is left behind."""
        ...

    async def released(self) -> None:
        """Wait until a worker that is lost has given back what it held, such as the memory of a
        GPU; not for what is left behind, nor for ever."""
        ...

    async def stop(self) -> None:
        """Close the instances, unload the model and end the worker; idle instances only."""
        ...
