"""Traces over gRPC: their settings, and what is recorded of the infer calls."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from microkernel import (
    InferRequest,
    InferResponse,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ResponseStream,
    Trace,
    TraceChanges,
    TraceContext,
    TraceSettings,
    Unsupported,
)
from microkernel.testing import FakeModel, FakeServer

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")
client = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

from microkernel_grpc.frontend import GrpcFrontend  # noqa: E402 - after the checks above
from microkernel_grpc.schema import SERVICES, message  # noqa: E402
from microkernel_grpc.settings import GrpcSettings  # noqa: E402
from microkernel_grpc.traces import context_of, trace_changes, trace_settings  # noqa: E402

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MARKS = ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", "GRPC_SEND_START", "GRPC_SEND_END"]
LIMIT = 20


class Tracing(FakeServer):
    """A server that traces every request and says when a trace is handed in."""

    def __init__(self) -> None:
        super().__init__([FakeModel(ModelConfig(name="m", backend="python"))])
        self.traced = True
        self.began: asyncio.Queue[InferRequest] = asyncio.Queue()
        self.ended: asyncio.Queue[Trace] = asyncio.Queue()

    async def stream(self, request: InferRequest) -> ResponseStream:
        self.began.put_nowait(request)
        return await super().stream(request)

    async def end_trace(self, trace: Trace) -> None:
        await super().end_trace(trace)
        self.ended.put_nowait(trace)


@pytest.fixture
async def server() -> Tracing:
    return Tracing()


@pytest.fixture
async def channel(server: Tracing) -> AsyncIterator[Any]:
    server.tracing = TraceSettings(trace_mode="opentelemetry")
    frontend = GrpcFrontend(server, GrpcSettings(address="127.0.0.1", port=0))
    await frontend.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{frontend.port}") as opened:
        yield opened
    await frontend.stop(5)


def settings_of(**values: list[str]) -> Mapping[str, Any]:
    settings = {key: {"value": value} for key, value in values.items()}
    request: Any = message("TraceSettingRequest")(settings=settings)
    found: Mapping[str, Any] = request.settings
    return found


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        ({}, None),
        ({"unknown": ["x"], "trace_mode": ["triton"]}, None),
        ({"trace_level": ["TIMESTAMPS", "TENSORS"]}, {"trace_level": ("TIMESTAMPS", "TENSORS")}),
        ({"trace_rate": ["5"], "trace_count": []}, {"trace_rate": ("5",), "trace_count": None}),
        (
            {"trace_level": [], "log_frequency": ["x"]},
            {"trace_level": None, "log_frequency": ("x",)},
        ),
    ],
)
def test_changes(values: dict[str, list[str]], changes: dict[str, Any] | None) -> None:
    wanted = None if changes is None else TraceChanges(changes)
    assert trace_changes(settings_of(**values)) == wanted


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        (
            {"trace_file": ["x"]},
            Unsupported,
            "trace file location can not be updated through network protocol",
        ),
        ({"trace_file": []}, Unsupported, "trace file location can not be updated"),
        ({"trace_rate": ["1", "2"]}, InvalidArgument, "expect only 1 value for 'trace_rate'"),
        ({"trace_count": ["1", "1"]}, InvalidArgument, "expect only 1 value for 'trace_count'"),
        ({"log_frequency": ["", ""]}, InvalidArgument, "expect only 1 value for 'log_frequency'"),
    ],
)
def test_bad_changes(
    values: dict[str, list[str]], error: type[MicrokernelError], text: str
) -> None:
    with pytest.raises(error, match=text):
        trace_changes(settings_of(**values))


def test_settings_of_both_modes() -> None:
    def shown(settings: TraceSettings) -> dict[str, list[str]]:
        answer: Any = trace_settings(settings)
        return {key: list(value.value) for key, value in answer.settings.items()}

    levels = ("TIMESTAMPS", "TENSORS")
    assert shown(TraceSettings("f", levels, 5, 6, 7)) == {
        "trace_file": ["f"],
        "trace_level": ["TIMESTAMPS", "TENSORS"],
        "trace_rate": ["5"],
        "trace_count": ["6"],
        "log_frequency": ["7"],
        "trace_mode": ["triton"],
    }
    other = TraceSettings("f", trace_mode="opentelemetry", options={"url": "http://x"})
    assert shown(other) == {
        "trace_level": ["OFF"],
        "trace_rate": ["1000"],
        "trace_count": ["-1"],
        "trace_mode": ["opentelemetry"],
        "url": ["http://x"],
    }


@pytest.mark.parametrize(
    ("metadata", "context"),
    [
        ((), TraceContext()),
        ((("tracestate", "a=b"),), TraceContext()),
        ((("traceparent", PARENT),), TraceContext(PARENT)),
        ((("tracestate", "a=b"), ("traceparent", PARENT)), TraceContext(PARENT, "a=b")),
        ((("traceparent", b"raw"),), TraceContext()),
    ],
)
def test_what_metadata_says_of_a_trace(metadata: Any, context: TraceContext) -> None:
    assert context_of(metadata) == context


async def test_the_official_client_changes_the_settings(server: Tracing, grpc_port: int) -> None:
    def use(c: Any) -> Any:
        wanted = {"trace_level": ["TIMESTAMPS"], "trace_rate": "7", "trace_count": None}
        c.update_trace_settings("m", wanted)
        c.update_trace_settings(settings={"trace_rate": None})
        with pytest.raises(client.InferenceServerException, match="UNIMPLEMENTED"):
            c.update_trace_settings(settings={"trace_file": "x"})
        return c.get_trace_settings("m", as_json=True)["settings"]

    def run() -> Any:
        with client.InferenceServerClient(f"127.0.0.1:{grpc_port}") as connected:
            return use(connected)

    shown = await asyncio.to_thread(run)
    assert shown["trace_level"] == {"value": ["OFF"]}
    assert server.trace_changes == [
        (
            "m",
            TraceChanges(
                {"trace_level": ("TIMESTAMPS",), "trace_rate": ("7",), "trace_count": None}
            ),
        ),
        ("", TraceChanges({"trace_rate": None})),
    ]


def infer(channel: Any, **rest: Any) -> Any:
    call = channel.unary_unary(f"/{SERVICES[0]}/ModelInfer")
    return call(message("ModelInferRequest")(model_name="m", id="x").SerializeToString(), **rest)


def names(trace: Trace) -> list[str]:
    times = [ns for _, ns in trace.timestamps]
    assert times == sorted(times)
    return [name for name, _ in trace.timestamps]


async def test_a_traced_call(server: Tracing, channel: Any) -> None:
    await infer(channel, metadata=(("traceparent", PARENT),))
    trace = await asyncio.wait_for(server.ended.get(), LIMIT)
    assert (trace.request_id, trace.context) == ("x", PARENT)
    assert names(trace) == MARKS
    assert server.requests[0].trace is trace


async def test_metadata_is_not_read_outside_the_opentelemetry_mode(
    server: Tracing, grpc_port: int
) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        await infer(channel, metadata=(("traceparent", PARENT),))
    trace = await asyncio.wait_for(server.ended.get(), LIMIT)
    assert (trace.context, names(trace)) == ("", MARKS)


async def failing(config: ModelConfig, request: InferRequest) -> InferResponse:
    raise Internal("no")


async def hanging(config: ModelConfig, request: InferRequest) -> InferResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_call_that_fails_hands_its_trace_in(server: Tracing, channel: Any) -> None:
    server.models["m"].answer = failing
    with pytest.raises(grpc.aio.AioRpcError):
        await infer(channel)
    assert names(await asyncio.wait_for(server.ended.get(), LIMIT)) == MARKS


async def test_a_client_that_gives_up_leaves_no_trace_open(server: Tracing, channel: Any) -> None:
    server.models["m"].answer = hanging
    with pytest.raises(grpc.aio.AioRpcError):
        await infer(channel, timeout=2)
    assert names(await asyncio.wait_for(server.ended.get(), LIMIT)) == MARKS


@pytest.mark.parametrize(
    ("answer", "marks"), [(None, MARKS), (failing, MARKS), (hanging, [*MARKS[:2], MARKS[3]])]
)
async def test_traced_requests_of_a_stream(
    server: Tracing, channel: Any, answer: Callable[..., Any] | None, marks: list[str]
) -> None:
    if answer is not None:
        server.models["m"].answer = answer
    metadata = (("traceparent", PARENT), ("tracestate", "a=b"))
    call = channel.stream_stream(f"/{SERVICES[0]}/ModelStreamInfer")(metadata=metadata)
    await call.write(message("ModelInferRequest")(model_name="m").SerializeToString())
    if answer is hanging:
        await asyncio.wait_for(server.began.get(), LIMIT)
        call.cancel()
    else:
        await call.read()
        await call.done_writing()
    trace = await asyncio.wait_for(server.ended.get(), LIMIT)
    assert (trace.context, names(trace)) == (PARENT, marks)


async def test_a_refused_request_of_a_stream_leaves_no_trace_open(
    server: Tracing, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(request: InferRequest) -> Any:
        raise InvalidArgument("never")

    monkeypatch.setattr(server, "stream", refuse)
    call = channel.stream_stream(f"/{SERVICES[0]}/ModelStreamInfer")()
    await call.write(message("ModelInferRequest")(model_name="m").SerializeToString())
    await call.read()
    assert names(await asyncio.wait_for(server.ended.get(), LIMIT)) == MARKS[:2]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
