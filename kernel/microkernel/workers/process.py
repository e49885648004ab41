"""A worker process as the server sees it: a control channel, a socket per instance, a pid."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import structlog

from microkernel.backend import Placement
from microkernel.config.codec import config_from_json, config_to_json
from microkernel.config.model import ModelConfig
from microkernel.errors import MicrokernelError, Unavailable, error_from
from microkernel.request import InferRequest
from microkernel.stats import Execution
from microkernel.workers import descriptors, wire
from microkernel.workers.arena import Block, BlockPool, block_size
from microkernel.workers.channel import LoopChannel
from microkernel.workers.contract import Done, Hosted, Lost, Result
from microkernel.workers.descriptors import Plan, Schema
from microkernel.workers.hosting import settings_to_json
from microkernel.workers.spawning import ForkServers, Spawned
from microkernel.workers.wire import NEED, Kind

log = structlog.get_logger()

EXIT_GRACE = 2.0
"""Seconds between the end of a worker's sockets and the news of its exit."""

STOP_LIMIT = 30.0
"""Seconds a worker may take to close its instances."""


class ProcessInstance:
    """One instance in a child process: gathers batches into its input block, and reads outcomes
    from the output block it lent."""

    def __init__(
        self,
        name: str,
        sock: socket.socket,
        schema: Schema,
        on_closed: Callable[[], None],
        kill: Callable[[str], None],
    ) -> None:
        """`on_closed` is called when the socket ends, `kill` to end a worker gone wrong."""
        self.name = name
        self._schema = schema
        self._channel = LoopChannel(sock, self._message, on_closed)
        self._kill = kill
        self._blocks = 0
        self._input: Block | None = None
        self._output: Block | None = None
        self._pool = BlockPool(self._create, self._retire)
        self._done: Done | None = None
        self._count = 0
        self._start = 0

    def execute(self, requests: Sequence[InferRequest], sizes: Sequence[int], done: Done) -> None:
        """Gather the batch into shared memory and send its descriptor."""
        self._done, self._count = done, len(requests)
        self._start = time.monotonic_ns()
        plan = descriptors.plan(requests, self._schema)
        try:
            block = self._input_block(plan)
            self._output = self._pool.take()
        except OSError as error:
            text = f"no memory for {plan.total} bytes of input for '{self.name}': {error}"
            self.fail(Unavailable(text))
            return
        descriptors.gather(plan, block.view)
        numbers = (block.number, self._output.number if self._output else 0)
        self._channel.send(descriptors.execute_message(plan, sizes, self._schema, numbers))

    def _input_block(self, plan: Plan) -> Block:
        if self._input is None or self._input.size < plan.total:
            if self._input is not None:
                self._retire(self._input)
                self._input = None
            self._input = self._create(block_size(max(plan.total, 1)))
        return self._input

    def _create(self, size: int) -> Block:
        self._blocks += 1
        block = Block.create(self._blocks, size)
        self._channel.send(wire.map_message(block.number, size), [block.descriptor])
        return block

    def _retire(self, block: Block) -> None:
        self._channel.send(wire.unmap_message(block.number))
        block.close()

    def _message(self, kind: Kind, body: bytes) -> None:
        try:
            if kind is NEED:
                self._lend(wire.read_need(body))
                return
            result = self._result(body)
        except (struct.error, ValueError, LookupError) as error:
            self._kill(f"it sent a message that cannot be read: {error!r}")
            return
        self._finish(result)

    def _lend(self, needed: int) -> None:
        small, self._output = self._output, None
        try:
            self._output = self._pool.grow(needed, small)
        except OSError as error:
            self._kill(f"there is no memory for {needed} bytes of its output: {error}")
            return
        self._channel.send(wire.need_message(self._output.number))

    def _result(self, body: bytes) -> Result:
        block, self._output = self._output, None
        view = memoryview(b"") if block is None else self._pool.lease(block)
        return Result(*descriptors.read_result(body, self._schema, view, self._start))

    def fail(self, error: MicrokernelError) -> None:
        """Answer the running batch, if there is one, with an error."""
        now = time.monotonic_ns()
        if self._done is not None:
            times = Execution(self._start, now, now, now)
            self._finish(Result(times, [error] * self._count))

    def _finish(self, result: Result) -> None:
        done, self._done = self._done, None
        assert done is not None
        done(result)

    def close(self) -> None:
        """Close the socket, which lets the instance end, and give the memory back."""
        self._channel.close()
        self._pool.close()
        for block in (self._input, self._output):
            if block is not None:
                block.close()
        self._input = self._output = None


class ProcessWorker:
    """A child process that hosts one model version. Made by `ProcessWorker.spawn`."""

    def __init__(self, hosted: Hosted, spawned: Spawned, *, verbose: bool) -> None:
        self._hosted = hosted
        self._pid = spawned.pid
        self._exit = spawned.exit
        self._lost: Lost = lambda _: None
        self._verbose = verbose
        self._loop = asyncio.get_running_loop()
        self._control = LoopChannel(spawned.control, self._message, self._socket_closed)
        self._instances: list[ProcessInstance] = []
        self._answer: asyncio.Future[Any] | None = None
        self._reason = ""
        self._ended = False
        self._log = log.bind(model=hosted.model, version=hosted.version, worker=spawned.pid)
        self._exit.add_done_callback(self._exited)

    @classmethod
    async def spawn(
        cls, hosted: Hosted, forks: ForkServers, *, verbose: bool = False
    ) -> "ProcessWorker":
        """Start the process. Raises Unavailable where none can be started."""
        return cls(hosted, await forks.spawn(hosted.backend), verbose=verbose)

    async def complete(self, config: ModelConfig) -> ModelConfig:
        """See `Worker.complete`."""
        return config_from_json(await self._call(Kind.COMPLETE, self._order(config)))

    async def start(
        self, config: ModelConfig, placements: Sequence[Placement]
    ) -> Sequence[ProcessInstance]:
        """See `Worker.start`."""
        schema, theirs = Schema.of(config), []
        for placement in placements:
            ours, other = socket.socketpair()
            theirs.append(other)
            self._instances.append(
                ProcessInstance(placement.name, ours, schema, self._socket_closed, self.kill)
            )
        order = self._order(config) | {"placements": [asdict(p) for p in placements]}
        try:
            await self._call(Kind.START, order, [s.fileno() for s in theirs])
        finally:
            for sock in theirs:
                sock.close()
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
            "verbose": self._verbose,
        }

    async def _call(self, kind: Kind, order: object, descriptors: Sequence[int] = ()) -> Any:
        if self._exit.done():
            raise self._death(self._exit.result())
        self._answer = self._loop.create_future()
        self._control.send(wire.control_message(kind, order), descriptors)
        answer = await self._answer
        if self._exit.done():  # it answered and died before anybody could look
            raise self._death(self._exit.result())
        return answer

    def _message(self, kind: Kind, body: bytes) -> None:
        document = json.loads(body)
        if kind is Kind.LOG:
            self._log_line(document)
        elif kind is Kind.FAILED:
            self._settle(error_from(*document))
        else:
            self._settle(document)

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
            self._reason = reason
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if not self._exit.done():  # else the pid may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def _socket_closed(self) -> None:
        """A socket ended by itself: the exit code follows, or the process is ended."""
        if not self._ended:
            self._loop.call_later(EXIT_GRACE, self._signal, signal.SIGKILL)

    def _exited(self, exit_code: "asyncio.Future[int]") -> None:
        if self._ended or exit_code.cancelled():
            return
        error = self._death(exit_code.result())
        self._end()
        self._lost(error)  # first, so that no further batch comes here
        for instance in self._instances:
            instance.fail(error)
        self._settle(error)

    def _death(self, code: int) -> MicrokernelError:
        names = ", ".join(f"'{i.name}'" for i in self._instances) or "none yet"
        return Unavailable(
            f"the worker process of model '{self._hosted.model}' (instances: {names}) ended: "
            f"{self._reason or _cause(code)}"
        )

    def _end(self) -> None:
        self._ended = True
        self._control.close()
        for instance in self._instances:
            instance.close()

    async def stop(self) -> None:
        """Close the instances' sockets, which lets the process finish; end it after a while."""
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
