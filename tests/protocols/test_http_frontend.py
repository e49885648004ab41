"""The HTTP front end on a real socket, with the official client and with bare connections."""

import asyncio
import http.client
import json
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from microkernel import (
    InferRequest,
    InferResponse,
    Internal,
    InvalidArgument,
    ModelConfig,
    Tensor,
    Unavailable,
    Unsupported,
)
from microkernel.testing import FakeServer

pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")

from microkernel_http.body import JOINED, MAX_CHUNKS  # noqa: E402 - after the check above
from microkernel_http.frontend import HttpFrontend  # noqa: E402
from microkernel_http.settings import HttpSettings  # noqa: E402

BODY = b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'
INFER = "/v2/models/identity/infer"


def with_client(port: int, use: Callable[[Any], Any]) -> Any:
    with client.InferenceServerClient(f"127.0.0.1:{port}") as connected:
        return use(connected)


def ask(
    port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def infer_input(values: np.ndarray[Any, Any], binary: bool = True) -> Any:
    tensor = client.InferInput("INPUT0", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


async def test_the_official_client_reads_health_and_metadata(
    server: FakeServer, http_port: int
) -> None:
    def use(c: Any) -> None:
        assert c.is_server_live()
        assert c.is_server_ready()
        assert c.is_model_ready("identity", "1")
        assert not c.is_model_ready("identity", "2")
        assert not c.is_model_ready("absent")
        assert c.get_server_metadata()["extensions"] == ["binary_tensor_data", "parameters"]
        assert c.get_model_metadata("identity") == {
            "name": "identity",
            "versions": ["1"],
            "platform": "python",
            "inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [-1, -1]}],
            "outputs": [{"name": "OUTPUT0", "datatype": "FP32", "shape": [-1, -1]}],
        }
        assert c.get_model_config("identity")["max_batch_size"] == 8
        ready = {"name": "identity", "version": "1", "state": "READY"}
        assert ready in c.get_model_repository_index()

    await asyncio.to_thread(with_client, http_port, use)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
async def test_the_official_client_infers(
    server: FakeServer, http_port: int, binary_in: bool, binary_out: bool
) -> None:
    values = np.array([[0.1, -2, 1e30]], np.float32)

    def use(c: Any) -> Any:
        outputs = [client.InferRequestedOutput("OUTPUT0", binary_data=binary_out)]
        return c.infer(
            *("identity", [infer_input(values, binary_in)], "", outputs),
            request_id="seven",
            sequence_id=4,
            sequence_end=True,
            priority=1,
            timeout=99,
            parameters={"mine": "text"},
        )

    result = await asyncio.to_thread(with_client, http_port, use)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), values)
    assert result.get_response()["id"] == "seven"
    (seen,) = server.requests
    assert (seen.sequence.id, seen.sequence.end, seen.priority, seen.timeout_us) == (4, True, 1, 99)
    assert (seen.outputs, seen.parameters) == (("OUTPUT0",), {"mine": "text"})


async def test_the_official_client_sends_and_reads_strings(http_port: int) -> None:
    def use(c: Any) -> Any:
        tensor = client.InferInput("TEXT", [1, 2], "BYTES")
        tensor.set_data_from_numpy(np.array([[b"ab", b"\xff"]], dtype=np.object_))
        return c.infer("strings", [tensor])

    result = await asyncio.to_thread(with_client, http_port, use)
    assert result.as_numpy("UPPER").tolist() == [[b"AB", b"\xff"]]
    assert result.as_numpy("LENGTH").tolist() == [[2, 1]]


async def test_the_official_client_shows_errors(http_port: int) -> None:
    def use(c: Any) -> None:
        c.infer("absent", [infer_input(np.zeros((1, 1), np.float32))])

    with pytest.raises(client.InferenceServerException) as caught:
        await asyncio.to_thread(with_client, http_port, use)
    assert str(caught.value) == "[404] Request for unknown model: 'absent' is not found"


@pytest.mark.parametrize("elements", [JOINED // 4, JOINED // 4 + 1, 5_000_000])
async def test_large_tensors_arrive_whole_both_ways(http_port: int, elements: int) -> None:
    values = np.arange(elements, dtype=np.float32).reshape(1, -1)

    def use(c: Any) -> list[Any]:
        return [c.infer("identity", [infer_input(values)]).as_numpy("OUTPUT0") for _ in range(2)]

    for result in await asyncio.to_thread(with_client, http_port, use):
        np.testing.assert_array_equal(result, values)


async def test_the_buffers_of_a_response_may_be_reused_once_it_is_released(
    server: FakeServer, http_port: int
) -> None:
    """A slow reader leaves most of a large answer unsent; overwriting its memory as soon as the
    server lets go of the response must not reach the reader."""
    memory = bytearray(b"\1" * 20_000_000)
    released = asyncio.Event()

    class Watched(InferResponse):
        def __del__(self) -> None:
            memory[:] = bytes(len(memory))
            released.set()

    async def answer(config: ModelConfig, request: InferRequest) -> InferResponse:
        output = replace(request.inputs[0], name="OUTPUT0", data=memoryview(memory))
        return Watched(request.model_name, 1, "", (output,))

    server.models["identity"].answer = answer
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port, limit=1 << 16)
    document = json.loads(BODY) | {"parameters": {"binary_data_output": True}}
    sent = json.dumps(document).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sent)}\r\n\r\n"
    writer.write(head.encode() + sent)
    headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    lengths = dict(line.split(": ") for line in headers if "length: " in line)
    await reader.readexactly(int(lengths["inference-header-content-length"]))
    assert not released.is_set()
    received = await reader.readexactly(len(memory))
    assert received == b"\1" * len(memory)
    await asyncio.wait_for(released.wait(), 10)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("error", "status", "content_type"),
    [
        (InvalidArgument("bad"), 400, "application/json"),
        (Internal("bad"), 500, "text/plain"),
        (Unavailable("bad"), 503, "text/plain"),
        (Unsupported("bad"), 501, "text/plain"),
    ],
)
async def test_errors_of_a_model(
    server: FakeServer, http_port: int, error: Exception, status: int, content_type: str
) -> None:
    async def fail(config: ModelConfig, request: InferRequest) -> InferResponse:
        raise error

    server.models["identity"].answer = fail
    found, headers, body = await asyncio.to_thread(ask, http_port, "POST", INFER, BODY)
    assert (found, headers["Content-Type"], body) == (status, content_type, b'{"error":"bad"}')


async def test_an_unexpected_exception_shows_nothing_of_itself(
    server: FakeServer, http_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(config: ModelConfig, request: InferRequest) -> InferResponse:
        raise ZeroDivisionError("secret")

    server.models["identity"].answer = fail
    named = BODY.replace(b"{", b'{"id":"mine",', 1)
    status, _, body = await asyncio.to_thread(ask, http_port, "POST", INFER, named)
    assert (status, body) == (500, b'{"error":"internal error, see the server\'s log"}')
    out = capsys.readouterr().out
    assert "ZeroDivisionError" in out
    assert re.search(r"\bmodel\S*=\S*identity", out)
    assert re.search(r"\brequest_id\S*=\S*mine", out)


async def test_an_unknown_model_is_reported_before_a_bad_body(http_port: int) -> None:
    path = "/v2/models/absent/infer"
    status, headers, _ = await asyncio.to_thread(ask, http_port, "POST", path, b"{")
    assert (status, headers["Content-Type"]) == (404, "text/plain")


async def test_an_unknown_compression_names_those_that_are_known(http_port: int) -> None:
    sent = {"Content-Encoding": "br"}
    status, headers, body = await asyncio.to_thread(ask, http_port, "POST", INFER, BODY, sent)
    assert (status, headers["Accept-Encoding"]) == (501, "gzip, deflate")
    assert body == b'{"error":"Unsupported compression type"}'


async def test_health_while_the_server_exits(server: FakeServer, http_port: int) -> None:
    server.failure = Unavailable("Server exiting")
    for path in ("/v2/health/live", "/v2/health/ready"):
        status, _, body = await asyncio.to_thread(ask, http_port, "GET", path)
        assert (status, body) == (503, b'{"error":"Server exiting"}')


async def test_health_of_a_server_that_is_not_ready(server: FakeServer, http_port: int) -> None:
    server.is_live = server.is_ready = False
    for path in ("/v2/health/live", "/v2/health/ready"):
        status, headers, body = await asyncio.to_thread(ask, http_port, "GET", path)
        assert (status, headers["Content-Type"], body) == (400, "text/plain", b"")


@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        (b"", 200, {"addsub", "identity", "stream", "strings", "types"}),
        (b"{}", 200, {"addsub", "identity", "stream", "strings", "types"}),
        (b'{"ready":true}', 200, {"identity", "stream", "strings", "types"}),
        (b'{"ready":1}', 400, {"Unable to parse 'ready': attempt to access JSON"}),
        (b'{"ready":', 500, {"failed to parse the request JSON buffer: Invalid value. at 9"}),
    ],
)
async def test_the_repository_index(
    server: FakeServer, http_port: int, body: bytes, status: int, names: set[str]
) -> None:
    server.models["addsub"].ready = False
    path = "/v2/repository/index"
    found, _, answer = await asyncio.to_thread(ask, http_port, "POST", path, body)
    assert found == status
    if status == 200:
        assert {line["name"] for line in json.loads(answer)} == names
    else:
        assert json.loads(answer)["error"].startswith(names.pop())


async def test_a_chunked_body_is_read(http_port: int) -> None:
    parts = iter([BODY[:10], BODY[10:]])
    status, _, _ = await asyncio.to_thread(ask, http_port, "POST", INFER, parts)
    assert status == 200


async def test_too_many_chunks_close_the_connection(http_port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode() + b"1\r\n \r\n" * (MAX_CHUNKS + 1) + b"0\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 30)  # to the end of the connection
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Chunked request body exceeds maximum" in answer
    writer.close()
    await writer.wait_closed()


async def test_a_body_beyond_the_bound_is_refused_by_its_announced_size(http_port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    writer.write(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {2**31}\r\n\r\n".encode())
    answer = await reader.readuntil(b"}")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'{"error":"request body exceeds the maximum of 2147483647 bytes"}' in answer
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_waits_for_permission_gets_it(http_port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n"
    writer.write((head + "Expect: 100-continue\r\n\r\n").encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(BODY)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_leaves_cancels_its_request(server: FakeServer, http_port: int) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(config: ModelConfig, request: InferRequest) -> InferResponse:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    server.models["identity"].answer = wait
    _, writer = await asyncio.open_connection("127.0.0.1", http_port)
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n"
    writer.write(head.encode() + BODY)
    await asyncio.wait_for(started.wait(), 10)
    writer.close()
    await asyncio.wait_for(cancelled.wait(), 10)


async def _connect_until_refused(port: int) -> None:
    while True:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()


async def test_stopping_lets_a_request_finish_and_refuses_new_connections(
    server: FakeServer,
) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def wait(config: ModelConfig, request: InferRequest) -> InferResponse:
        started.set()
        await go.wait()
        output = Tensor.from_numpy("OUTPUT0", np.zeros((1, 1), np.float32))
        return InferResponse(request.model_name, 1, "", (output,))

    server.models["identity"].answer = wait
    frontend = HttpFrontend(server, HttpSettings(address="127.0.0.1", port=0))
    await frontend.start()
    asking = asyncio.create_task(asyncio.to_thread(ask, frontend.port, "POST", INFER, BODY))
    await started.wait()
    stopping = asyncio.create_task(frontend.stop(30))
    with pytest.raises(ConnectionError):
        await _connect_until_refused(frontend.port)
    assert not stopping.done()
    go.set()
    status, _, _ = await asking
    await stopping
    assert status == 200


async def test_a_taken_port_is_named(server: FakeServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        frontend = HttpFrontend(server, HttpSettings(address="127.0.0.1", port=port))
        with pytest.raises(Unavailable) as caught:
            await frontend.start()
    assert str(caught.value) == f"Socket '127.0.0.1:{port}' already in use"


async def test_a_port_can_be_shared_on_request(server: FakeServer) -> None:
    first = HttpFrontend(server, HttpSettings(address="127.0.0.1", port=0, reuse_port=True))
    await first.start()
    second = HttpFrontend(
        server, HttpSettings(address="127.0.0.1", port=first.port, reuse_port=True)
    )
    await second.start()
    await second.stop(1)
    await first.stop(1)


async def test_switched_off(server: FakeServer) -> None:
    frontend = HttpFrontend(server, HttpSettings(allow_http=False, port=0))
    assert await frontend.start() is None
    assert frontend.port == 0
    await frontend.stop(1)
