"""A worker process as the server sees it: a control channel, its instances, a pid."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any

import structlog

from microkernel.backend import Placement
from microkernel.config.codec import config_from_json, config_to_json
from microkernel.config.model import ModelConfig
from microkernel.errors import MicrokernelError, Unavailable, error_from
from microkernel.log import LogControl
from microkernel.metrics.custom import CustomMetrics
from microkernel.port import LogSettings
from microkernel.workers import wire
from microkernel.workers.channel import LoopChannel
from microkernel.workers.contract import Hosted, Lost
from microkernel.workers.descriptors import Schema
from microkernel.workers.hosting import placement_to_json, settings_to_json
from microkernel.workers.instance import Link, ProcessInstance
from microkernel.workers.limits import MEMORY
from microkernel.workers.spawning import ForkServers, Spawned
from microkernel.workers.wire import Kind

log = structlog.get_logger()

EXIT_GRACE = 2.0
"""Seconds between the end of a worker's sockets and the news of its exit."""

STOP_LIMIT = 30.0
"""Seconds a worker may take to close its instances."""


class ProcessWorker:
    """A child process that hosts one model version. Made by `ProcessWorker.spawn`."""

    def __init__(
        self,
        hosted: Hosted,
        spawned: Spawned,
        *,
        log_control: LogControl | None = None,
        metrics: CustomMetrics | None = None,
    ) -> None:
        self._hosted = hosted
        self._metrics = CustomMetrics(()) if metrics is None else metrics
        self._pid = spawned.pid
        self._exit = spawned.exit
        self._lost: Lost = lambda _: None
        self._loop = asyncio.get_running_loop()
        self._control = LoopChannel(spawned.control, self._message, self._socket_closed)
        self._instances: list[ProcessInstance] = []
        self._answer: asyncio.Future[Any] | None = None
        self._error: MicrokernelError | None = None
        self._ended = False
        self._log = log.bind(model=hosted.model, version=hosted.version, worker=spawned.pid)
        self._log_control = LogControl(LogSettings()) if log_control is None else log_control
        self._log_control.follow(self._say_more)
        self._exit.add_done_callback(self._exited)

    @classmethod
    async def spawn(
        cls,
        hosted: Hosted,
        forks: ForkServers,
        *,
        log_control: LogControl | None = None,
        metrics: CustomMetrics | None = None,
    ) -> "ProcessWorker":
        """Start the process, which logs as verbosely as `log_control` says at the time; without,
        not verbosely. `metrics` takes the families that its models declare; without, they are on no
        page. Raises Unavailable where none can be started."""
        spawned = await forks.spawn(hosted.backend, hosted.limits)
        return cls(hosted, spawned, log_control=log_control, metrics=metrics)

    async def complete(self, config: ModelConfig) -> ModelConfig:
        """See `Worker.complete`."""
        return config_from_json(await self._call(Kind.COMPLETE, self._order(config)))

    async def start(
        self, config: ModelConfig, placements: Sequence[Placement]
    ) -> Sequence[ProcessInstance]:
        """See `Worker.start`."""
        schema, theirs = Schema.of(config), []
        for place, placement in enumerate(placements):
            ours, other = socket.socketpair()
            theirs.append(other)
            link = Link(ours, self._socket_closed, self.kill, partial(self._signal_for, place))
            self._instances.append(ProcessInstance(placement.name, schema, link))
        order = self._order(config) | {"placements": [placement_to_json(p) for p in placements]}
        try:
            asked = await self._call(Kind.START, order, [s.fileno() for s in theirs])
        finally:
            for sock in theirs:
                sock.close()
        for place in asked:
            self._instances[place].can_say()
        return self._instances

    def _order(self, config: ModelConfig) -> dict[str, Any]:
        hosted = self._hosted
        return {
            "factory": hosted.backend.factory,
            "settings": settings_to_json(hosted.settings),
            "config": config_to_json(config),
            "model": hosted.model,
            "version": hosted.version,
            "files": str(hosted.files),
        }

    async def _call(self, kind: Kind, order: object, descriptors: Sequence[int] = ()) -> Any:
        if self._error is not None:
            raise self._error
        if self._exit.done():
            raise self._death(_cause(self._exit.result()))
        self._answer = self._loop.create_future()
        self._control.send(wire.control_message(kind, order), descriptors)
        answer = await self._answer
        if self._error is not None:  # it answered and was killed before anybody could look
            raise self._error
        if self._exit.done():  # it answered and died before anybody could look
            raise self._death(_cause(self._exit.result()))
        return answer

    def _signal_for(self, instance: int, kind: Kind, number: int) -> None:
        self._control.send(wire.signal_message(kind, instance, number))

    def _say_more(self, verbose: bool) -> None:
        self._control.send(wire.control_message(Kind.VERBOSE, verbose))

    def _message(self, kind: Kind, body: bytes) -> None:
        document = json.loads(body)
        if kind is Kind.LOG:
            self._log_line(document)
        elif kind is Kind.METRIC:
            self._attend(document)
        elif kind is Kind.READY:
            self._said(*document)
        elif kind is Kind.FAILED:
            self._settle(error_from(*document))
        else:
            self._settle(document)

    def _said(self, place: int, ready: bool) -> None:
        if (readiness := self._instances[place].readiness) is not None:
            readiness.said(ready)

    def _attend(self, document: object) -> None:
        if self._exit.done():  # what it held has been forgotten
            return
        if (answer := self._metrics.attend(self, document)) is not None:
            self._control.send(wire.control_message(Kind.METRIC, answer))

    def _settle(self, answer: object) -> None:
        future, self._answer = self._answer, None
        if future is None or future.done():
            return
        if isinstance(answer, MicrokernelError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _log_line(self, record: dict[str, Any]) -> None:
        level, event = record.pop("level"), record.pop("event")
        getattr(self._log, level if level != "critical" else "error")(event, **record)

    def watch(self, lost: Lost) -> None:
        """See `Worker.watch`."""
        self._lost = lost

    def kill(self, reason: str) -> None:
        """See `Worker.kill`."""
        if not self._ended:
            self._signal(signal.SIGKILL)
            self._die(self._death(reason))

    def _signal(self, number: int) -> None:
        if not self._exit.done():  # else the pid may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def _socket_closed(self) -> None:
        """A socket ended by itself: the exit code follows, or the process is ended."""
        if not self._ended:
            self._loop.call_later(EXIT_GRACE, self._signal, signal.SIGKILL)

    def _exited(self, exit_code: "asyncio.Future[int]") -> None:
        self._metrics.forget(self)
        self._log_control.leave(self._say_more)
        if not self._ended and not exit_code.cancelled():
            self._die(self._death(_cause(exit_code.result()) + self._hint()))
        self._control.close()  # not before: its last lines for the log came this way

    def _death(self, cause: str) -> MicrokernelError:
        names = ", ".join(f"'{i.name}'" for i in self._instances) or "none yet"
        return Unavailable(
            f"the worker process of model '{self._hosted.model}' (instances: {names}) ended: "
            f"{cause}"
        )

    def _hint(self) -> str:
        """What may have been behind a death; few libraries can tell when they get no memory."""
        most = self._hosted.limits.memory
        return f" (its memory is limited to {most} bytes by '{MEMORY}')" if most else ""

    def _die(self, error: MicrokernelError) -> None:
        """Answer everything; what the process held is given back when it has ended."""
        self._ended, self._error = True, error
        for instance in self._instances:
            instance.close()
        self._lost(error)  # first, so that no further batch comes here
        for instance in self._instances:
            instance.fail(error)
        self._settle(error)

    async def released(self) -> None:
        """See `Worker.released`."""
        try:
            await asyncio.wait_for(asyncio.shield(self._exit), STOP_LIMIT)
        except TimeoutError:
            self._log.error("worker was killed and does not end", seconds=STOP_LIMIT)

    async def stop(self) -> None:
        """Close the instances' sockets, which lets the process finish; end it after a while."""
        if self._error is not None:
            await self.released()
        if self._ended:
            return
        self._ended = True
        for instance in self._instances:
            instance.close()
        if not self._instances:
            self._control.close()
        if self._answer is not None:
            self._signal(signal.SIGKILL)  # busy with an order, for which nobody waits any more
        try:
            await asyncio.wait_for(asyncio.shield(self._exit), STOP_LIMIT)
        except TimeoutError:
            self._log.warning("worker did not end in time and is killed", seconds=STOP_LIMIT)
            self._signal(signal.SIGKILL)
            await self._exit
        self._control.close()


def _cause(code: int) -> str:
    if code < 0:
        return f"killed by signal {signal.Signals(-code).name}"
    return f"exit code {code}"
