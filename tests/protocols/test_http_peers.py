"""Slow, odd and hostile peers of the HTTP front end, as bytes on sockets."""

import asyncio
import gc
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microkernel import InferRequest, InferResponse, ModelConfig, Tensor, Unavailable
from microkernel.testing import FakeServer
from microkernel.testing.fakes import echo

pytest.importorskip("aiohttp", reason="the extra 'http' is missing")

from microkernel_http.bounds import MAX_LINE

Serving = Callable[..., AbstractAsyncContextManager[Any]]

BODY = b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
SHORT = 0.05
"""A time limit, in seconds, that a test waits for."""
PATIENT = {"header_timeout": 0.0, "body_timeout": 0.0, "keep_alive_timeout": 0.0}


def infer(body: bytes = BODY, *headers: str, model: str = "identity") -> bytes:
    lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: x", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


class Peer:
    """One end of a connection, with a limit on every wait that only a hang can reach."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        return await asyncio.wait_for(self._reader.read(), 20)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers with names in lower case, and body of the next answer."""
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 20)
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        size = int(headers.get("content-length", 0))
        return int(first.split()[1]), headers, await self._reader.readexactly(size)


@asynccontextmanager
async def connected(port: int, data: bytes = b"") -> AsyncIterator[Peer]:
    """A connection on which `data` has come before the server takes notice of it: none of its
    limits can end before."""
    raw = socket.create_connection(("127.0.0.1", port))
    raw.setblocking(False)
    sent = raw.send(data)
    reader, writer = await asyncio.open_connection(sock=raw)
    try:
        writer.write(data[sent:])
        yield Peer(reader, writer)
    finally:
        writer.close()


class Held:
    """Makes a model wait until the test lets it go."""

    def __init__(self, server: FakeServer) -> None:
        self.started, self.go, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        server.models["identity"].answer = self

    async def __call__(self, config: ModelConfig, request: InferRequest) -> InferResponse:
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return await echo(config, request)


@pytest.mark.parametrize(
    "begun",
    [b"G", b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nX-Slow: ", LIVE + b"GET /v2"],
    ids=["line", "header", "second"],
)
async def test_a_head_that_does_not_end_is_answered_408(
    http_serving: Serving, begun: bytes
) -> None:
    first = LIVE if begun.startswith(LIVE) else begun
    async with (
        http_serving(header_timeout=SHORT) as frontend,
        connected(frontend.port, first) as peer,
    ):
        if first == LIVE:
            assert (await peer.answer())[0] == 200
            peer.writer.write(begun.removeprefix(LIVE))
        status, headers, body = await peer.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert body == b'{"error":"the head of the request took too long"}'
        assert await peer.rest() == b""


async def test_a_connection_on_which_nothing_ever_comes_is_closed(http_serving: Serving) -> None:
    async with http_serving(header_timeout=SHORT) as frontend, connected(frontend.port) as peer:
        assert await peer.rest() == b""


async def test_the_limit_of_a_head_does_not_end_what_is_idle_or_at_work(
    server: FakeServer, http_serving: Serving
) -> None:
    held = Held(server)
    async with (
        http_serving(header_timeout=SHORT) as frontend,
        connected(frontend.port, LIVE) as idle,
        connected(frontend.port, infer()) as working,
        connected(frontend.port, b"GET") as late,
    ):
        assert (await idle.answer())[0] == 200
        await asyncio.wait_for(held.started.wait(), 20)
        assert (await late.answer())[0] == 408
        for _ in range(2):
            async with connected(frontend.port) as later:
                assert await later.rest() == b""
        held.go.set()
        assert (await working.answer())[0] == 200
        idle.writer.write(LIVE)
        assert (await idle.answer())[0] == 200


async def test_an_idle_connection_is_closed_in_the_end(http_serving: Serving) -> None:
    async with (
        http_serving(keep_alive_timeout=SHORT) as frontend,
        connected(frontend.port, LIVE) as peer,
    ):
        assert (await peer.answer())[0] == 200
        assert await peer.rest() == b""


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (f"Content-Length: {len(BODY)}", BODY[:10]),
        (f"Content-Length: {len(BODY)}", b""),
        ("Transfer-Encoding: chunked", b"4\r\n{   \r\n"),
        ("Transfer-Encoding: chunked", b"400\r\n{"),
    ],
)
async def test_a_body_that_does_not_go_on_is_answered_408(
    http_serving: Serving, head: str, part: bytes
) -> None:
    sent = f"POST /v2/models/identity/infer HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode() + part
    async with (
        http_serving(body_timeout=SHORT) as frontend,
        connected(frontend.port, sent) as peer,
    ):
        status, headers, body = await peer.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert body == b'{"error":"the body of the request took too long"}'
        assert await peer.rest() == b""


async def test_a_reader_that_takes_nothing_is_cut_off(
    server: FakeServer, http_serving: Serving
) -> None:
    left = asyncio.Event()
    zeros = Tensor.from_numpy("OUTPUT0", np.zeros((1, 5_000_000), np.float32))

    class Watched(InferResponse):
        def __del__(self) -> None:
            left.set()

    async def answer(config: ModelConfig, request: InferRequest) -> InferResponse:
        return Watched(request.model_name, 1, "", (zeros,))

    server.models["identity"].answer = answer
    document = json.loads(BODY) | {"parameters": {"binary_data_output": True}}
    async with (
        http_serving(body_timeout=SHORT) as frontend,
        connected(frontend.port, infer(json.dumps(document).encode())),
    ):
        await asyncio.wait_for(left.wait(), 20)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v2/health/live HTTP/3.0\r\nHost: x\r\n\r\n", 400),
        (b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nBroken\r\n\r\n", 400),
        (b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n", 400),
        (b"GET /" + b"x" * MAX_LINE + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (MAX_LINE + 1) + b"\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * 1000 + b"\r\n", 400),
    ],
)
async def test_what_is_no_http_is_answered_in_json(
    http_serving: Serving, sent: bytes, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async with http_serving() as frontend, connected(frontend.port, sent) as peer:
        found, headers, body = await peer.answer()
        assert (found, headers["content-type"]) == (status, "application/json")
        assert list(json.loads(body)) == ["error"]
        assert await peer.rest() == b""
    assert "Traceback" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "target", ["http://x/v2/health/live", "HTTPS://[::1]:80/v2/health/live?probe=1"]
)
async def test_a_target_may_name_the_server(http_serving: Serving, target: str) -> None:
    sent = f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with http_serving() as frontend, connected(frontend.port, sent) as peer:
        assert (await peer.answer())[0] == 200


UPGRADE = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
UPGRADED_INFER = infer(BODY, "Connection: Upgrade", "Upgrade: foo")
_HALF = len(UPGRADED_INFER) - len(BODY) // 2


@pytest.mark.parametrize(
    "parts",
    [
        (UPGRADE + LIVE,),
        (LIVE + UPGRADE + LIVE,),
        (UPGRADED_INFER + LIVE,),
        (UPGRADED_INFER[:_HALF], UPGRADED_INFER[_HALF:] + LIVE),
    ],
    ids=["head", "second", "body", "parts"],
)
async def test_what_is_lost_behind_an_unknown_upgrade_can_be_sent_again(
    http_serving: Serving, parts: tuple[bytes, ...]
) -> None:
    async with http_serving() as frontend, connected(frontend.port, parts[0]) as peer:
        for part in parts[1:]:
            async with connected(frontend.port, LIVE) as other:  # the first part has come by then
                await other.answer()
            peer.writer.write(part)
        told = await peer.rest()
    assert told.count(b"HTTP/1.1 200 OK") == 1 + parts[0].startswith(LIVE)


async def test_a_connection_outlives_an_unknown_upgrade(http_serving: Serving) -> None:
    async with http_serving() as frontend, connected(frontend.port, UPGRADE) as peer:
        assert (await peer.answer())[0] == 200
        for sent in (UPGRADED_INFER, UPGRADE, LIVE):
            peer.writer.write(sent)
            assert (await peer.answer())[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/v2/health/live", 405),
        ("OPTIONS", "/v2/health/live", 405),
        ("DELETE", "/v2/models/identity", 405),
        ("GET", "/v2/models/identity/infer", 405),
        ("HEAD", "/", 404),
        ("GET", "http://elsewhere/v2/", 404),
        ("GET", "http://elsewhere", 404),
        ("GET", "/v2/", 404),
    ],
)
async def test_methods_and_paths_that_mean_nothing(
    http_serving: Serving, method: str, path: str, status: int
) -> None:
    async with http_serving() as frontend:
        sent = f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        async with connected(frontend.port, sent + LIVE) as peer:
            first = await asyncio.wait_for(peer._reader.readuntil(b"\r\n\r\n"), 20)
            assert first.startswith(f"HTTP/1.1 {status} ".encode())
            if method != "HEAD":
                assert list(json.loads(await peer._reader.readuntil(b"}"))) == ["error"]
            assert (await peer.answer())[0] == 200


async def test_pipelined_requests_are_answered_in_order(
    server: FakeServer, http_serving: Serving
) -> None:
    held = Held(server)
    sent = infer() + LIVE + b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n" + infer(BODY, model="absent")
    async with http_serving() as frontend, connected(frontend.port, sent * 20) as peer:
        await asyncio.wait_for(held.started.wait(), 20)
        held.go.set()
        statuses = [(await peer.answer())[0] for _ in range(80)]
        assert statuses == [200, 200, 404, 404] * 20


async def test_an_upgrade_that_is_not_offered_is_passed_over(http_serving: Serving) -> None:
    asked = LIVE[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
    async with http_serving() as frontend, connected(frontend.port, asked) as peer:
        assert (await peer.answer())[0] == 200
        peer.writer.write(LIVE)
        assert (await peer.answer())[0] == 200


async def test_a_client_that_only_stops_sending_gets_its_answers(http_serving: Serving) -> None:
    async with http_serving() as frontend, connected(frontend.port, infer() + LIVE) as peer:
        peer.writer.write_eof()
        assert (await peer.answer())[0] == 200
        assert (await peer.answer())[0] == 200
        assert await peer.rest() == b""


async def test_a_request_does_not_outlive_a_client_that_stops_sending(
    server: FakeServer, http_serving: Serving
) -> None:
    held = Held(server)
    async with http_serving() as frontend, connected(frontend.port, infer()) as peer:
        await asyncio.wait_for(held.started.wait(), 20)
        peer.writer.write_eof()
        assert await peer.rest() == b""
        await asyncio.wait_for(held.cancelled.wait(), 20)


@pytest.mark.parametrize("sent", [b"GET", infer()[:-1], b""])
async def test_half_a_request_ends_with_its_client(http_serving: Serving, sent: bytes) -> None:
    async with http_serving(**PATIENT) as frontend, connected(frontend.port, sent) as peer:
        peer.writer.write_eof()
        await peer.rest()


CLAIM = "POST /v2/models/identity/{} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"


@pytest.mark.parametrize(
    ("action", "size", "status"),
    [("none", "10", 404), ("config", "10", 405), ("infer", str(2**62), 400)],
)
async def test_who_asks_first_is_refused_without_sending_its_body(
    http_serving: Serving, action: str, size: str, status: int
) -> None:
    sent = f"{CLAIM.format(action)}Content-Length: {size}\r\n\r\n".encode()
    async with http_serving() as frontend, connected(frontend.port, sent) as peer:
        found, headers, _ = await peer.answer()
        assert (found, headers["connection"]) == (status, "close")


async def test_who_asks_first_and_is_welcome_sends_its_body(http_serving: Serving) -> None:
    sent = infer(BODY, "Expect: 100-continue").removesuffix(BODY)
    async with http_serving() as frontend, connected(frontend.port, sent) as peer:
        assert (await peer.answer())[0] == 100
        peer.writer.write(BODY)
        status, headers, _ = await peer.answer()
        assert (status, "connection" in headers) == (200, False)


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_largest_body_can_be_set(http_serving: Serving, chunked: bool) -> None:
    async with http_serving(max_body_size=len(BODY)) as frontend:
        async with connected(frontend.port, infer()) as peer:
            assert (await peer.answer())[0] == 200
        more, sent = BODY + b" ", infer(BODY + b" ")
        if chunked:
            head = b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: x\r\n"
            sent = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(more), more)
        async with connected(frontend.port, sent) as peer:
            status, headers, body = await peer.answer()
            assert (status, headers["connection"]) == (400, "close")
            told = f"request body exceeds the maximum of {len(BODY)} bytes"
            assert json.loads(body) == {"error": told}


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/models/identity/config"])
async def test_who_is_refused_for_now_is_told_when_to_come_back(
    server: FakeServer, http_serving: Serving, path: str
) -> None:
    server.failure = Unavailable("Server exiting")
    sent = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with http_serving() as frontend, connected(frontend.port, sent) as peer:
        status, headers, _ = await peer.answer()
        assert (status, headers["retry-after"]) == (503, "1")
        server.failure = None
        peer.writer.write(sent)
        status, headers, _ = await peer.answer()
        assert (status, "retry-after" in headers) == (200, False)


_OPEN_FILES = Path("/proc/self/fd")


def _held_by_this_process() -> tuple[int, int, int]:
    gc.collect()
    tasks = len(asyncio.all_tasks())
    return len(list(_OPEN_FILES.iterdir())), tasks, threading.active_count()


@pytest.mark.skipif(not _OPEN_FILES.is_dir(), reason="counts files in /proc")
async def test_a_thousand_idle_connections_are_in_nobodys_way(http_serving: Serving) -> None:
    before = _held_by_this_process()
    idle: list[socket.socket] = []
    try:
        async with http_serving(**PATIENT) as frontend:
            there = ("127.0.0.1", frontend.port)
            for number in range(1000):
                idle.append(socket.create_connection(there))
                idle[-1].send((b"", b"GET", LIVE[:-1])[number % 3])
                if number % 100 == 0:
                    await asyncio.sleep(0)
            for _ in range(3):
                async with connected(frontend.port, infer()) as peer:
                    assert (await peer.answer())[0] == 200
    finally:
        for one in idle:
            one.close()
    # The last connections end in turns of the loop, and tell nobody.
    while _held_by_this_process() != before:  # noqa: ASYNC110
        await asyncio.sleep(0)
