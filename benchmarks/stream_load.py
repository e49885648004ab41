"""How fast does a server answer streams, whose requests depend on each other? A load generator over
gRPC, a process of its own, in which each stream has one request on its way."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2

from benchmarks.children import answer_calls
from benchmarks.load import GRACE, INFER, Load, Tally

Send = Callable[[bytes], Awaitable[bytes]]


def step(template: bytes, sequence: int, *, start: bool = False, end: bool = False) -> bytes:
    """The message of a ModelInfer call as one of a sequence."""
    request = service_pb2.ModelInferRequest.FromString(template)
    request.parameters["sequence_id"].int64_param = sequence
    request.parameters["sequence_start"].bool_param = start
    request.parameters["sequence_end"].bool_param = end
    packed: bytes = request.SerializeToString()
    return packed


async def _stream(send: Send, template: bytes, sequence: int, tally: Tally) -> None:
    """One stream from its start to its end. The request that ends it does not count."""
    request = step(template, sequence, start=True)
    following = step(template, sequence)
    going = True
    while going:
        began = time.perf_counter()
        answer = await send(request)
        going = tally.record(began)
        tally.answer_bytes = len(answer)
        request = following
    await send(step(template, sequence, end=True))


async def _measure(
    port: int, template: bytes, streams: int, warm_up: float, seconds: float
) -> Load:
    tally = Tally(warm_up, seconds)
    async with (
        asyncio.timeout(warm_up + seconds + GRACE),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        send: Send = channel.unary_unary(INFER, None, None)
        numbers = range(1, streams + 1)
        await asyncio.gather(*(_stream(send, template, number, tally) for number in numbers))
    return tally.result()


def main() -> None:
    """Answer the runner's calls on one event loop."""
    with asyncio.Runner() as runner:

        def measure(
            protocol: str, port: int, files: Sequence[str], concurrency: int, **pace: Any
        ) -> dict[str, float]:
            assert protocol == "grpc"
            [file] = files
            template = Path(file).read_bytes()
            return asdict(runner.run(_measure(port, template, concurrency, **pace)))

        answer_calls({"measure": measure})


if __name__ == "__main__":
    main()
