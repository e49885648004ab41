"""What is the least that anybody could do? Bare servers and bare loops to compare with.

Each is a process: `http` and `grpc` answer anything with a body of a given size, `model` calls a
TorchScript file, `pingpong` sends back what a socket brings.
"""

import asyncio
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from benchmarks.cases import LARGE, SMALL, SPEECH, Network
from benchmarks.children import answer_calls

NETWORKS = {network.name: network for network in (*(c.network for c in SMALL), *LARGE, SPEECH)}


@asynccontextmanager
async def _http_echo(size: int) -> AsyncIterator[int]:
    from aiohttp import web

    body = bytes(size)

    async def answer(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(body=body)

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@asynccontextmanager
async def _grpc_echo(size: int) -> AsyncIterator[int]:
    import grpc
    import grpc.aio

    body = bytes(size)

    async def answer(request: bytes, context: Any) -> bytes:
        return body

    server = grpc.aio.server()
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(answer)}
    service = "inference.GRPCInferenceService"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    port: int = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(None)


def _serve_echo(echo: AbstractAsyncContextManager[int]) -> None:
    """Run an echo server; the only call tells its port."""

    async def serve() -> None:
        async with echo as port:
            await asyncio.to_thread(answer_calls, {"port": lambda: port})

    asyncio.run(serve())


class BareModel:
    """A TorchScript module in a plain loop."""

    def __init__(self, network: Network, file: str, threads: int, rows: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._rows = rows
        module = torch.jit.load(file)  # type: ignore[no-untyped-call]  # torch's own
        self._forward = module.eval().forward
        self._inputs = [torch.from_numpy(feed.values(rows)) for feed in network.feeds]

    def run(self, warm_up: float, seconds: float) -> dict[str, float]:
        """Rows per second, and the time of the first call and of the median in seconds."""
        clock, inputs, forward, times = time.perf_counter, self._inputs, self._forward, []
        with self._torch.inference_mode():
            until = clock() + warm_up
            while clock() < until:
                forward(*inputs)
            start = last = clock()
            while last < start + seconds:
                forward(*inputs)
                now = clock()
                times.append(now - last)
                last = now
        rate = self._rows * len(times) / (last - start)
        return {"rate": rate, "first": times[0], "p50": statistics.median(times)}


def _serve_model(name: str, file: str, threads: str) -> None:
    loaded: dict[int, BareModel] = {}

    def run(rows: int, warm_up: float, seconds: float) -> dict[str, float]:
        if rows not in loaded:
            loaded[rows] = BareModel(NETWORKS[name], file, int(threads), rows)
        return loaded[rows].run(warm_up, seconds)

    answer_calls({"run": run})


def _ping_pong(descriptor: int) -> None:
    with socket.socket(fileno=descriptor) as sock:
        while message := sock.recv(4096):
            sock.sendall(message)


def main() -> None:
    """`python -m benchmarks.yardsticks KIND ARGUMENT...`"""
    match sys.argv[1:]:
        case ["http", size]:
            _serve_echo(_http_echo(int(size)))
        case ["grpc", size]:
            _serve_echo(_grpc_echo(int(size)))
        case ["model", name, file, threads]:
            _serve_model(name, file, threads)
        case ["pingpong", descriptor]:
            _ping_pong(int(descriptor))
        case arguments:
            raise SystemExit(f"no such yardstick: {arguments}")


if __name__ == "__main__":
    main()
