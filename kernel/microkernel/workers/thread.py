"""A worker inside the server process: one thread per instance.

For trusted, small models. A batch of one reaches the backend as a view on what the protocol
received; outputs are copied once, so that a backend may use its buffers again.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog

from microkernel.backend import Backend, Instance, Model, Placement
from microkernel.batch import Batch
from microkernel.config.model import ModelConfig
from microkernel.errors import MicrokernelError, Unavailable
from microkernel.request import InferRequest, Outcome
from microkernel.stats import Execution
from microkernel.workers import descriptors
from microkernel.workers.contract import Done, Hosted, Lost, Result
from microkernel.workers.descriptors import Answer, Schema
from microkernel.workers.hosting import make_backend
from microkernel.workers.runner import as_error, run, unload

log = structlog.get_logger()

T = TypeVar("T")


class _Homecoming:
    """Brings results from instance threads to the loop, waking it once for all that are there."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._results: deque[tuple[Done, Result]] = deque()
        self._woken = False

    def bring(self, done: Done, result: Result) -> None:
        """Have `done(result)` called on the loop."""
        self._results.append((done, result))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first: what is brought from now on wakes the loop again
        while self._results:
            done, result = self._results.popleft()
            self._loop.call_soon(done, result)


@dataclass(slots=True, eq=False)
class _Order:
    """A batch on its way through an instance."""

    requests: Sequence[InferRequest]
    sizes: Sequence[int]
    done: Done
    start: int


class ThreadInstance:
    """One instance on a thread of the server process."""

    def __init__(self, placement: Placement, schema: Schema, home: _Homecoming) -> None:
        self.name = placement.name
        self._placement = placement
        self._schema = schema
        self._home = home
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._running: _Order | None = None
        self._left_behind = False
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None

    async def start(self, model: Model) -> None:
        """Make the instance on its thread. Raises what the backend raised."""
        made: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._serve, args=(model, made), name=self.name, daemon=True
        )
        self._thread.start()
        await made

    def execute(self, requests: Sequence[InferRequest], sizes: Sequence[int], done: Done) -> None:
        """See `WorkerInstance.execute`."""
        self._running = _Order(requests, sizes, done, time.monotonic_ns())
        self._orders.put(self._running)

    def fail(self, error: MicrokernelError) -> None:
        """Answer the running batch, if there is one, with an error, and leave its thread behind:
        what it brings later is dropped."""
        if self._running is not None:
            order, self._running, self._left_behind = self._running, None, True
            order.done(_failed(order, error))

    def stop(self) -> None:
        """Close the instance and end the thread; blocks until it has, unless it was left behind."""
        self._orders.put(None)
        if self._thread is not None and not self._left_behind:
            self._thread.join()

    def _serve(self, model: Model, made: "asyncio.Future[None]") -> None:
        try:
            instance = model.instance(self._placement)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - goes to who starts the model
            self._loop.call_soon_threadsafe(_settle, made, as_error(error))
            return
        self._loop.call_soon_threadsafe(_settle, made, None)
        while (order := self._orders.get()) is not None:
            self._home.bring(partial(self._finished, order), self._execute(instance, order))
        try:
            instance.close()
        except Exception:
            log.exception("closing an instance failed", instance=self.name)

    def _finished(self, order: _Order, result: Result) -> None:
        if self._running is order:
            self._running = None
            order.done(result)

    def _execute(self, instance: Instance, order: _Order) -> Result:
        times = Execution(order.start, 0, 0, 0)
        try:
            batch = _batch(order.requests, order.sizes, self._schema)
            times.input_end = time.monotonic_ns()
            outcomes = run(instance, batch, self._schema)
            times.output_start = time.monotonic_ns()
            answers = [_kept(outcome) for outcome in outcomes]
        except MemoryError as error:
            return _failed(order, Unavailable(f"no memory for a batch of '{self.name}': {error}"))
        times.end = time.monotonic_ns()
        return Result(times, answers)


def _settle(made: "asyncio.Future[None]", error: MicrokernelError | None) -> None:
    if made.done():
        return  # nobody waits any more
    if error is None:
        made.set_result(None)
    else:
        made.set_exception(error)


def _failed(order: _Order, error: MicrokernelError) -> Result:
    now = time.monotonic_ns()
    return Result(Execution(order.start, now, now, now), [error] * len(order.requests))


def _batch(requests: Sequence[InferRequest], sizes: Sequence[int], schema: Schema) -> Batch:
    if len(requests) == 1:
        return Batch(requests, {t.name: t for t in requests[0].inputs}, sizes)
    plan = descriptors.plan(requests, schema)
    block = memoryview(bytearray(plan.total))
    descriptors.gather(plan, block)
    return descriptors.lay_out(plan, sizes, schema, block)


def _kept(outcome: Outcome) -> Answer | MicrokernelError:
    if isinstance(outcome, MicrokernelError):
        return outcome
    for tensor in outcome.outputs:
        tensor.data = bytes(tensor.data)
    return Answer(outcome.outputs, outcome.parameters)


class ThreadWorker:
    """Hosts one model version on threads of the server process."""

    def __init__(self, hosted: Hosted) -> None:
        self._hosted = hosted
        self._backend: Backend | None = None
        self._model: Model | None = None
        self._instances: list[ThreadInstance] = []
        self._lost: Lost = lambda _: None

    async def complete(self, config: ModelConfig) -> ModelConfig:
        """See `Worker.complete`."""
        return await asyncio.to_thread(_ours, self._complete, config)

    def _complete(self, config: ModelConfig) -> ModelConfig:
        return self._made().complete(config, self._hosted.files)

    async def start(
        self, config: ModelConfig, placements: Sequence[Placement]
    ) -> Sequence[ThreadInstance]:
        """See `Worker.start`."""
        self._model = model = await asyncio.to_thread(_ours, self._load, config)
        schema, home = Schema.of(config), _Homecoming()
        self._instances = [ThreadInstance(p, schema, home) for p in placements]
        for instance in self._instances:
            await instance.start(model)
        return self._instances

    def _load(self, config: ModelConfig) -> Model:
        return self._made().load(config, self._hosted.files)

    def _made(self) -> Backend:
        if self._backend is None:
            self._backend = make_backend(self._hosted.backend.factory, self._hosted.settings)
        return self._backend

    def watch(self, lost: Lost) -> None:
        """See `Worker.watch`; a thread is lost only when it is given up."""
        self._lost = lost

    def kill(self, reason: str) -> None:
        """A thread cannot be ended: its batch is answered, and it is left behind."""
        error = Unavailable(f"the threads of model '{self._hosted.model}' were given up: {reason}")
        self._lost(error)  # first, so that no further batch comes here
        for instance in self._instances:
            instance.fail(error)

    async def stop(self) -> None:
        """See `Worker.stop`."""
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        for instance in self._instances:
            instance.stop()
        self._instances = []
        if self._model is not None:
            unload(self._model)
            self._model = None


def _ours(call: Callable[[ModelConfig], T], config: ModelConfig) -> T:
    """Call a stranger's code; whatever it raises becomes one of our errors."""
    try:
        return call(config)
    except (Exception, SystemExit) as error:
        raise as_error(error) from error
