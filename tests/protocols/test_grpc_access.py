"""Who may call what over gRPC, and which metadata reaches the model."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from microkernel import (
    REFUSAL,
    InferRequest,
    InferResponse,
    InvalidArgument,
    ModelConfig,
    Unavailable,
)
from microkernel.testing import FakeServer

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")
client = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

from microkernel_grpc.access_log import client_of  # noqa: E402
from microkernel_grpc.forward import forwarder  # noqa: E402 - after the checks above
from microkernel_grpc.frontend import GrpcFrontend  # noqa: E402
from microkernel_grpc.restricted import GROUPS, guards  # noqa: E402
from microkernel_grpc.schema import SERVICES, message, methods  # noqa: E402
from microkernel_grpc.settings import GrpcSettings  # noqa: E402

KEY = "triton-grpc-protocol-secret"
REFUSED = f"This protocol is restricted, expecting header '{KEY}'"


@asynccontextmanager
async def serving(server: FakeServer, **settings: Any) -> AsyncIterator[int]:
    frontend = GrpcFrontend(server, GrpcSettings(address="127.0.0.1", port=0, **settings))
    await frontend.start()
    yield frontend.port
    await frontend.stop(5)


async def with_client(port: int, use: Callable[[Any], Any]) -> Any:
    def run() -> Any:
        with client.InferenceServerClient(f"127.0.0.1:{port}") as connected:
            return use(connected)

    return await asyncio.to_thread(run)


def ones() -> Any:
    tensor = client.InferInput("INPUT0", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
    return tensor


def infer(c: Any, **rest: Any) -> Any:
    return c.infer("identity", [ones()], **rest)


def told(lines: Sequence[Mapping[str, Any]], *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(line[key] for key in keys) for line in lines if line["event"] == "answered"]


async def test_a_line_for_each_call(server: FakeServer) -> None:
    def use(c: Any) -> None:
        infer(c, request_id="mine\n")
        c.get_model_config("identity")
        c.is_server_live()
        for name, version in (("identity", "x"), ("absent", "")):
            with pytest.raises(client.InferenceServerException):
                c.infer(name, [], version, request_id="two")

    server.traced = True
    with capture_logs() as lines:
        async with serving(server, access_log=True) as port:
            await with_client(port, use)
    assert told(lines, "rpc", "code", "model", "id", "trace_id") == [
        ("ModelInfer", "OK", "identity", "mine\\n", "1"),
        ("ModelConfig", "OK", "identity", "", ""),
        ("ServerLive", "OK", "", "", ""),
        ("ModelInfer", "INVALID_ARGUMENT", "identity", "two", ""),
        ("ModelInfer", "NOT_FOUND", "absent", "two", "1"),
    ]
    assert told(lines, "client", "requests", "responses")[0] == ("127.0.0.1", 1, 1)
    ((received, sent, ms), *_) = told(lines, "received", "sent", "ms")
    assert min(received, sent, ms) > 0


async def test_a_line_for_a_stream_when_it_ends(server: FakeServer) -> None:
    def use(c: Any) -> None:
        done = threading.Semaphore(0)
        c.start_stream(lambda result, error: done.release())
        for name in "ab":
            c.async_stream_infer("identity", [ones()], request_id=name)
            assert done.acquire(timeout=20)
        assert not told(lines, "rpc")
        c.stop_stream()

    with capture_logs() as lines:
        async with serving(server, access_log=True) as port:
            await with_client(port, use)
    assert told(lines, "rpc", "code", "requests", "responses", "model", "id") == [
        ("ModelStreamInfer", "OK", 2, 2, "identity", "a")
    ]


async def test_a_line_for_a_stream_whose_client_leaves(server: FakeServer) -> None:
    started = threading.Event()

    async def endless(config: ModelConfig, request: InferRequest) -> AsyncIterator[InferResponse]:
        yield InferResponse("stream", 1, "", (), final=False)
        await asyncio.Event().wait()

    def use(c: Any) -> None:
        c.start_stream(lambda result, error: started.set())
        c.async_stream_infer("stream", [], request_id="mine")
        assert started.wait(20)
        c.stop_stream(cancel_requests=True)

    server.models["stream"].responses = endless
    with capture_logs() as lines:
        async with serving(server, access_log=True) as port:
            await with_client(port, use)
    assert told(lines, "code", "requests", "responses", "model", "id") == [
        ("CANCELLED", 1, 1, "stream", "mine")
    ]


async def test_no_line_unless_asked_for(server: FakeServer) -> None:
    with capture_logs() as lines:
        async with serving(server) as port:
            await with_client(port, infer)
    assert lines == []


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:127.0.0.1:4711", "127.0.0.1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("ipv6:[2001:db8::1]:1", "2001:db8::1"),
        ("unix:", "unix"),
        ("unix:/run/it", "unix"),
        ("", ""),
    ],
)
def test_who_asked(peer: str, expected: str) -> None:
    assert client_of(peer) == expected


def test_every_call_is_in_one_group() -> None:
    grouped = sorted(call for calls in GROUPS.values() for call in calls)
    assert grouped == sorted({method.name for method in methods().values()})


def test_guards_of_calls() -> None:
    found = guards(["health,model-config:Secret=a=b", "logging : other =c"])
    assert sorted(found) == [
        *("Check", "LogSettings", "ModelConfig", "ModelReady", "ServerLive", "ServerReady")
    ]
    assert (found["ServerLive"].header, found["ServerLive"].value) == (KEY, "a=b")
    assert (found["LogSettings"].header, found["LogSettings"].value) == (
        "triton-grpc-protocol-other",
        "c",
    )
    assert guards([]) == {}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (["health"], "'health' must have the form GROUP[,GROUP...]:KEY=VALUE"),
        (["health:key"], "'health:key' must have the form"),
        (["health:=value"], "'health:=value' must have the form"),
        (["key=value"], "'key=value' must have the form"),
        (["helth:k=v"], "unknown group 'helth' in 'helth:k=v'; known are health, metadata"),
        (["health,:k=v"], "unknown group '' in"),
        (["health:k=v", "trace,health:k=v"], "group 'health' is given more than once"),
    ],
)
def test_bad_restrictions(server: FakeServer, values: list[str], text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        GrpcFrontend(server, GrpcSettings(restricted_protocol=tuple(values)))
    assert str(caught.value).startswith("--grpc-restricted-protocol: ")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "passes"),
    [
        ((), False),
        (((KEY, "valu"),), False),
        (((KEY, "VALUE"),), False),
        ((("secret", "value"),), False),
        (((KEY, "value"),), True),
        (((KEY, b"value"),), True),
        (((KEY, "wrong"), ("other", "x"), (KEY, "value")), True),
    ],
)
def test_what_a_guard_lets_pass(metadata: Any, passes: bool) -> None:
    guard = guards(["inference:secret=value"])["ModelInfer"]
    if passes:
        guard.check(metadata)
        return
    with pytest.raises(Unavailable) as caught:
        guard.check(metadata)
    assert str(caught.value) == REFUSED


KEY_ONE, KEY_TWO = "a-key-of-many-characters", "another-key-of-many"


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys"
    path.write_text(f"# two keys\n{KEY_ONE}\n\n{KEY_TWO}\n")
    return str(path)


async def code_of(channel: Any, path: str, metadata: Any = ()) -> tuple[Any, str]:
    """How a call without a message ends; a stream is left open by the client."""
    if methods()[path].streams:
        call = channel.stream_stream(path)(metadata=metadata)
    else:
        call = channel.unary_unary(path)(b"", metadata=metadata)
    return await call.code(), await call.details()


OPEN = ("ServerLive", "ServerReady", "Check")
GUARDED = sorted(path for path, method in methods().items() if method.name not in OPEN)


@pytest.mark.parametrize("path", GUARDED)
async def test_every_call_but_a_probe_needs_a_key(server: FakeServer, keys: str, path: str) -> None:
    async with (
        serving(server, auth_file=keys) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        for metadata in ((), (("authorization", f"Bearer {KEY_ONE}x"),), (("x-api-key", "wrong"),)):
            found = await code_of(channel, path, metadata)
            assert found == (grpc.StatusCode.UNAUTHENTICATED, REFUSAL)
    assert not server.requests


async def test_probes_need_no_key(server: FakeServer, keys: str) -> None:
    async with (
        serving(server, auth_file=keys) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        for path in sorted(set(methods()) - set(GUARDED)):
            assert (await code_of(channel, path))[0] is grpc.StatusCode.OK


async def test_both_ways_to_send_a_key(server: FakeServer, keys: str) -> None:
    def use(c: Any) -> None:
        for headers in (
            {"authorization": f"Bearer {KEY_ONE}"},
            {"authorization": f"bearer  {KEY_TWO}"},
            {"x-api-key": KEY_TWO},
        ):
            assert infer(c, headers=headers).as_numpy("OUTPUT0") == 1
        with pytest.raises(client.InferenceServerException) as caught:
            infer(c, headers={"authorization": f"Basic {KEY_ONE}"})
        assert str(caught.value) == f"[StatusCode.UNAUTHENTICATED] {REFUSAL}"

    async with serving(server, auth_file=keys) as port:
        await with_client(port, use)
    assert len(server.requests) == 3


async def test_a_key_comes_before_a_restriction(server: FakeServer, keys: str) -> None:
    path = f"/{SERVICES[0]}/ServerMetadata"
    key, secret = ("x-api-key", KEY_ONE), (KEY, "v")
    async with (
        serving(server, auth_file=keys, restricted_protocol=("metadata:secret=v",)) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        assert (await code_of(channel, path, (secret,)))[1] == REFUSAL
        assert (await code_of(channel, path, (key,)))[1] == REFUSED
        assert (await code_of(channel, path, (key, secret)))[0] is grpc.StatusCode.OK


def test_a_key_file_of_no_use(server: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="--grpc-auth-file: cannot read"):
        GrpcFrontend(server, GrpcSettings(auth_file=str(tmp_path / "absent")))
    GrpcFrontend(server, GrpcSettings(allow_grpc=False, auth_file="absent"))


async def test_restricted_calls_on_the_wire(server: FakeServer) -> None:
    async with serving(server, restricted_protocol=("inference,health:secret=v",)) as port:

        def use(c: Any) -> None:
            assert c.get_server_metadata().name == "triton"  # of another group
            for call in (infer, lambda c, **rest: c.is_server_live(**rest)):
                with pytest.raises(client.InferenceServerException) as caught:
                    call(c)
                assert str(caught.value) == f"[StatusCode.UNAVAILABLE] {REFUSED}"
                assert call(c, headers={KEY: "v"})

        await with_client(port, use)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stream = channel.stream_stream(f"/{SERVICES[0]}/ModelStreamInfer")()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
    assert caught.value.details() == REFUSED
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(server.requests) == 1


METADATA = (("my-header", "a"), ("other", "b"), ("my-raw-bin", b"\xffc"), ("my-header", "d"))


@pytest.mark.parametrize(
    ("pattern", "forwarded"),
    [
        ("^other$", {"other": "b"}),
        ("HEADER", {"my-header": "d"}),
        ("(?-i)HEADER", {}),
        ("(?-i)header", {"my-header": "d"}),
        ("raw", {"my-raw-bin": "\\xffc"}),
        ("my-(h|x)|oth", {"my-header": "d", "other": "b"}),
        ("none", {}),
    ],
)
def test_which_metadata_is_forwarded(pattern: str, forwarded: dict[str, str]) -> None:
    forward = forwarder(pattern)
    assert forward is not None
    assert forward(METADATA) == forwarded


def test_nothing_is_forwarded_without_a_pattern() -> None:
    assert forwarder("") is None


@pytest.mark.parametrize(
    "key",
    [
        *("sequence_id", "sequence_start", "sequence_end", "priority", "timeout"),
        *("headers", "binary_data_output", "triton_anything"),
    ],
)
def test_reserved_metadata_is_refused_where_it_matches(key: str) -> None:
    forward, narrow = forwarder("."), forwarder("^x-")
    assert forward is not None
    assert narrow is not None
    assert narrow([(key, "1")]) == {}
    with pytest.raises(InvalidArgument) as caught:
        forward([(key, "1")])
    assert str(caught.value) == (
        f"metadata '{key}' is reserved for Triton usage and cannot be forwarded"
    )


def test_a_pattern_that_is_none(server: FakeServer) -> None:
    with pytest.raises(InvalidArgument, match=r"--grpc-header-forward-pattern: '\(' is no"):
        GrpcFrontend(server, GrpcSettings(header_forward_pattern="("))


async def test_forwarded_metadata_reaches_the_model(server: FakeServer) -> None:
    async with serving(server, header_forward_pattern="^my_") as port:

        def use(c: Any) -> None:
            infer(c, headers={"my_trace": "x", "other": "y"}, parameters={"mine": 1})
            with pytest.raises(client.InferenceServerException) as caught:
                infer(c, headers={"my_x": "1"}, model_version="9")
            assert "version 9 is not found" in str(caught.value)

        await with_client(port, use)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream(
                f"/{SERVICES[0]}/ModelStreamInfer",
                request_serializer=message("ModelInferRequest").SerializeToString,
            )(metadata=(("my_stream", "z"),))
            await call.write(message("ModelInferRequest")(model_name="identity"))
            assert await call.read()
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
    assert [seen.parameters for seen in server.requests] == [
        {"mine": 1, "my_trace": "x"},
        {"my_stream": "z"},
    ]


async def test_reserved_metadata_fails_both_infer_calls(server: FakeServer) -> None:
    text = "metadata 'priority' is reserved for Triton usage and cannot be forwarded"
    async with serving(server, header_forward_pattern="priority") as port:

        def use(c: Any) -> None:
            assert c.get_model_metadata("identity", headers={"priority": "1"})
            with pytest.raises(client.InferenceServerException) as caught:
                infer(c, headers={"priority": "1"})
            assert str(caught.value) == f"[StatusCode.INVALID_ARGUMENT] {text}"

        await with_client(port, use)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream(
                f"/{SERVICES[0]}/ModelStreamInfer",
                request_serializer=message("ModelInferRequest").SerializeToString,
                response_deserializer=message("ModelStreamInferResponse").FromString,
            )(metadata=(("priority", "1"),))
            await call.write(message("ModelInferRequest")(model_name="identity", id="a"))
            answer = await call.read()
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
    assert (answer.error_message, answer.infer_response.id) == (text, "a")
