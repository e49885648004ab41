"""What serves under a name and a version: a model, or an ensemble of models."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from microkernel.classification import Labels
from microkernel.config.model import ModelConfig
from microkernel.request import InferRequest, InferResponse, Spent
from microkernel.responses import ResponseStream
from microkernel.stats import Execution, ModelStats
from microkernel.workers.readiness import Readiness


class Answering(Protocol):
    """Answers requests, each exactly once, whatever happens."""

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request. See `Port.infer`."""
        ...

    async def stream(self, request: InferRequest) -> ResponseStream:
        """Accept one request; its responses come on the stream. See `Port.stream`."""
        ...


class Held(Answering, Protocol):
    """A version that somebody needs for a while: it answers until `release`, also when it has been
    unloaded meanwhile."""

    @property
    def version(self) -> int:
        """Its number."""
        ...

    def release(self) -> None:
        """It is not needed any more. Called once."""
        ...


class Served(Answering, Protocol):
    """A loaded version."""

    @property
    def config(self) -> ModelConfig:
        """Its configuration, complete and normalised."""
        ...

    @property
    def version(self) -> int:
        """Its number."""
        ...

    @property
    def stats(self) -> ModelStats:
        """What it has done so far."""
        ...

    @property
    def labels(self) -> Labels:
        """The labels of its outputs."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it would answer now."""
        ...

    def readiness(self) -> Sequence[Readiness]:
        """Asks its instances that can say whether they are ready; it answers whatever they say.
        There is no need to ask where it is not `ready`."""
        ...

    def check_ahead(self, request: InferRequest) -> None:
        """Raise what a request would be refused with, as far as that can be told before its inputs
        in shared memory are read."""
        ...

    @property
    def identity(self) -> bytes | None:
        """What stands for its configuration and files, where somebody had to know; else None."""
        ...

    def hold(self, company: "Company") -> Held:
        """Keep it in service until it is released: `drain` waits. What it is composed of is held
        in the same company. Raises MicrokernelError where it would not answer."""
        ...

    async def drain(self) -> None:
        """Refuse new requests, except those of who holds it, and wait until nobody does, everything
        accepted is answered and nothing runs any more."""
        ...

    def abandon(self, reason: str) -> None:
        """Answer everything that waits or runs with an error, now."""
        ...

    async def stop(self) -> None:
        """Give everything back; after `drain` or `abandon`."""
        ...


class Company:
    """Versions that are held together, each once however many of them need it, so that ensembles of
    ensembles cost no more than there are models."""

    def __init__(self) -> None:
        self._held: dict[Served, Held] = {}

    def hold(self, served: Served) -> Held:
        """The hold on a version, which stays until `release`. Raises as `Served.hold`; what was
        held before stays held."""
        held = self._held.get(served)
        if held is None:
            held = self._held[served] = served.hold(self)
        return held

    def release(self) -> None:
        """None of them is needed any more. Called once."""
        for held in self._held.values():
            held.release()


class Holds:
    """Counts who holds a version."""

    def __init__(self) -> None:
        self._count = 0
        self._gone = asyncio.Event()

    def take(self, served: Answering, version: int) -> Held:
        """One more holds it."""
        self._count += 1
        return _Hold(served, version, self._released)

    def _released(self) -> None:
        self._count -= 1
        if self._count == 0:
            self._gone.set()

    async def gone(self) -> None:
        """Wait until nobody holds it; at once where nobody does."""
        while self._count:
            self._gone.clear()
            await self._gone.wait()


class _Hold:
    """A hold on a version that answers by itself."""

    __slots__ = ("_release", "infer", "stream", "version")

    def __init__(self, served: Answering, version: int, release: Callable[[], None]) -> None:
        self.version = version
        self.infer = served.infer
        self.stream = served.stream
        self._release = release

    def release(self) -> None:
        """See `Held.release`."""
        self._release()


def charge(spent: Spent, times: Execution) -> None:
    """Add an execution to what was spent on behalf of a request."""
    spent.add(
        times.input_end - times.start,
        times.output_start - times.input_end,
        times.end - times.output_start,
    )
