"""The settings of tracing over HTTP, and the marks of HTTP on a trace."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import (
    NO_CONTEXT,
    InferRequest,
    InferResponse,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    Trace,
    TraceChanges,
    TraceContext,
    TraceSettings,
    Unavailable,
    Unsupported,
)
from microkernel.testing import FakeServer
from microkernel_http.trace_bodies import trace_changes, trace_settings

aiohttp = pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")

INFER = b'{"id":"7","inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":[1]}]}'
GENERATE = b'{"id":"7","INPUT0":[1]}'
MARKS = ["HTTP_RECV_START", "HTTP_RECV_END", "HTTP_SEND_START", "HTTP_SEND_END"]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def body(**document: Any) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"{}", None),
        (b"[]", None),
        (b'{"no_such":"1","trace_mode":"opentelemetry"}', None),
        (body(trace_rate="7"), {"trace_rate": ("7",)}),
        (body(trace_rate="x"), {"trace_rate": ("x",)}),  # whoever keeps the settings refuses it
        (body(trace_count=None), {"trace_count": None}),
        (body(trace_level=None), {"trace_level": None}),
        (body(trace_level=[]), {"trace_level": ()}),
        (
            body(trace_level=["TIMESTAMPS", "TENSORS"], log_frequency="0", x=1),
            {"trace_level": ("TIMESTAMPS", "TENSORS"), "log_frequency": ("0",)},
        ),
    ],
)
def test_what_a_body_changes(given: bytes, expected: dict[str, Any] | None) -> None:
    assert trace_changes(given) == (None if expected is None else TraceChanges(expected))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (b"", Internal, "failed to parse the request JSON buffer: The document is empty."),
        (b"{", Internal, "failed to parse the request JSON buffer"),
        (
            *(body(trace_rate=7), Internal),
            "Unable to parse 'trace_rate': attempt to access JSON non-string as string",
        ),
        (body(trace_count=True), Internal, "Unable to parse 'trace_count'"),
        (body(log_frequency=["1"]), Internal, "Unable to parse 'log_frequency'"),
        (
            *(body(trace_level="OFF"), Internal),
            "Unable to parse 'trace_level': attempt to access JSON non-array as array",
        ),
        (body(trace_level=["OFF", 1]), Internal, "Unable to parse 'trace_level'"),
        (
            *(body(trace_file="x", trace_rate=1), Unsupported),
            "trace file location can not be updated through network protocol",
        ),
    ],
)
def test_bodies_that_are_refused(given: bytes, error: type[MicrokernelError], message: str) -> None:
    with pytest.raises(error) as caught:
        trace_changes(given)
    assert str(caught.value).startswith(message)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
)
KEYS = {"trace_level", "trace_rate", "trace_count", "log_frequency"}
_keys = st.sampled_from([*sorted(KEYS), "x"])


@given(st.dictionaries(_keys, _values) | _values)
def test_any_body_is_kept_exactly_or_refused(document: Any) -> None:
    try:
        changes = trace_changes(json.dumps(document).encode())
    except Internal:
        return
    known = {} if changes is None else changes.values
    members = document if isinstance(document, dict) else {}
    assert known.keys() == members.keys() & KEYS
    for key, value in known.items():
        again = None if value is None else list(value) if key == "trace_level" else value[0]
        assert again == members[key]


@given(st.binary(max_size=20))
def test_any_bytes_are_read_or_refused_with_an_error_of_ours(raw: bytes) -> None:
    with contextlib.suppress(MicrokernelError):
        trace_changes(raw)


def test_the_settings_of_the_opentelemetry_mode_are_its_own() -> None:
    settings = TraceSettings(
        trace_mode="opentelemetry", options={"url": "http://x", "bsp_max_queue_size": "2048"}
    )
    assert trace_settings(settings) == {
        "trace_level": ["OFF"],
        "trace_rate": "1000",
        "trace_count": "-1",
        "trace_mode": "opentelemetry",
        "url": "http://x",
        "bsp_max_queue_size": "2048",
    }


async def ask(
    port: int, method: str, path: str, data: bytes | None = None, **headers: str
) -> tuple[int, str, Any]:
    url = f"http://127.0.0.1:{port}/v2/{path}"
    async with aiohttp.request(method, url, data=data, headers=headers) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.read()


async def test_the_settings_as_they_are_sent(http_port: int) -> None:
    whole = (
        b'{"trace_level":["OFF"],"trace_rate":"1000","trace_count":"-1","log_frequency":"0",'
        b'"trace_file":"","trace_mode":"triton"}'
    )
    for path in ("trace/setting", "models/identity/trace/setting"):
        for method, data in (("GET", None), ("POST", b'{"no_such":"1"}')):
            assert await ask(http_port, method, path, data) == (200, "application/json", whole)


async def test_the_official_client_changes_settings(server: FakeServer, http_port: int) -> None:
    def use() -> Any:
        with client.InferenceServerClient(f"127.0.0.1:{http_port}") as connected:
            connected.update_trace_settings("identity", {"trace_level": ["TENSORS"]})
            connected.update_trace_settings(settings={"trace_rate": "1", "trace_count": None})
            return connected.get_trace_settings("identity")

    assert (await asyncio.to_thread(use))["trace_mode"] == "triton"
    assert server.trace_changes == [
        ("identity", TraceChanges({"trace_level": ("TENSORS",)})),
        ("", TraceChanges({"trace_rate": ("1",), "trace_count": None})),
    ]


async def test_what_the_server_refuses(server: FakeServer, http_port: int) -> None:
    server.failure = InvalidArgument("Request for unknown model : m")
    for method in ("GET", "POST"):
        found = await ask(http_port, method, "models/m/trace/setting", b"{}")
        assert found == (400, "application/json", b'{"error":"Request for unknown model : m"}')


async def test_other_forms_of_the_routes(http_port: int) -> None:
    status, _, _ = await ask(http_port, "GET", "models/identity/versions/1/trace/setting")
    assert status == 404
    assert (await ask(http_port, "PUT", "trace/setting"))[0] == 405


CALLS = pytest.mark.parametrize(
    ("path", "data", "headers"),
    [
        ("models/identity/infer", INFER, {}),
        ("models/identity/infer", INFER, {"Accept": "text/event-stream"}),
        ("models/identity/infer", INFER, {"Accept-Encoding": "gzip"}),
        ("models/identity/generate", GENERATE, {}),
        ("models/identity/generate_stream", GENERATE, {}),
    ],
)


@CALLS
async def test_a_traced_request_is_marked_in_order(
    server: FakeServer, http_port: int, path: str, data: bytes, headers: dict[str, str]
) -> None:
    server.traced = True
    status, _, _ = await ask(http_port, "POST", path, data, **headers)
    assert status == 200
    (trace,) = server.traces
    assert server.requests[0].trace is trace
    assert [name for name, _ in trace.timestamps] == MARKS
    moments = [ns for _, ns in trace.timestamps]
    assert moments == sorted(moments)
    assert (trace.request_id, trace.context) == ("7", "")


async def test_a_large_answer_is_marked_around_all_of_its_parts(
    server: FakeServer, http_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: asyncio.Future[Trace] = asyncio.get_running_loop().create_future()

    async def end(trace: Trace) -> None:
        ended.set_result(trace)

    monkeypatch.setattr(server, "end_trace", end)
    server.traced = True
    tensor = client.InferInput("INPUT0", [1, 500_000], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 500_000), np.float32))

    def use() -> Any:
        with client.InferenceServerClient(f"127.0.0.1:{http_port}") as connected:
            return connected.infer("identity", [tensor]).as_numpy("OUTPUT0")

    assert (await asyncio.to_thread(use)).shape == (1, 500_000)
    trace = await asyncio.wait_for(ended, 10)
    assert [name for name, _ in trace.timestamps] == MARKS


@CALLS
async def test_the_context_of_the_caller_comes_along(
    server: FakeServer,
    http_port: int,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    data: bytes,
    headers: dict[str, str],
) -> None:
    seen = []

    async def begin(request: InferRequest, context: TraceContext) -> Trace | None:
        seen.append(context)
        return None

    monkeypatch.setattr(server, "begin_trace", begin)
    await ask(http_port, "POST", path, data, **headers)
    await ask(http_port, "POST", path, data, **headers, traceparent=PARENT)
    await ask(http_port, "POST", path, data, **headers, traceparent=PARENT, tracestate="a=1")
    assert seen == [NO_CONTEXT, TraceContext(PARENT), TraceContext(PARENT, "a=1")]
    assert seen[0] is NO_CONTEXT
    assert server.requests[0].trace is None


@CALLS
async def test_a_request_that_fails_ends_its_trace(
    server: FakeServer, http_port: int, path: str, data: bytes, headers: dict[str, str]
) -> None:
    async def fail(config: ModelConfig, request: InferRequest) -> InferResponse:
        raise Internal("no")

    server.traced, server.models["identity"].answer = True, fail
    status, _, body = await ask(http_port, "POST", path, data, **headers)
    assert (status, b'{"error":"no"}' in body) == (500, True)
    (trace,) = server.traces
    assert [name for name, _ in trace.timestamps] == MARKS


@CALLS
async def test_an_error_of_a_traced_request_is_that_of_any_other(
    server: FakeServer, http_port: int, path: str, data: bytes, headers: dict[str, str]
) -> None:
    async def fail(config: ModelConfig, request: InferRequest) -> InferResponse:
        raise Unavailable("no instance is alive")

    server.models["identity"].answer = fail
    plain = await ask(http_port, "POST", path, data, **headers)
    server.traced = True
    assert await ask(http_port, "POST", path, data, **headers) == plain


@CALLS
async def test_a_request_that_is_abandoned_ends_its_trace(
    server: FakeServer,
    http_port: int,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    data: bytes,
    headers: dict[str, str],
) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def wait(config: ModelConfig, request: InferRequest) -> InferResponse:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def end(trace: Trace) -> None:
        ended.set()

    server.traced, server.models["identity"].answer = True, wait
    monkeypatch.setattr(server, "end_trace", end)
    asking = asyncio.create_task(ask(http_port, "POST", path, data, **headers))
    await asyncio.wait_for(started.wait(), 10)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(ended.wait(), 10)


async def test_a_body_that_cannot_be_read_has_no_trace(server: FakeServer, http_port: int) -> None:
    server.traced = True
    assert (await ask(http_port, "POST", "models/identity/infer", b"{"))[0] == 500
    assert server.traces == []


async def test_a_stream_is_one_trace(server: FakeServer, http_port: int) -> None:
    async def several(config: ModelConfig, request: InferRequest) -> AsyncIterator[InferResponse]:
        for last in (False, False, True):
            yield InferResponse("stream", 1, "", (), final=last)

    server.traced, server.models["stream"].responses = True, several
    _, _, answer = await ask(http_port, "POST", "models/stream/generate_stream", b"{}")
    assert answer.count(b"data: ") == 3
    (trace,) = server.traces
    assert [name for name, _ in trace.timestamps] == MARKS
