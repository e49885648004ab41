"""The gRPC front end on a real socket, with the official client and with bare calls."""

import asyncio
import queue
import re
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from microkernel import (
    AlreadyExists,
    Cancelled,
    InferRequest,
    InferResponse,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    NotFound,
    Tensor,
    Unavailable,
    Unknown,
    Unsupported,
)
from microkernel.testing import FakeServer

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")
client = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

from microkernel_grpc.frontend import GrpcFrontend  # noqa: E402 - after the checks above
from microkernel_grpc.schema import SERVICES, message, methods  # noqa: E402
from microkernel_grpc.settings import GrpcSettings  # noqa: E402
from microkernel_grpc.status import details_of, status_of  # noqa: E402


def with_client(port: int, use: Callable[[Any], Any]) -> Any:
    with client.InferenceServerClient(f"127.0.0.1:{port}") as connected:
        return use(connected)


def bare(channel: Any, name: str, service: str = SERVICES[0]) -> Any:
    method = methods()[f"/{service}/{name}"]
    return channel.unary_unary(
        f"/{service}/{name}",
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )


def infer_input(values: np.ndarray[Any, Any]) -> Any:
    tensor = client.InferInput("INPUT0", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    return tensor


def request(name: str = "identity") -> Any:
    tensor: dict[str, Any] = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 1]}
    contents = {"fp32_contents": [2.5]}
    return message("ModelInferRequest")(model_name=name, inputs=[{**tensor, "contents": contents}])


async def test_the_official_client_reads_health_and_metadata(grpc_port: int) -> None:
    def use(c: Any) -> None:
        assert c.is_server_live()
        assert c.is_server_ready()
        assert c.is_model_ready("identity", "1")
        assert not c.is_model_ready("identity", "2")
        assert not c.is_model_ready("absent")
        about = c.get_server_metadata()
        assert (about.name, about.version) == ("triton", "0.0.0")
        assert list(about.extensions) == ["binary_tensor_data", "parameters"]
        assert c.get_model_metadata("identity", as_json=True) == {
            "name": "identity",
            "versions": ["1"],
            "platform": "python",
            "inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": ["-1", "-1"]}],
            "outputs": [{"name": "OUTPUT0", "datatype": "FP32", "shape": ["-1", "-1"]}],
        }
        assert c.get_model_config("identity").config.max_batch_size == 8
        index = c.get_model_repository_index().models
        assert ("identity", "1", "READY") in [(m.name, m.version, m.state) for m in index]

    await asyncio.to_thread(with_client, grpc_port, use)


async def test_the_official_client_infers(server: FakeServer, grpc_port: int) -> None:
    values = np.array([[0.1, -2, 1e30]], np.float32)

    def use(c: Any) -> Any:
        return c.infer(
            *("identity", [infer_input(values)], "1"),
            outputs=[client.InferRequestedOutput("OUTPUT0")],
            request_id="seven",
            sequence_id="abc",
            sequence_start=True,
            priority=1,
            timeout=99,
            parameters={"mine": "text"},
        )

    result = await asyncio.to_thread(with_client, grpc_port, use)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), values)
    answer = result.get_response()
    assert (answer.id, answer.model_version) == ("seven", "1")
    (seen,) = server.requests
    assert (seen.sequence.id, seen.sequence.start) == ("abc", True)
    assert (seen.priority, seen.timeout_us) == (1, 99)
    assert (seen.outputs, seen.parameters) == (("OUTPUT0",), {"mine": "text"})


@pytest.mark.parametrize("elements", [0, 5000, 5_000_000])
async def test_tensors_of_any_size_arrive_whole_both_ways(grpc_port: int, elements: int) -> None:
    values = np.arange(elements, dtype=np.float32).reshape(1, -1)

    def use(c: Any) -> Any:
        return c.infer("identity", [infer_input(values)]).as_numpy("OUTPUT0")

    np.testing.assert_array_equal(await asyncio.to_thread(with_client, grpc_port, use), values)


async def test_the_official_client_shows_errors(grpc_port: int) -> None:
    def use(c: Any) -> None:
        c.infer("absent", [infer_input(np.zeros((1, 1), np.float32))])

    with pytest.raises(client.InferenceServerException) as caught:
        await asyncio.to_thread(with_client, grpc_port, use)
    assert str(caught.value) == (
        "[StatusCode.NOT_FOUND] Request for unknown model: 'absent' is not found"
    )


async def test_typed_contents_are_answered_raw(channel: Any) -> None:
    answer = await bare(channel, "ModelInfer")(request())
    assert answer.raw_output_contents == [np.float32(2.5).tobytes()]
    assert not answer.outputs[0].HasField("contents")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Internal, "INTERNAL"),
        (NotFound, "NOT_FOUND"),
        (Unavailable, "UNAVAILABLE"),
        (Unsupported, "UNIMPLEMENTED"),
        (InvalidArgument, "INVALID_ARGUMENT"),
        (AlreadyExists, "ALREADY_EXISTS"),
        (Cancelled, "CANCELLED"),
        (Unknown, "UNKNOWN"),
        (MicrokernelError, "INTERNAL"),
    ],
)
def test_each_class_of_error_has_a_code(error: type[MicrokernelError], code: str) -> None:
    assert status_of(error("x")) is grpc.StatusCode[code]


async def test_errors_of_a_model(server: FakeServer, channel: Any) -> None:
    async def fail(config: ModelConfig, request: InferRequest) -> InferResponse:
        raise Unavailable("bäd \udcff" + "!" * 100_000)

    server.models["identity"].answer = fail
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bare(channel, "ModelInfer")(request())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details().startswith("bäd \\udcff!!!")


def test_details_are_cut_to_what_a_header_can_hold() -> None:
    assert details_of(Internal("short")) == "short"
    assert 1000 < len(details_of(Internal("x" * 100_000))) <= 7000


async def test_an_unexpected_exception_shows_nothing_of_itself(
    server: FakeServer, channel: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(config: ModelConfig, request: InferRequest) -> InferResponse:
        raise ZeroDivisionError("secret")

    server.models["identity"].answer = fail
    asked = request()
    asked.id = "mine"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bare(channel, "ModelInfer")(asked)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "internal error, see the server's log"
    out = capsys.readouterr().out
    assert "ZeroDivisionError" in out
    assert re.search(r"\bmodel\S*=\S*identity", out)
    assert re.search(r"\brequest_id\S*=\S*mine", out)


@pytest.mark.parametrize("reason", ["", ": expected a single response, got 2"])
async def test_a_decoupled_model_that_does_not_answer_once(
    server: FakeServer, channel: Any, reason: str
) -> None:
    text = f"doesn't support models with decoupled transaction policy{reason}"

    async def refuse(config: ModelConfig, request: InferRequest) -> InferResponse:
        raise Unsupported(f"[request id: x] {text}")

    server.models["identity"].answer = refuse
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bare(channel, "ModelInfer")(request())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == f"ModelInfer RPC {text}"


async def test_what_a_backend_does_not_support_is_said_as_it_is(
    server: FakeServer, channel: Any
) -> None:
    async def refuse(config: ModelConfig, request: InferRequest) -> InferResponse:
        raise Unsupported("no sparse tensors")

    server.models["identity"].answer = refuse
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bare(channel, "ModelInfer")(request())
    assert caught.value.details() == "no sparse tensors"


@pytest.mark.parametrize("name", ["ServerLive", "ModelInfer"])
async def test_bytes_that_are_no_message(channel: Any, name: str) -> None:
    call = channel.unary_unary(f"/{SERVICES[0]}/{name}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == f"the message is not a valid {name}Request"


@pytest.mark.parametrize("name", ["Index", "ModelLoad", "ModelUnload"])
async def test_a_repository_cannot_be_named(channel: Any, name: str) -> None:
    asked = message(f"Repository{name}Request")(repository_name="other")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bare(channel, f"Repository{name}")(asked)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "'repository_name' specification is not supported"


async def test_the_index_of_ready_models(server: FakeServer, channel: Any) -> None:
    server.models["addsub"].ready = False
    index = bare(channel, "RepositoryIndex")
    for only_ready, names in ((False, ["addsub", "identity"]), (True, ["identity", "stream"])):
        answer = await index(message("RepositoryIndexRequest")(ready=only_ready))
        assert [model.name for model in answer.models][:2] == names
    everything = await index(message("RepositoryIndexRequest")())
    assert everything.models[0].reason == "unloaded"


async def test_the_standard_health_service(server: FakeServer, channel: Any) -> None:
    check = bare(channel, "Check", SERVICES[1])
    asked = methods()[f"/{SERVICES[1]}/Check"].request(service="ignored")
    assert (await check(asked)).status == 1
    server.is_ready = False
    assert (await check(asked)).status == 2
    server.failure = Unavailable("Server exiting")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(asked)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_a_client_that_gives_up_cancels_its_request(
    server: FakeServer, channel: Any, how: str
) -> None:
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
    call = bare(channel, "ModelInfer")(request(), timeout=2 if how == "deadline" else None)
    waiting = asyncio.ensure_future(call)
    await asyncio.wait_for(started.wait(), 10)
    if how == "cancel":
        call.cancel()
    await asyncio.wait_for(cancelled.wait(), 10)
    with pytest.raises(asyncio.CancelledError if how == "cancel" else grpc.aio.AioRpcError):
        await waiting


async def test_the_official_client_asks_for_classes(grpc_port: int) -> None:
    values = np.array([[0.25, 4, -1], [3, 1, 2]], np.float32)

    def use(c: Any) -> Any:
        wanted = [client.InferRequestedOutput("OUTPUT0", class_count=2)]
        return c.infer("identity", [infer_input(values)], outputs=wanted).as_numpy("OUTPUT0")

    classes = await asyncio.to_thread(with_client, grpc_port, use)
    assert classes.tolist() == [
        [b"4.000000:1", b"0.250000:0"],
        [b"3.000000:0", b"2.000000:2"],
    ]


def stream(port: int, values: list[np.ndarray[Any, Any]], **settings: Any) -> list[Any]:
    """What the official client gets on one stream; None for the result of a failure."""
    arrived: queue.Queue[Any] = queue.Queue()
    with client.InferenceServerClient(f"127.0.0.1:{port}") as connected:
        connected.start_stream(lambda result, error: arrived.put((result, error)), **settings)
        for i, array in enumerate(values):
            name = "identity" if array.size else "absent"
            connected.async_stream_infer(name, [infer_input(array)], request_id=str(i))
        got = [arrived.get(timeout=30) for _ in values]
        connected.stop_stream()
    return got


async def test_the_official_client_streams(grpc_port: int) -> None:
    values = [np.full((1, 1), i, np.float32) for i in range(50)]
    got = await asyncio.to_thread(stream, grpc_port, [*values, np.empty((1, 0), np.float32)])
    result, error = got.pop()
    assert result is None
    assert str(error) == "Request for unknown model: 'absent' is not found"
    assert [error for _, error in got] == [None] * 50
    assert [r.get_response().id for r, _ in got] == [str(i) for i in range(50)]
    assert [r.as_numpy("OUTPUT0").item() for r, _ in got] == list(range(50))


async def test_the_official_client_streams_large_compressed_tensors(grpc_port: int) -> None:
    values = np.arange(1_000_000, dtype=np.float32).reshape(1, -1)
    ((result, error),) = await asyncio.to_thread(
        lambda: stream(grpc_port, [values], compression_algorithm="gzip")
    )
    assert error is None
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), values)


async def _connect_until_refused(port: int) -> None:
    while True:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()


async def test_stopping_lets_a_call_finish(server: FakeServer) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def wait(config: ModelConfig, request: InferRequest) -> InferResponse:
        started.set()
        await go.wait()
        output = Tensor.from_numpy("OUTPUT0", np.zeros((1, 1), np.float32))
        return InferResponse(request.model_name, 1, "last", (output,))

    server.models["identity"].answer = wait
    frontend = GrpcFrontend(server, GrpcSettings(address="127.0.0.1", port=0))
    await frontend.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{frontend.port}") as channel:
        call = bare(channel, "ModelInfer")(request())
        await asyncio.wait_for(started.wait(), 10)
        stopping = asyncio.create_task(frontend.stop(30))
        with pytest.raises(ConnectionError):
            await _connect_until_refused(frontend.port)
        assert not stopping.done()
        go.set()
        assert (await call).id == "last"
        await stopping


async def test_a_taken_port_is_named(server: FakeServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        frontend = GrpcFrontend(server, GrpcSettings(address="127.0.0.1", port=port))
        with pytest.raises(Unavailable) as caught:
            await frontend.start()
    assert str(caught.value) == f"Socket '127.0.0.1:{port}' already in use"


async def test_a_port_can_be_shared_on_request(server: FakeServer) -> None:
    first = GrpcFrontend(server, GrpcSettings(address="127.0.0.1", port=0, reuse_port=True))
    await first.start()
    second = GrpcFrontend(
        server, GrpcSettings(address="127.0.0.1", port=first.port, reuse_port=True)
    )
    await second.start()
    assert second.port == first.port
    await second.stop(1)
    await first.stop(1)


async def test_switched_off(server: FakeServer) -> None:
    frontend = GrpcFrontend(server, GrpcSettings(allow_grpc=False))
    assert await frontend.start() is None
    await frontend.stop(1)
