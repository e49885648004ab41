"""Responses as server-sent events, and models that answer any number of times."""

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import (
    Cancelled,
    InferRequest,
    InferResponse,
    Internal,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ResponseStream,
    Tensor,
    TransactionPolicy,
    Unavailable,
    Unsupported,
)
from microkernel.testing import FakeModel, FakeServer

aiohttp = pytest.importorskip("aiohttp", reason="the extra 'http' is missing")

from microkernel_http.events import wants_events  # noqa: E402 - after the check above

EVENTS = "text/event-stream"
ACCEPT = {"Accept": EVENTS}
STREAM_TYPE = "text/event-stream; charset=utf-8"
DECOUPLED = "doesn't support models with decoupled transaction policy"
NOT_ONE = "generate expects model to produce exactly 1 response"
INPUTS = {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1], "data": ["hi"]}]}
PATHS = pytest.mark.parametrize("path", ["tokens/generate_stream", "tokens/infer"])


def tokens() -> FakeModel:
    return FakeModel(
        ModelConfig(
            name="tokens",
            backend="python",
            input=(ModelInput(name="TEXT", data_type="TYPE_STRING", dims=(1,)),),
            output=(ModelOutput(name="TOKEN", data_type="TYPE_STRING", dims=(1,)),),
            model_transaction_policy=TransactionPolicy(decoupled=True),
        )
    )


def told(value: Any, final: bool = False, dtype: type[Any] = np.object_) -> InferResponse:
    token = Tensor.from_numpy("TOKEN", np.array([value], dtype=dtype))
    return InferResponse("tokens", 1, "", (token,), final=final)


def failed(error: MicrokernelError, final: bool = False) -> InferResponse:
    return InferResponse("tokens", 1, "", (), final=final, error=error)


END = InferResponse("tokens", 1, "", (), flag_only=True)


@pytest.fixture(autouse=True)
def model(server: FakeServer) -> FakeModel:
    server.models["tokens"] = tokens()
    return server.models["tokens"]


def giving(responses: Iterable[InferResponse]) -> Callable[..., AsyncIterator[InferResponse]]:
    async def give(config: ModelConfig, request: InferRequest) -> AsyncIterator[InferResponse]:
        for response in responses:
            yield replace(response, id=request.id)

    return give


def url(port: int, path: str) -> str:
    return f"http://127.0.0.1:{port}/v2/models/{path}"


def question(path: str) -> dict[str, Any]:
    return INPUTS if path.endswith("infer") else {"TEXT": "hi"}


async def ask(
    port: int, path: str, body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, str, bytes]:
    data = body if isinstance(body, bytes) else json.dumps(body or question(path)).encode()
    headers = ACCEPT if headers is None else headers
    async with aiohttp.request("POST", url(port, path), data=data, headers=headers) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.read()


def token_of(event: Any) -> Any:
    return event.get("error") or (
        event["TOKEN"] if "TOKEN" in event else event["outputs"][0]["data"][0]
    )


def events(body: bytes) -> list[Any]:
    *whole, rest = body.split(b"\n\n")
    assert rest == b""
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in whole)
    return [json.loads(event.removeprefix(b"data: ")) for event in whole]


CASES: list[tuple[list[InferResponse], int, list[str]]] = [
    ([END], 200, []),
    ([told("a", final=True)], 200, ["a"]),
    ([told("a"), END], 200, ["a"]),
    ([told("a"), told("b"), told("c", final=True)], 200, ["a", "b", "c"]),
    ([told("a"), failed(Internal("half")), told("b", final=True)], 200, ["a", "half", "b"]),
    ([failed(Internal("no"), final=True)], 500, ["no"]),
    ([failed(Unavailable("no")), told("a"), END], 503, ["no", "a"]),
    ([failed(Cancelled("")), END], 400, [""]),
]


@PATHS
@pytest.mark.parametrize(("responses", "status", "expected"), CASES)
async def test_each_response_is_an_event_under_the_status_of_the_first(
    http_port: int,
    model: FakeModel,
    path: str,
    responses: list[InferResponse],
    status: int,
    expected: list[str],
) -> None:
    model.responses = giving(responses)
    found, content_type, body = await ask(http_port, path)
    assert (found, content_type) == (status, STREAM_TYPE)
    shown = [event["error"] if "error" in event else token_of(event) for event in events(body)]
    assert shown == expected


@pytest.mark.parametrize(
    ("responses", "status", "expected"),
    [
        ([told("a", final=True)], 200, "a"),
        ([told("a"), END], 200, "a"),
        ([END], 200, NOT_ONE),
        ([told("a"), told("b", final=True)], 200, NOT_ONE),
        ([told("a"), failed(Internal("late"), final=True)], 200, NOT_ONE),
        ([failed(Unavailable("no"), final=True)], 503, "no"),
        ([failed(Internal("no")), told("a", final=True)], 500, NOT_ONE),
    ],
)
async def test_generate_wants_exactly_one_response(
    http_port: int,
    model: FakeModel,
    responses: list[InferResponse],
    status: int,
    expected: str,
) -> None:
    model.responses = giving(responses)
    found, content_type, body = await ask(http_port, "tokens/generate")
    assert (found, content_type) == (status, "application/json")
    assert token_of(json.loads(body)).startswith(expected)


async def test_generate_abandons_a_model_at_its_second_response(
    http_port: int, model: FakeModel
) -> None:
    abandoned = asyncio.Event()

    async def endless(config: ModelConfig, request: InferRequest) -> AsyncIterator[InferResponse]:
        yield told("a")
        yield told("b")
        try:
            await asyncio.Event().wait()
        finally:
            abandoned.set()

    model.responses = endless
    _, _, body = await ask(http_port, "tokens/generate")
    assert json.loads(body)["error"].startswith(NOT_ONE)
    await asyncio.wait_for(abandoned.wait(), 10)


async def test_infer_of_a_model_that_does_not_answer_once(
    server: FakeServer, http_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def count(request: InferRequest) -> InferResponse:
        raise Unsupported(f"{DECOUPLED}: expected a single response, got 2")

    monkeypatch.setattr(server, "infer", count)
    status, content_type, body = await ask(http_port, "tokens/infer", headers={})
    assert (status, content_type) == (501, "text/plain")
    assert json.loads(body)["error"] == (
        f"HTTP end point {DECOUPLED}: expected a single response, got 2"
    )


async def test_infer_of_a_decoupled_model_that_answers_once(
    server: FakeServer, http_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def once(request: InferRequest) -> InferResponse:
        return told("a", final=True)

    monkeypatch.setattr(server, "infer", once)
    status, content_type, body = await ask(http_port, "tokens/infer", headers={})
    assert (status, content_type) == (200, "application/json")
    assert token_of(json.loads(body)) == "a"


async def test_a_bad_body_for_a_decoupled_model_is_told(http_port: int) -> None:
    status, content_type, body = await ask(http_port, "tokens/infer", b"{")
    assert (status, content_type) == (500, "application/json")
    assert "failed to parse the request JSON buffer" in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        (EVENTS, True),
        ("Text/Event-Stream; charset=utf-8", True),
        (f"{EVENTS}, application/json", True),
        (f"application/json, {EVENTS}", False),
        (f"application/json;q=0.5, {EVENTS}", True),
        (f"{EVENTS};q=0.5, */*", False),
        (f"{EVENTS};q=0", False),
        (f"{EVENTS} ; q = 0.0", False),
        (f"{EVENTS};q=high", True),
        (f"x{EVENTS}", False),
        (f",;,{EVENTS}", False),
    ],
)
def test_who_wants_events(accepted: str | None, expected: bool) -> None:
    assert wants_events(accepted) is expected


@given(st.text(alphabet="text/event-stream*,;q=.01 ") | st.text().map(lambda t: EVENTS + t))
def test_any_accept_header_is_understood_somehow(accepted: str) -> None:
    assert wants_events(accepted) in (True, False)


async def test_infer_streams_an_ordinary_model(http_port: int) -> None:
    body = {"id": "7", "inputs": [{**INPUTS["inputs"][0], "shape": [1, 1]}]}
    status, content_type, answer = await ask(http_port, "strings/infer", body)
    assert (status, content_type) == (200, STREAM_TYPE)
    upper = {"name": "UPPER", "datatype": "BYTES", "shape": [1, 1], "data": ["HI"]}
    length = {"name": "LENGTH", "datatype": "INT64", "shape": [1, 1], "data": [2]}
    about = {"id": "7", "model_name": "strings", "model_version": "1"}
    assert events(answer) == [{**about, "outputs": [upper, length]}]


@pytest.mark.parametrize(
    "asking",
    [
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "TOKEN", "parameters": {"binary_data": True}}]},
    ],
)
async def test_binary_outputs_do_not_fit_into_events(
    http_port: int, asking: dict[str, Any]
) -> None:
    status, content_type, body = await ask(http_port, "tokens/infer", INPUTS | asking)
    assert (status, content_type) == (400, "application/json")
    assert "outputs in an event stream are JSON" in json.loads(body)["error"]


async def test_a_raw_request_asks_for_no_form(http_port: int, model: FakeModel) -> None:
    model.responses = giving([told("a", final=True)])
    headers = {**ACCEPT, "Inference-Header-Content-Length": "0"}
    status, _, body = await ask(http_port, "tokens/infer", b"hi", headers)
    assert (status, token_of(events(body)[0])) == (200, "a")


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("absent/infer", INPUTS, 404, "Request for unknown model: 'absent' is not found"),
        ("tokens/versions/9/infer", INPUTS, 404, "Request for unknown model: 'tokens' version 9"),
        ("tokens/infer", {"inputs": 1}, 500, "Unable to parse 'inputs'"),
        ("absent/generate_stream", {}, 404, "Request for unknown model: 'absent' is not found"),
    ],
)
async def test_errors_before_inference_are_no_events(
    http_port: int, path: str, body: object, status: int, message: str
) -> None:
    found, content_type, answer = await ask(http_port, path, body)
    assert found == status
    assert content_type in ("application/json", "text/plain")
    assert message in json.loads(answer)["error"]


@PATHS
async def test_an_event_is_sent_when_its_response_comes(
    http_port: int, model: FakeModel, path: str
) -> None:
    seen = asyncio.Event()

    async def paced(config: ModelConfig, request: InferRequest) -> AsyncIterator[InferResponse]:
        yield told("a")
        await seen.wait()
        yield told("b", final=True)

    model.responses = paced
    async with aiohttp.request(
        "POST", url(http_port, path), json=question(path), headers=ACCEPT
    ) as answer:
        first = await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 10)
        seen.set()
        assert token_of(events(first)[0]) == "a"
        assert token_of(events(await answer.read())[0]) == "b"


@PATHS
async def test_any_text_survives(http_port: int, model: FakeModel, path: str) -> None:
    texts = ["caf\u00e9\n\r\n", "\u2028\u0085\x00\U0001f600", 'data: {"error":"no"}\n\n', ""]
    model.responses = giving([*(told(text) for text in texts), END])
    _, _, body = await ask(http_port, path)
    assert [token_of(event) for event in events(body)] == texts
    model.responses = giving([told(b"\xff\n", final=True)])  # no text at all: sent as it is
    assert b'\xff\\n"' in (await ask(http_port, path))[2]


@PATHS
async def test_numbers_that_json_lacks(http_port: int, model: FakeModel, path: str) -> None:
    values = [float("nan"), float("inf"), -float("inf")]
    model.responses = giving([*(told(value, dtype=np.float32) for value in values), END])
    _, _, body = await ask(http_port, path)
    assert repr([token_of(event) for event in events(body)]) == "[nan, inf, -inf]"


@PATHS
async def test_what_json_cannot_carry_is_an_event_and_the_stream_goes_on(
    http_port: int, model: FakeModel, path: str
) -> None:
    model.responses = giving([told("a"), told(1, dtype=np.float16), told("b", final=True)])
    _, _, body = await ask(http_port, path)
    first, second, third = map(token_of, events(body))
    assert (first, third) == ("a", "b")
    assert "sending FP16 data via JSON is not supported" in second


@PATHS
async def test_a_client_that_leaves_closes_the_stream(
    http_port: int, model: FakeModel, path: str
) -> None:
    abandoned = asyncio.Event()

    async def endless(config: ModelConfig, request: InferRequest) -> AsyncIterator[InferResponse]:
        yield told("a")
        try:
            await asyncio.Event().wait()
        finally:
            abandoned.set()

    model.responses = endless
    async with aiohttp.request(
        "POST", url(http_port, path), json=question(path), headers=ACCEPT
    ) as answer:
        await answer.content.readuntil(b"\n\n")
        answer.close()
    await asyncio.wait_for(abandoned.wait(), 10)


class Produced(ResponseStream):
    """As many large responses as are asked for, up to `count`; `most` is the largest number of
    bytes that were taken and not yet received by the client."""

    SIZE = 1 << 18

    def __init__(self, count: int) -> None:
        super().__init__(lambda: None)
        self.left, self.taken, self.received, self.most = count, 0, 0, 0
        self.closed = asyncio.Event()

    async def __anext__(self) -> InferResponse:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        self.taken += self.SIZE
        self.most = max(self.most, self.taken - self.received)
        return told("x" * self.SIZE, final=not self.left)

    def close(self) -> None:
        super().close()
        self.closed.set()


async def connect(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that takes little in advance, with the question sent."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 19)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=1 << 18)
    body = json.dumps(question(path)).encode()
    head = f"POST /v2/models/{path} HTTP/1.1\r\nHost: x\r\nAccept: {EVENTS}\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return reader, writer


@PATHS
async def test_a_slow_reader_slows_the_model_and_loses_nothing(
    server: FakeServer, http_port: int, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    count = 128
    produced = Produced(count)

    async def stream(request: InferRequest) -> ResponseStream:
        return produced

    monkeypatch.setattr(server, "stream", stream)
    reader, writer = await connect(http_port, path)
    await reader.readuntil(b"\r\n\r\n")
    parts = [b""]
    while not parts[-1].endswith(b"0\r\n\r\n"):
        parts.append(await asyncio.wait_for(reader.read(1 << 16), 10))
        produced.received += len(parts[-1])
    writer.close()
    await writer.wait_closed()
    received = b"".join(parts)
    assert received.count(b"data: ") == count
    assert received.count(b"x") == count * Produced.SIZE
    # What the operating system's buffers hold, far less than the 32 MiB that were sent.
    assert produced.most < 12 << 20


@PATHS
async def test_a_client_that_never_reads_and_leaves(
    server: FakeServer, http_port: int, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    produced = Produced(1 << 20)

    async def stream(request: InferRequest) -> ResponseStream:
        return produced

    monkeypatch.setattr(server, "stream", stream)
    reader, writer = await connect(http_port, path)
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    await asyncio.wait_for(produced.closed.wait(), 30)
    assert produced.most < 12 << 20


@PATHS
async def test_a_stream_that_breaks_does_not_look_whole(
    server: FakeServer,
    http_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    path: str,
) -> None:
    class Broken(Produced):
        async def __anext__(self) -> InferResponse:
            if self.left == 1:
                raise ZeroDivisionError("secret")
            return await super().__anext__()

    broken = Broken(2)

    async def stream(request: InferRequest) -> ResponseStream:
        return broken

    monkeypatch.setattr(server, "stream", stream)
    with pytest.raises(aiohttp.ClientError):
        await ask(http_port, path)
    await asyncio.wait_for(broken.closed.wait(), 10)
    assert broken.closed.is_set()
    assert "ZeroDivisionError" in capsys.readouterr().out


async def test_a_connection_lives_on_after_a_stream(http_port: int, model: FakeModel) -> None:
    model.responses = giving([told("a"), END])
    connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=30)

    def use() -> tuple[Any, bytes]:
        connection.request("POST", "/v2/models/tokens/generate_stream", b'{"TEXT":"hi"}')
        body = connection.getresponse().read()
        return connection.sock, body

    first, _ = await asyncio.to_thread(use)
    again, body = await asyncio.to_thread(use)
    connection.close()
    assert first is not None
    assert again is first
    assert token_of(events(body)[0]) == "a"
