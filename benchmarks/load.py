"""How fast does a server answer, and how soon? The load generator: a process of its own, which
keeps a number of requests in flight and never reuses an answer."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks.children import answer_calls

GRACE = 30.0
"""Seconds that answers may take beyond the time of the measurement."""

MOST_REQUESTS = 500_000
INFER = "/inference.GRPCInferenceService/ModelInfer"
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(frozen=True, slots=True)
class Load:
    """What was seen: requests per second, the median and the 99th percentile of the latency in
    seconds, how many requests were answered in all, the size of an answer's body, and the
    processor time of the load generator itself."""

    rate: float
    p50: float
    p99: float
    total: int
    answer_bytes: int
    cpu: float


class Tally:
    """Counts answers. The first `warm_up` seconds are served, but do not count: answers of the
    `seconds` after that make the rate, requests sent from then on the latency."""

    def __init__(self, warm_up: float, seconds: float) -> None:
        self._since = time.perf_counter() + warm_up
        self._until = self._since + seconds
        self._ended: list[float] = []
        self._latencies: list[float] = []
        self._cpu = time.process_time()
        self.total = 0
        self.answer_bytes = 0

    def record(self, began: float) -> bool:
        """Count a request that began then and was answered now; whether to send another."""
        now = time.perf_counter()
        self.total += 1
        if self._since <= now <= self._until:
            self._ended.append(now)
        if began >= self._since:
            self._latencies.append(now - began)
        return now < self._until and self.total < MOST_REQUESTS

    def result(self) -> Load:
        """The figures. Raises ValueError where too few requests were answered to tell."""
        ordered = sorted(self._latencies)
        if not ordered or len(self._ended) < 2:
            raise ValueError(f"only {len(self._ended)} answers came in time")
        return Load(
            rate=_slope(self._ended),
            p50=statistics.median(ordered),
            p99=ordered[int(len(ordered) * 0.99)],
            total=self.total,
            answer_bytes=self.answer_bytes,
            cpu=time.process_time() - self._cpu,
        )


def _slope(ended: list[float]) -> float:
    """Answers per second. A batch's answers come together, so where counting starts and stops would
    decide about several per cent; the slope of the count over time does not care."""
    origin = ended[0]
    times = [t - origin for t in ended]
    return statistics.linear_regression(times, range(len(times))).slope


class HttpConnection(asyncio.Protocol):
    """One keep-alive connection that sends the next request as soon as the last is answered."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        self._request = request
        self._tally = tally
        self._head = b""
        self._missing = -1
        self._began = 0.0
        self._transport: asyncio.Transport | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.send(time.perf_counter())

    def send(self, began: float) -> None:
        """Send the next request, whose latency counts from then on."""
        assert self._transport is not None
        self._head, self._missing = b"", -1
        self._began = began
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of the answer."""
        if self._missing >= 0:
            self._missing -= len(data)
        else:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            try:
                size = body_size(self._head[:end])
            except ValueError as error:
                self._fail(ValueError(f"{error}: {self._head!r}"))
                return
            self._tally.answer_bytes = size
            self._missing = size - (len(self._head) - end - 4)
        if self._missing == 0:
            self._answered()

    def _answered(self) -> None:
        assert self._transport is not None
        if self._tally.record(self._began):
            self.send(time.perf_counter())
        elif not self.done.done():
            self.done.set_result(None)
            self._transport.close()

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """A connection that ends before its time fails the measurement."""
        self._fail(exc or ConnectionError("the server closed the connection"))


def body_size(head: bytes) -> int:
    """The size that the head of an answer announces. Raises ValueError for anything but a 200 with
    a length."""
    status, *lines = head.split(b"\r\n")
    if b" 200 " not in status:
        raise ValueError("the answer is no 200")
    for line in lines:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError("the answer has no Content-Length")


async def _http(port: int, requests: Sequence[bytes], concurrency: int, tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    pairs = [
        await loop.create_connection(partial(HttpConnection, request, tally), "127.0.0.1", port)
        for request in itertools.islice(itertools.cycle(requests), concurrency)
    ]
    await asyncio.gather(*(connection.done for _, connection in pairs))


async def _grpc(port: int, requests: Sequence[bytes], concurrency: int, tally: Tally) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_UNLIMITED) as channel:
        call: Callable[[bytes], Awaitable[bytes]] = channel.unary_unary(INFER, None, None)

        async def caller(request: bytes) -> None:
            going = True
            while going:
                began = time.perf_counter()
                answer = await call(request)
                going = tally.record(began)
                tally.answer_bytes = len(answer)

        callers = itertools.islice(map(caller, itertools.cycle(requests)), concurrency)
        await asyncio.gather(*callers)


async def _measure(
    protocol: str,
    port: int,
    requests: Sequence[bytes],
    concurrency: int,
    warm_up: float,
    seconds: float,
) -> Load:
    """Connections share the requests out among them; each sends its own again and again."""
    tally = Tally(warm_up, seconds)
    drive = _http if protocol == "http" else _grpc
    async with asyncio.timeout(warm_up + seconds + GRACE):
        await drive(port, requests, concurrency, tally)
    return tally.result()


def main() -> None:
    """Answer the runner's calls on one event loop."""
    with asyncio.Runner() as runner:

        def measure(files: Sequence[str], **arguments: Any) -> dict[str, float]:
            requests = [Path(file).read_bytes() for file in files]
            return asdict(runner.run(_measure(requests=requests, **arguments)))

        answer_calls({"measure": measure})


if __name__ == "__main__":
    main()
