"""What stands in for models where only decisions are measured: it runs nothing and answers when the
event loop comes round again."""

import asyncio
import time
from collections.abc import Mapping, Sequence

import numpy as np

from microkernel.config.model import ModelConfig
from microkernel.ensembles.flow import Value
from microkernel.ensembles.graph import Graph
from microkernel.errors import MicrokernelError, Unsupported
from microkernel.models.ensemble_run import Circumstances, EnsembleRun
from microkernel.request import Answer, InferRequest, InferResponse, Spent
from microkernel.request import Sequence as Seq
from microkernel.responses import ResponseStream
from microkernel.scheduling.choice import is_keeper, scheduler_of
from microkernel.scheduling.pending import Pending, Runner
from microkernel.stats import Failure
from microkernel.tensor import Tensor
from microkernel.tracing.tracer import Tracer

STREAMS = 64
"""How many sequences there are at a time."""

LENGTH = 10
"""How many requests a sequence has."""


class _Instance:
    """An instance that nobody tells anything."""

    name = "nothing"

    def cancel(self, number: int) -> None: ...
    def pause(self, number: int) -> None: ...
    def resume(self, number: int) -> None: ...


class Scheduled:
    """A scheduler with `count` requests for it, and the one instance that takes its batches."""

    def __init__(self, config: ModelConfig, count: int) -> None:
        self._held = self._busy = False
        self._answered = self._wanted = 0
        self._loop = asyncio.get_running_loop()
        self._enough = self._loop.create_future()
        self._instance = _Instance()
        self._scheduler = scheduler_of(config, self)
        self._keeper = self._scheduler if is_keeper(self._scheduler) else None
        if self._keeper is not None:
            self._keeper.joined(self._instance)
        self._pendings = _pendings(count, sequences=config.sequence_batching is not None)

    async def wave(self, first: int, last: int, *, held: bool) -> None:
        """Let the requests of these numbers come, and wait until they were answered. With `held`
        none runs before all have come."""
        self._held, self._wanted = held, last
        self._enough = self._loop.create_future()
        for pending in self._pendings[first:last]:
            self._scheduler.submit(pending)
        if held:
            self._held = False
            self._scheduler.wake()
        await self._enough

    def idle(self, on: Runner | None = None) -> bool:
        """See `Executor.idle`."""
        return not (self._busy or self._held)

    def execute(self, batch: Sequence[Pending], on: Runner | None = None) -> None:
        """See `Executor.execute`."""
        self._busy = True
        self._loop.call_soon(self._done, batch)

    def reject(self, pending: Pending, error: MicrokernelError, reason: Failure) -> None:
        """See `Executor.reject`; nothing is rejected here."""
        raise error

    def _done(self, batch: Sequence[Pending]) -> None:
        self._busy = False
        for pending in batch:
            self._answered += not pending.null
            if self._keeper is not None:
                self._keeper.advanced(pending, Answer(()))
                self._keeper.released(pending, again=False)
        self._scheduler.wake()
        if self._answered >= self._wanted and not self._enough.done():
            self._enough.set_result(None)


def _pendings(count: int, *, sequences: bool) -> list[Pending]:
    """Requests without inputs. Those of sequences belong to `STREAMS` at a time."""
    loop, now = asyncio.get_running_loop(), time.monotonic_ns()
    made = []
    for number in range(count):
        request = InferRequest("m", (), priority=number % 4)
        if sequences:
            lap, stream = divmod(number, STREAMS)
            turn = lap % LENGTH
            ends = turn == LENGTH - 1 or number >= count - STREAMS
            request.sequence = Seq(1 + lap // LENGTH * STREAMS + stream, turn == 0, ends)
        made.append(Pending(request, 1, (), loop.create_future(), loop.time(), now))
    return made


class _Model:
    """A model that gives its input back, when the gate is open."""

    version = 1

    def __init__(self, gate: asyncio.Event) -> None:
        self._gate = gate

    async def infer(self, request: InferRequest) -> InferResponse:
        """See `Port.infer`."""
        await self._gate.wait()
        x = request.inputs[0]
        outputs = (Tensor("y", x.datatype, x.shape, x.data),)
        return InferResponse("m", 1, request.id, outputs)

    async def stream(self, request: InferRequest) -> ResponseStream:
        """See `Port.stream`; nobody asks."""
        raise Unsupported("the model is not decoupled")

    def release(self) -> None:
        """See `Held.release`."""


class Composed:
    """An ensemble with `count` requests for it; every step runs the same model."""

    def __init__(self, graph: Graph, count: int) -> None:
        self._about = Circumstances(graph, Tracer())
        self._gate = asyncio.Event()
        self._models = tuple(_Model(self._gate) for _ in graph.steps)
        x = Tensor.from_numpy("x", np.zeros(1, np.float32))
        self._requests = [InferRequest("e", (x,)) for _ in range(count)]
        self._inputs: Mapping[str, Value] = {"x": Value(x)}

    async def wave(self, first: int, last: int, *, held: bool) -> None:
        """As `Scheduled.wave`."""
        if held:
            self._gate.clear()
        else:
            self._gate.set()
        runs = [asyncio.ensure_future(self._run(r)) for r in self._requests[first:last]]
        if held:
            await asyncio.sleep(0)
            self._gate.set()
        await asyncio.gather(*runs)

    async def _run(self, request: InferRequest) -> None:
        given: list[Mapping[str, Value]] = []
        run = EnsembleRun(
            self._about, request, self._models, lambda values, _: given.append(values), Spent()
        )
        await run.run(self._inputs)
