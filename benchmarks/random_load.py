"""How soon does a server answer requests that come at random? A load generator over HTTP, a process
of its own, which does not wait for answers before it sends more."""

import asyncio
import random
import selectors
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.children import answer_calls
from benchmarks.load import GRACE, HttpConnection, Load, Tally

SEED = 7
FIRST = 16
"""How many connections there are before the first request comes."""

MOST = 500
"""Connections, beyond which the server does not keep up and requests wait to be sent."""


class Connection(HttpConnection):
    """A connection that sends when it is told to, and says when it may be told again."""

    def __init__(self, request: bytes, tally: Tally, free: Callable[["Connection"], None]) -> None:
        super().__init__(request, tally)
        self._free = free

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """May send."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._free(self)

    def _answered(self) -> None:
        self._tally.record(self._began)
        self._free(self)

    def close(self) -> None:
        """End it."""
        assert self._transport is not None
        self.done.cancel()
        self._transport.close()


class Crowd:
    """Clients that ask once each, at random.

    Latency counts from the time at which a request should have been sent, so that a generator which
    is late does not flatter the server.
    """

    def __init__(self, port: int, request: bytes, tally: Tally) -> None:
        self._port = port
        self._request = request
        self._tally = tally
        self._free: list[Connection] = []
        self._all: list[Connection] = []
        self._moved = asyncio.Event()
        self._error: BaseException | None = None

    async def ask(self, rate: float, seconds: float) -> None:
        """Ask for so long and wait until all were answered. Raises ConnectionError and ValueError
        where a connection does not do what it should."""
        for _ in range(FIRST):
            await self._connect()
        began = time.perf_counter()
        for at in arrivals(rate, seconds):
            if (early := began + at - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            if not self._free and len(self._all) < MOST:
                await self._connect()
            await self._until(1)
            self._free.pop().send(began + at)
        await self._until(len(self._all))
        for connection in self._all:
            connection.close()

    async def _connect(self) -> None:
        made = partial(Connection, self._request, self._tally, self._freed)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(made, "127.0.0.1", self._port)
        connection.done.add_done_callback(self._failed)
        self._all.append(connection)

    async def _until(self, free: int) -> None:
        """Wait until so many connections may send. Raises what is wrong with one."""
        while self._error is None and len(self._free) < free:
            self._moved.clear()
            await self._moved.wait()
        if self._error is not None:
            raise self._error

    def _freed(self, connection: Connection) -> None:
        self._free.append(connection)
        self._moved.set()

    def _failed(self, done: "asyncio.Future[None]") -> None:
        if not done.cancelled():
            self._error = done.exception()
            self._moved.set()


def arrivals(rate: float, seconds: float) -> Iterator[float]:
    """Times from 0 up to `seconds`, at random, `rate` per second on average; the same on every
    call."""
    chance = random.Random(SEED)
    at = chance.expovariate(rate)
    while at < seconds:
        yield at
        at += chance.expovariate(rate)


async def _measure(port: int, request: bytes, rate: float, warm_up: float, seconds: float) -> Load:
    tally = Tally(warm_up, seconds)
    async with asyncio.timeout(warm_up + seconds + GRACE):
        await Crowd(port, request, tally).ask(rate, warm_up + seconds)
    return tally.result()


def _precise_loop() -> asyncio.AbstractEventLoop:
    """One whose timers are not rounded up to milliseconds, as those of epoll are."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def main() -> None:
    """Answer the runner's calls on one event loop."""
    with asyncio.Runner(loop_factory=_precise_loop) as runner:

        def measure(file: str, **arguments: Any) -> dict[str, float]:
            return asdict(runner.run(_measure(request=Path(file).read_bytes(), **arguments)))

        answer_calls({"measure": measure})


if __name__ == "__main__":
    main()
