"""The server's side of fork servers: one per framework and environment, started when needed."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from microkernel.backend import BackendType
from microkernel.errors import Unavailable
from microkernel.open_files import lower_limit
from microkernel.workers import wire
from microkernel.workers.channel import LoopChannel
from microkernel.workers.limits import NO_LIMITS, Limits, limits_to_json
from microkernel.workers.wire import Kind

log = structlog.get_logger()


@dataclass(slots=True)
class Spawned:
    """A new worker process: its pid, the server's end of its control channel, and its exit code to
    come, negative for a signal."""

    pid: int
    control: socket.socket
    exit: "asyncio.Future[int]"


class _ForkServer:
    """A running fork server. Orders are answered in turn, so a queue of futures suffices."""

    def __init__(self, process: "subprocess.Popen[bytes]", sock: socket.socket) -> None:
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._channel = LoopChannel(sock, self._message, self._closed)
        self._waiting: deque[asyncio.Future[tuple[int, asyncio.Future[int]]]] = deque()
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._ready: asyncio.Future[int] = self._loop.create_future()
        self.alive = True

    async def fork(
        self, control: socket.socket, limits: Limits
    ) -> tuple[int, "asyncio.Future[int]"]:
        """A new worker that talks through `control`: its pid and its exit code to come."""
        await asyncio.shield(self._ready)
        answer: asyncio.Future[tuple[int, asyncio.Future[int]]] = self._loop.create_future()
        self._waiting.append(answer)
        order = wire.control_message(Kind.FORK, limits_to_json(limits))
        self._channel.send(order, [control.fileno()])
        return await answer

    def _message(self, kind: Kind, body: bytes) -> None:
        document: Any = json.loads(body)
        if kind is Kind.DONE:
            self._ready.set_result(document)
        elif kind is Kind.FORK:
            self._exits[document] = exit_code = self._loop.create_future()
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result((document, exit_code))
        else:
            pid, code = document
            self._exits.pop(pid).set_result(code)

    def _closed(self) -> None:
        self.alive = False
        self._process.kill()  # it is of no use any more, and `close` will not have to wait for it
        error = Unavailable("the fork server ended before it could start a worker")
        futures: list[asyncio.Future[Any]] = [self._ready, *self._waiting]
        for future in futures:
            if not future.done():
                future.set_exception(error)
        for exit_code in self._exits.values():
            exit_code.set_result(-signal.SIGKILL)  # its children end with it
        self._exits.clear()

    def hang_up(self) -> None:
        """Tell the fork server to end; its workers have ended."""
        self._channel.close()
        self._ready.cancel()

    def wait(self) -> None:
        """Wait until it has ended; blocks, and needs no loop."""
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class ForkServers:
    """Starts workers; `close` ends what was started. Uses the running loop."""

    def __init__(self) -> None:
        self._servers: dict[tuple[object, ...], _ForkServer] = {}

    async def spawn(self, backend: BackendType, limits: Limits = NO_LIMITS) -> Spawned:
        """A new worker for the backend, which refuses every order where it cannot be limited.
        Raises Unavailable when no process can be started."""
        ours, theirs = socket.socketpair()
        try:
            server = self._server(
                tuple(backend.preload), tuple(sorted(backend.environment.items()))
            )
            pid, exit_code = await server.fork(theirs, limits)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return Spawned(pid, ours, exit_code)

    def _server(
        self, preload: Sequence[str], environment: Sequence[tuple[str, str]]
    ) -> _ForkServer:
        key = (preload, environment)
        server = self._servers.get(key)
        if server is not None and not server.alive:
            server.hang_up()
            server.wait()  # it was killed
            server = None
        if server is None:
            server = self._servers[key] = _start(preload, dict(environment))
        return server

    async def close(self) -> None:
        """End every fork server."""
        servers = list(self._servers.values())
        self._servers.clear()
        for server in servers:
            server.hang_up()
        for server in servers:
            await asyncio.to_thread(server.wait)


def _start(preload: Sequence[str], environment: dict[str, str]) -> _ForkServer:
    ours, theirs = socket.socketpair()
    # -P: a file beside the operator must not shadow a module that a worker imports.
    command = [sys.executable, "-P", "-m", "microkernel.workers.forkserver"]
    with theirs:
        try:
            process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid()), *preload],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**environment, **os.environ},
                start_new_session=True,  # the terminal's Ctrl-C is for the server only
            )
        except OSError as error:
            ours.close()
            raise Unavailable(f"no worker process can be started: {error}") from None
    lower_limit(process.pid)
    log.debug("fork server started", pid=process.pid, preload=list(preload))
    return _ForkServer(process, ours)
