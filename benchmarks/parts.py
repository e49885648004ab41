"""What do the parts of the kernel cost alone, without a protocol? A process of its own that uses
the kernel's classes directly."""

import asyncio
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import answer_calls
from benchmarks.noop import noop, noop_config
from microkernel import log
from microkernel.backend import Placement
from microkernel.log import LogControl
from microkernel.models.catalogue import Catalogue
from microkernel.models.loader import Loader, LoaderSettings, Offer
from microkernel.models.table import ModelTable
from microkernel.models.version import ModelVersion
from microkernel.port import LogSettings
from microkernel.request import InferRequest
from microkernel.server import KernelServer
from microkernel.settings import ServerSettings
from microkernel.tensor import Tensor
from microkernel.workers.contract import Hosted, Result, WorkerInstance
from microkernel.workers.process import ProcessWorker
from microkernel.workers.spawning import ForkServers

CALLERS = 64
SMALL = np.zeros((1, 16), np.float32)
BULK = np.zeros((1, 16 << 20), np.float32)
"""64 MiB."""

PING = bytes(64)
"""About the size of a worker's descriptors."""


def _request(model: str, array: "np.ndarray[Any, np.dtype[np.float32]]") -> InferRequest:
    return InferRequest(model, (Tensor.from_numpy("x", array),))


class Parts:
    """The parts under measurement, each made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: dict[int, KernelServer] = {}
        self._models: list[ModelVersion] = []
        self._worker: ProcessWorker | None = None
        self._instance: WorkerInstance | None = None
        self._forks: ForkServers | None = None
        self._copy = np.zeros_like(BULK)

    async def kernel(self, seconds: float, max_batch_size: int) -> dict[str, float]:
        """Requests per second, and processor seconds per second, from the port to a thread worker
        that does nothing and back, with many callers at once."""
        server = self._servers.get(max_batch_size)
        if server is None:
            server = self._servers[max_batch_size] = await self._server(max_batch_size)
        request, count = _request("noop", SMALL), 0
        start, cpu = time.perf_counter(), time.process_time()
        until = start + seconds

        async def caller() -> None:
            nonlocal count
            while time.perf_counter() < until:
                await server.infer(request)
                count += 1

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        elapsed = time.perf_counter() - start
        return {"rate": count / elapsed, "cores": (time.process_time() - cpu) / elapsed}

    async def _server(self, max_batch_size: int) -> KernelServer:
        directory = self._model(f"batch{max_batch_size}", max_batch_size)
        loader = Loader([Offer(noop("thread"), None)], LoaderSettings())
        config = loader.read(directory)
        model = await loader.load(config, directory, 1)
        self._models.append(model)
        table = ModelTable()
        table.swap(config.name, {1: model})
        catalogue = Catalogue([], loader, table, threads=1)
        return KernelServer(table, catalogue, LogControl(LogSettings()), ServerSettings())

    def _model(self, place: str, max_batch_size: int) -> Path:
        directory = self._folder / place / "noop"
        (directory / "1").mkdir(parents=True)
        (directory / "config.pbtxt").write_text(noop_config(max_batch_size))
        return directory

    async def round_trip(self, count: int) -> float:
        """The median seconds from a descriptor sent to a worker process to its answer."""
        instance = await self._process_instance()
        request = _request("noop", SMALL)
        return await _timed(lambda done: instance.execute([request], [1], lambda _: done()), count)

    async def ping_pong(self, count: int) -> float:
        """The median seconds of a bare trip over a socket pair to a process that sends back."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "benchmarks.yardsticks", "pingpong"]
        process = await asyncio.create_subprocess_exec(
            *command, str(theirs.fileno()), pass_fds=[theirs.fileno()]
        )
        theirs.close()
        ours.setblocking(False)
        loop, waiting = asyncio.get_running_loop(), _Waiting()

        def readable() -> None:
            ours.recv(4096)
            waiting.done()

        def send(done: Callable[[], None]) -> None:
            waiting.done = done
            ours.send(PING)

        loop.add_reader(ours, readable)
        try:
            return await _timed(send, count)
        finally:
            loop.remove_reader(ours)
            ours.close()
            await process.wait()

    async def bulk(self, count: int) -> dict[str, float]:
        """Median seconds for 64 MiB into a worker process, out of it, and for one memcpy."""
        instance = await self._process_instance()
        request, ways, copies = _request("noop", BULK), [], []
        for _ in range(count + 2):
            ways.append(await _bulk_trip(instance, request))
            began = time.perf_counter()
            np.copyto(self._copy, BULK)
            copies.append(time.perf_counter() - began)
        # The first trips make blocks and touch their pages for the first time.
        into, out = zip(*ways[2:], strict=True)
        medians = map(statistics.median, (into, out, copies[2:]))
        return dict(zip(("into", "out", "memcpy"), medians, strict=True))

    async def _process_instance(self) -> WorkerInstance:
        if self._instance is None:
            directory = self._model("process", 0)
            offer = Offer(noop("process"), None)
            config = Loader([offer], LoaderSettings()).read(directory)
            hosted = Hosted(offer.backend, offer.settings, "noop", 1, directory / "1")
            self._forks = ForkServers()
            self._worker = await ProcessWorker.spawn(hosted, self._forks)
            [self._instance] = await self._worker.start(config, [Placement("noop_0", "KIND_CPU")])
        return self._instance

    async def close(self) -> None:
        """Stop what was made."""
        for model in self._models:
            await model.stop()
        if self._worker is not None:
            await self._worker.stop()
        if self._forks is not None:
            await self._forks.close()


class _Waiting:
    """Who is called when an answer comes."""

    def __init__(self) -> None:
        self.done: Callable[[], None] = lambda: None


async def _timed(send: Callable[[Callable[[], None]], object], count: int) -> float:
    """The median seconds from `send(done)` to the call of `done`, one after the other."""
    times: list[float] = []
    finished = asyncio.get_running_loop().create_future()
    began = 0.0

    def go() -> None:
        nonlocal began
        began = time.perf_counter()
        send(done)

    def done() -> None:
        times.append(time.perf_counter() - began)
        if len(times) < count:
            go()
        else:
            finished.set_result(None)

    go()
    await finished
    return statistics.median(times[count // 10 :])


async def _bulk_trip(instance: WorkerInstance, request: InferRequest) -> tuple[float, float]:
    """Seconds on the way in, from the gathering to the worker's hands, and on the way out, from
    those to the answer."""
    answered = asyncio.get_running_loop().create_future()

    def done(result: Result) -> None:
        times = result.times
        into, out = times.input_end - times.start, time.monotonic_ns() - times.output_start
        answered.set_result((into / 1e9, out / 1e9))

    instance.execute([request], [1], done)
    seconds: tuple[float, float] = await answered
    return seconds


def main() -> None:
    """Answer the runner's calls on one event loop."""
    log.configure(ServerSettings(log_info=False))
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        parts = Parts(Path(folder))

        def on_loop(part: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
            return lambda **arguments: runner.run(part(**arguments))

        calls = (parts.kernel, parts.round_trip, parts.ping_pong, parts.bulk)
        try:
            answer_calls({call.__name__: on_loop(call) for call in calls})
        finally:
            runner.run(parts.close())


if __name__ == "__main__":
    main()
