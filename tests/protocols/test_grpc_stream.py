"""ModelStreamInfer, in memory and with bare calls."""

import asyncio
import re
from typing import Any

import numpy as np
import pytest

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
    Unavailable,
)
from microkernel.testing import FakeModel, FakeServer

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")

from microkernel_grpc import stream as stream_module  # noqa: E402 - after the checks above
from microkernel_grpc.frontend import GrpcFrontend  # noqa: E402
from microkernel_grpc.inference import Inference  # noqa: E402
from microkernel_grpc.schema import SERVICES, message  # noqa: E402
from microkernel_grpc.settings import GrpcSettings  # noqa: E402
from microkernel_grpc.stream import SHUTTING_DOWN, Streams  # noqa: E402

PATH = f"/{SERVICES[0]}/ModelStreamInfer"
STRICT = (("triton_grpc_error", "true"),)
LIMIT = 20


class Gated:
    """A model whose requests wait until the test lets them go, by their id."""

    def __init__(self) -> None:
        self.started: asyncio.Queue[str] = asyncio.Queue()
        self.cancelled: set[str] = set()
        self._ended: asyncio.Queue[str] = asyncio.Queue()
        self._gates: dict[str, asyncio.Future[MicrokernelError | None]] = {}

    async def answer(self, config: ModelConfig, request: InferRequest) -> InferResponse:
        gate = self._gates.setdefault(request.id, asyncio.get_running_loop().create_future())
        self.started.put_nowait(request.id)
        try:
            error = await gate
        except asyncio.CancelledError:
            self.cancelled.add(request.id)
            self._ended.put_nowait(request.id)
            raise
        if error is not None:
            raise error
        return InferResponse(request.model_name, request.version, request.id, request.inputs)

    def finish(self, identity: str, error: MicrokernelError | None = None) -> None:
        self._gates[identity].set_result(error)

    async def wait_started(self, count: int) -> list[str]:
        return [await asyncio.wait_for(self.started.get(), LIMIT) for _ in range(count)]

    async def wait_cancelled(self, count: int) -> set[str]:
        return {await asyncio.wait_for(self._ended.get(), LIMIT) for _ in range(count)}


@pytest.fixture
def gated() -> Gated:
    return Gated()


@pytest.fixture
def server(gated: Gated) -> FakeServer:
    def config(name: str) -> ModelConfig:
        return ModelConfig(
            name=name,
            backend="python",
            input=(ModelInput(name="X", data_type="TYPE_INT32", dims=(1,)),),
            output=(ModelOutput(name="Y", data_type="TYPE_INT32", dims=(1,)),),
        )

    return FakeServer(
        [
            FakeModel(config("echo")),
            FakeModel(config("gated"), gated.answer),
        ]
    )


def request(identity: str, model: str = "gated", value: int = 0, **fields: Any) -> Any:
    tensor = {"name": "X", "datatype": "INT32", "shape": [1]}
    return message("ModelInferRequest")(
        model_name=model,
        id=identity,
        inputs=[{**tensor, "contents": {"int_contents": [value]}}],
        **fields,
    )


def read_answer(packed: bytes) -> Any:
    answer = message("ModelStreamInferResponse")()
    answer.ParseFromString(packed)
    return answer


def is_final(answer: Any) -> bool:
    final = answer.infer_response.parameters["triton_final_response"]
    assert final.WhichOneof("parameter_choice") == "bool_param"
    return bool(final.bool_param)


class Conversation:
    """A stream without a network."""

    def __init__(self, server: FakeServer, metadata: Any = ()) -> None:
        self.streams = Streams(Inference(server, None))
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._answers: asyncio.Queue[bytes] = asyncio.Queue()
        self.broken = False
        self.writers = 0
        self.flow = asyncio.Event()
        self.flow.set()
        self.writing = asyncio.Event()
        serving = self.streams.serve(self._requests.get, self._write, metadata)
        self.serving = asyncio.create_task(serving)

    async def _write(self, packed: bytes) -> None:
        self.writers += 1
        assert self.writers == 1, "two writers at once"
        await asyncio.sleep(0)
        self.writing.set()
        await self.flow.wait()
        self.writers -= 1
        if self.broken:
            raise Cancelled("gone")
        self._answers.put_nowait(packed)

    def send(self, *requests: Any) -> None:
        for each in requests:
            self._requests.put_nowait(each.SerializeToString())

    def send_bytes(self, packed: bytes) -> None:
        self._requests.put_nowait(packed)

    def half_close(self) -> None:
        self._requests.put_nowait(None)

    async def receive(self) -> Any:
        return read_answer(await asyncio.wait_for(self._answers.get(), LIMIT))

    def unread(self) -> int:
        return self._answers.qsize()

    async def ended(self) -> None:
        await asyncio.wait_for(self.serving, LIMIT)


async def test_requests_run_together_and_are_answered_in_their_order(
    server: FakeServer, gated: Gated
) -> None:
    talk = Conversation(server)
    talk.send(*(request(identity) for identity in "abc"))
    assert await gated.wait_started(3) == ["a", "b", "c"]
    gated.finish("c")
    gated.finish("b")
    await asyncio.sleep(0)
    assert talk.unread() == 0
    gated.finish("a")
    answers = [await talk.receive() for _ in range(3)]
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c"]
    assert all(is_final(answer) and not answer.error_message for answer in answers)
    talk.half_close()
    await talk.ended()


async def test_an_answer_does_not_wait_for_later_requests(server: FakeServer, gated: Gated) -> None:
    talk = Conversation(server)
    talk.send(request("first"), request("second"))
    await gated.wait_started(2)
    gated.finish("first")
    assert (await talk.receive()).infer_response.id == "first"
    gated.finish("second")
    talk.half_close()
    await talk.ended()
    assert talk.unread() == 1


async def test_half_closing_waits_for_what_is_pending(server: FakeServer, gated: Gated) -> None:
    talk = Conversation(server)
    talk.send(request("a"))
    talk.half_close()
    await gated.wait_started(1)
    assert not talk.serving.done()
    gated.finish("a")
    await talk.ended()
    assert (await talk.receive()).infer_response.id == "a"


async def test_a_whole_answer(server: FakeServer) -> None:
    talk = Conversation(server)
    parameters = {"triton_enable_empty_final_response": {"bool_param": True}}
    talk.send(request("seven", "echo", 42, parameters=parameters))
    answer = (await talk.receive()).infer_response
    assert (answer.model_name, answer.model_version, answer.id) == ("echo", "1", "seven")
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [("Y", "INT32", [1])]
    assert answer.raw_output_contents == [np.int32(42).tobytes()]
    assert server.requests[0].parameters == {}
    talk.half_close()
    await talk.ended()
    assert talk.unread() == 0  # what has outputs is final, so no empty one follows


async def test_what_fails_before_inference_is_answered_with_its_id_only(
    server: FakeServer,
) -> None:
    cases = [
        (request("a", "absent"), "Request for unknown model: 'absent' is not found"),
        (
            request("b", "absent", model_version="1", parameters={"triton_x": {}}),
            "Request for unknown model: 'absent' is not found",
        ),
        (
            request("c", "echo", parameters={"triton_x": {}}),
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not "
            "be specified.",
        ),
        (
            request("d", "echo", model_version="x"),
            "failed to get model version from specified version string 'x' (details: stol), "
            "version should be an integral value > 0",
        ),
    ]
    talk = Conversation(server, STRICT)
    talk.send(*(asked for asked, _ in cases), request("last", "echo"))
    for asked, text in cases:
        answer = await talk.receive()
        assert answer.error_message == text
        assert answer.infer_response == message("ModelInferResponse")(id=asked.id)
    assert (await talk.receive()).infer_response.id == "last"
    talk.half_close()
    await talk.ended()


async def test_bytes_that_are_no_request(server: FakeServer) -> None:
    talk = Conversation(server)
    talk.send_bytes(b"\xff")
    assert (await talk.receive()).error_message == "the message is not a valid ModelInferRequest"
    talk.half_close()
    await talk.ended()


@pytest.mark.parametrize("version", ["", "1"])
async def test_what_fails_in_inference_is_answered_in_band(
    server: FakeServer, gated: Gated, version: str
) -> None:
    talk = Conversation(server)
    talk.send(request("a", model_version=version), request("b"))
    await gated.wait_started(2)
    gated.finish("a", Internal("bäd \udcff"))
    answer = await talk.receive()
    assert answer.error_message == "bäd \\udcff"
    assert is_final(answer)
    failed = answer.infer_response
    assert (failed.id, failed.model_name, failed.model_version) == ("a", "gated", version)
    assert not failed.outputs
    gated.finish("b")
    assert not (await talk.receive()).error_message
    talk.half_close()
    await talk.ended()


async def test_strict_mode_ends_the_stream_with_the_first_error_of_inference(
    server: FakeServer, gated: Gated
) -> None:
    talk = Conversation(server, STRICT)
    talk.send(*(request(identity) for identity in "abcd"))
    await gated.wait_started(4)
    gated.finish("a")
    assert (await talk.receive()).infer_response.id == "a"
    gated.finish("c", Unavailable("worker died"))  # while b still runs
    with pytest.raises(Unavailable, match="worker died"):
        await talk.ended()
    assert talk.unread() == 0
    assert gated.cancelled == {"b", "d"}


async def test_strict_mode_ends_when_the_answer_on_its_way_has_left(
    server: FakeServer, gated: Gated
) -> None:
    # gRPC refuses a status while a message is being sent, and the client would wait for ever.
    talk = Conversation(server, STRICT)
    talk.send(*(request(identity) for identity in "abc"))
    await gated.wait_started(3)
    talk.flow.clear()
    gated.finish("a")
    await asyncio.wait_for(talk.writing.wait(), LIMIT)
    gated.finish("b", Unavailable("worker died"))
    gated.finish("c")
    for _ in range(20):
        await asyncio.sleep(0)
    assert not talk.serving.done()
    talk.flow.set()
    with pytest.raises(Unavailable, match="worker died"):
        await talk.ended()
    assert talk.writers == 0
    assert (await talk.receive()).infer_response.id == "a"
    assert talk.unread() == 0


async def test_no_answer_follows_the_error_that_ends_the_stream(
    server: FakeServer, gated: Gated
) -> None:
    talk = Conversation(server, STRICT)
    talk.send(*(request(identity) for identity in "abc"))
    await gated.wait_started(3)
    gated.finish("a", Unavailable("worker died"))
    gated.finish("b")
    gated.finish("c")
    with pytest.raises(Unavailable, match="worker died"):
        await talk.ended()
    assert talk.unread() == 0


async def test_another_value_is_not_strict_mode(server: FakeServer, gated: Gated) -> None:
    talk = Conversation(server, (("triton_grpc_error", "1"), ("other", "true")))
    talk.send(request("a"))
    await gated.wait_started(1)
    gated.finish("a", Internal("no"))
    assert (await talk.receive()).error_message == "no"
    talk.half_close()
    await talk.ended()


async def test_cancelling_a_stream_cancels_its_requests(server: FakeServer, gated: Gated) -> None:
    talk = Conversation(server)
    talk.send(request("a"), request("b"))
    await gated.wait_started(2)
    talk.serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await talk.ended()
    assert gated.cancelled == {"a", "b"}


async def test_a_failed_write_ends_the_stream(server: FakeServer, gated: Gated) -> None:
    talk = Conversation(server)
    talk.broken = True
    talk.send(request("a"), request("b"))
    await gated.wait_started(2)
    gated.finish("a")
    with pytest.raises(Cancelled, match="gone"):
        await talk.ended()
    assert gated.cancelled == {"b"}


async def test_stopping_answers_what_is_pending_and_refuses_the_rest(
    server: FakeServer, gated: Gated
) -> None:
    talk = Conversation(server)
    talk.send(request("a"))
    await gated.wait_started(1)
    talk.streams.stop()
    talk.send(request("b"))
    gated.finish("a")
    assert (await talk.receive()).infer_response.id == "a"
    refused = await talk.receive()
    assert (refused.error_message, refused.infer_response.id) == (SHUTTING_DOWN, "b")
    with pytest.raises(Unavailable, match="stopped accepting new requests"):
        await talk.ended()


async def test_stopping_ends_an_idle_stream(server: FakeServer) -> None:
    talk = Conversation(server)
    talk.send(request("a", "echo"))
    await talk.receive()
    talk.streams.stop()
    with pytest.raises(Unavailable, match="shutting down"):
        await talk.ended()


async def test_reading_pauses_while_too_many_answers_wait(
    server: FakeServer, gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_MAX_UNANSWERED", 2)
    talk = Conversation(server)
    talk.send(*(request(identity) for identity in "abc"))
    assert await gated.wait_started(2) == ["a", "b"]
    gated.finish("b")
    for _ in range(5):
        await asyncio.sleep(0)
    assert gated.started.empty()
    gated.finish("a")
    assert await gated.wait_started(1) == ["c"]
    gated.finish("c")
    talk.half_close()
    await talk.ended()


async def test_a_fault_of_ours_shows_nothing_of_itself(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(request: InferRequest) -> ResponseStream:
        if request.model_name == "gated":
            raise ZeroDivisionError("secret")
        return await accept(request)

    accept = server.stream
    monkeypatch.setattr(server, "stream", fail)
    talk = Conversation(server)
    talk.send(request("a"), request("b", "echo"))
    assert (await talk.receive()).error_message == "internal error, see the server's log"
    assert (await talk.receive()).infer_response.id == "b"
    out = capsys.readouterr().out
    assert "ZeroDivisionError" in out
    assert re.search(r"\bmodel\S*=\S*gated", out)
    assert re.search(r"\brequest_id\S*=\S*a\b", out)
    talk.half_close()
    await talk.ended()


def open_stream(channel: Any, **rest: Any) -> Any:
    return channel.stream_stream(
        PATH,
        request_serializer=message("ModelInferRequest").SerializeToString,
        response_deserializer=read_answer,
    )(**rest)


async def test_strict_mode_on_the_wire(server: FakeServer, gated: Gated, channel: Any) -> None:
    call = open_stream(channel, metadata=STRICT)
    await call.write(request("a"))
    await call.write(request("b"))
    await gated.wait_started(2)
    gated.finish("b", Internal("no memory"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "no memory"
    assert gated.cancelled == {"a"}


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_a_client_that_gives_up_cancels_every_request(
    gated: Gated, channel: Any, how: str
) -> None:
    call = open_stream(channel, timeout=2 if how == "deadline" else None)
    await call.write(request("a"))
    await call.write(request("b"))
    await gated.wait_started(2)
    if how == "cancel":
        call.cancel()
    assert await gated.wait_cancelled(2) == {"a", "b"}


async def test_stopping_ends_a_stream_on_the_wire(server: FakeServer, gated: Gated) -> None:
    frontend = GrpcFrontend(server, GrpcSettings(address="127.0.0.1", port=0))
    await frontend.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{frontend.port}") as channel:
        call = open_stream(channel)
        await call.write(request("a"))
        await gated.wait_started(1)
        stopping = asyncio.create_task(frontend.stop(60))
        gated.finish("a")
        assert (await call.read()).infer_response.id == "a"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == SHUTTING_DOWN
        await asyncio.wait_for(stopping, LIMIT)
