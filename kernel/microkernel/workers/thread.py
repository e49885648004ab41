"""A worker inside the server process: one thread per instance, for trusted, small models."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import structlog

from microkernel.backend import Backend, Model, Placement
from microkernel.config.model import ModelConfig
from microkernel.errors import Unavailable, WorkerFailed
from microkernel.factories import package_of
from microkernel.families import route_metrics
from microkernel.metrics.custom import CustomMetrics
from microkernel.origin import works_for_model
from microkernel.workers.contract import Hosted, Lost
from microkernel.workers.descriptors import Schema
from microkernel.workers.desk import MetricDesk
from microkernel.workers.hosting import make_backend
from microkernel.workers.runner import as_error, unload
from microkernel.workers.thread_instance import Homecoming, ThreadInstance

log = structlog.get_logger()

T = TypeVar("T")


class ThreadWorker:
    """Hosts one model version on threads of the server process."""

    def __init__(self, hosted: Hosted, metrics: CustomMetrics | None = None) -> None:
        """To be made on a running loop. `metrics` takes the families that the model declares;
        without, they are on no page."""
        self._hosted = hosted
        self._metrics = CustomMetrics(()) if metrics is None else metrics
        self._loop = asyncio.get_running_loop()
        self._desk = MetricDesk(self._send)
        self._ended = False
        self._backend: Backend | None = None
        self._model: Model | None = None
        self._instances: list[ThreadInstance] = []
        self._lost: Lost = lambda _: None

    async def complete(self, config: ModelConfig) -> ModelConfig:
        """See `Worker.complete`."""
        return await asyncio.to_thread(_ours, self._complete, config)

    def _complete(self, config: ModelConfig) -> ModelConfig:
        self._enter()
        return self._made().complete(config, self._hosted.files)

    async def start(
        self, config: ModelConfig, placements: Sequence[Placement]
    ) -> Sequence[ThreadInstance]:
        """See `Worker.start`."""
        self._model = model = await asyncio.to_thread(_ours, self._load, config)
        schema, home = Schema.of(config), Homecoming()
        self._instances = [
            ThreadInstance(p, schema, home, self._enter, self._failed) for p in placements
        ]
        for instance in self._instances:
            await instance.start(model)
        return self._instances

    def _load(self, config: ModelConfig) -> Model:
        self._enter()
        return self._made().load(config, self._hosted.files)

    def _enter(self) -> None:
        """The calling thread works for the model from now on."""
        works_for_model(self._hosted.model, self._hosted.version)
        route_metrics(self._desk)

    def _send(self, document: Mapping[str, Any]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._attend, document)
        except RuntimeError:  # a thread left behind may outlive the loop
            raise Unavailable("the server has stopped, and its metrics with it") from None

    def _attend(self, document: Mapping[str, Any]) -> None:
        if not self._ended and (answer := self._metrics.attend(self, document)) is not None:
            self._desk.answer(answer)

    def _end(self) -> None:
        self._ended = True
        self._desk.close()
        self._metrics.forget(self)

    def _made(self) -> Backend:
        if self._backend is None:
            factory = self._hosted.backend.factory
            # The log hears of the backend what it hears of the kernel, as of one in a process.
            heard = logging.getLogger("microkernel").level
            logging.getLogger(package_of(factory)).setLevel(heard)
            self._backend = make_backend(factory, self._hosted.settings)
        return self._backend

    def watch(self, lost: Lost) -> None:
        """See `Worker.watch`; a thread is lost only when it is given up."""
        self._lost = lost

    def kill(self, reason: str) -> None:
        """A thread cannot be ended: its batch is answered, and it is left behind."""
        self._give_up(reason, {})

    def _failed(self, instance: ThreadInstance, error: WorkerFailed) -> None:
        if self._ended:
            return
        log.warning(
            "what the threads of a model hold is left behind",
            model=self._hosted.model,
            version=self._hosted.version,
            reason="they are part of the server; only a worker process gives everything back",
        )
        self._give_up(str(error), {instance: error})

    def _give_up(self, reason: str, own: Mapping[ThreadInstance, WorkerFailed]) -> None:
        """Answer what runs, an instance with an error of its own with that."""
        error = Unavailable(f"the threads of model '{self._hosted.model}' were given up: {reason}")
        self._lost(error)  # first, so that no further batch comes here
        for instance in self._instances:
            instance.fail(own.get(instance, error))
        self._end()

    async def released(self) -> None:
        """See `Worker.released`; a thread is left behind."""

    async def stop(self) -> None:
        """See `Worker.stop`."""
        try:
            await asyncio.to_thread(self._stop)
        finally:
            self._end()

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
    except BaseException as error:
        raise as_error(error) from error
