"""What a client did wrong, over gRPC and against the kernel's own checks: codes and phrases."""

import asyncio
import struct
from typing import Any

import pytest

from microkernel import (
    DATA_TYPES,
    InferRequest,
    InferResponse,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ResponseStream,
    Tensor,
)
from microkernel.models.checking import RequestChecker
from microkernel.testing import FakeModel, FakeServer

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")

from microkernel_grpc.schema import SERVICES, message, methods  # noqa: E402 - after the check above

INFER = f"/{SERVICES[0]}/ModelInfer"
STREAM = f"/{SERVICES[0]}/ModelStreamInfer"


class Checking(FakeServer):
    """Checks requests as the kernel does."""

    async def infer(self, request: InferRequest) -> InferResponse:
        self._check(request)
        return await super().infer(request)

    async def stream(self, request: InferRequest) -> Any:
        self._check(request)
        return await super().stream(request)

    def _check(self, request: InferRequest) -> None:
        config = self._model(request.model_name, request.version).config
        if not request.shared_inputs:  # they are read before
            RequestChecker(config).check(request)


def model(name: str, *inputs: ModelInput, largest: int = 0) -> FakeModel:
    outputs = tuple(ModelOutput(f"{i.name}_OUT", i.data_type, i.dims) for i in inputs)
    return FakeModel(
        ModelConfig(
            name=name, backend="python", max_batch_size=largest, input=inputs, output=outputs
        )
    )


@pytest.fixture
def server() -> FakeServer:
    a, b = ModelInput("A", "TYPE_FP32", dims=(2,)), ModelInput("B", "TYPE_INT32", dims=(1,))
    some = ModelInput("B", "TYPE_INT32", dims=(1,), optional=True)
    made = Checking(
        [
            model("plain", a),
            model("two", a, b, largest=4),
            model("some", a, some, largest=4),
            model("text", ModelInput("T", "TYPE_STRING", dims=(2,))),
            model("half", ModelInput("H", "TYPE_FP16", dims=(1,))),
            model("gone", a),
        ]
    )
    made.models["gone"].ready = False
    return made


def tensor(name: str, datatype: str, *shape: int, **fields: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **fields}


def text_of(value: str | int | bool) -> dict[str, Any]:
    kind = {str: "string_param", bool: "bool_param", int: "int64_param"}[type(value)]
    return {kind: value}


def params(**values: str | int | bool) -> dict[str, Any]:
    return {key: text_of(value) for key, value in values.items()}


A, A1, B1 = tensor("A", "FP32", 2), tensor("A", "FP32", 1, 2), tensor("B", "INT32", 1, 1)
REGION = params(shared_memory_region="r", shared_memory_byte_size=8)
FLOATS = {"fp32_contents": [1, 2]}


def string(size: int, data: bytes = b"") -> bytes:
    return struct.pack("<I", size) + data


CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("absent", {}, "NOT_FOUND", "Request for unknown model: 'absent' is not found"),
    ("gone", {}, "NOT_FOUND", "Request for unknown model: 'gone' has no available versions"),
    (
        "plain",
        {"model_version": "7"},
        *("NOT_FOUND", "Request for unknown model: 'plain' version 7 is not found"),
    ),
    (
        "gone",
        {"model_version": "1"},
        *("UNAVAILABLE", "Request for unknown model: 'gone' version 1 is not at ready state"),
    ),
    (
        "plain",
        {"model_version": "x"},
        *("INVALID_ARGUMENT", "failed to get model version from specified version string"),
    ),
    (
        "plain",
        {"model_version": "9" * 30},
        *("INVALID_ARGUMENT", "failed to get model version from specified version string"),
    ),
    (
        "two",
        {"inputs": [A1], "raw_input_contents": [bytes(8)]},
        "INVALID_ARGUMENT",
        "expected 2 inputs but got 1 inputs for model 'two'. Got input(s) ['A'], but missing "
        "required input(s) ['B']. Please provide all required input(s).",
    ),
    (
        "some",
        {},
        *("INVALID_ARGUMENT", "expected number of inputs between 1 and 2 but got 0 inputs for"),
    ),
    (
        "plain",
        {"inputs": [tensor("Z", "FP32", 2)], "raw_input_contents": [bytes(8)]},
        *("INVALID_ARGUMENT", "unexpected inference input 'Z' for model 'plain'"),
    ),
    (
        "two",
        {"inputs": [A1, A1], "raw_input_contents": [bytes(8)] * 2},
        *("INVALID_ARGUMENT", "input 'A' already exists in request"),
    ),
    (
        "plain",
        {"inputs": [A], "raw_input_contents": [bytes(8)], "outputs": [{"name": "Z"}]},
        *("INVALID_ARGUMENT", "unexpected inference output 'Z' for model 'plain'"),
    ),
    (
        "plain",
        {"inputs": [tensor("A", "INT32", 2)], "raw_input_contents": [bytes(8)]},
        "INVALID_ARGUMENT",
        "inference input 'A' data-type is 'INT32', but model 'plain' expects 'FP32'",
    ),
    (
        "plain",
        {"inputs": [tensor("A", "float", 2)], "raw_input_contents": [bytes(8)]},
        "INVALID_ARGUMENT",
        "inference input 'A' data-type is '<invalid>', but model 'plain' expects 'FP32'; 'float' "
        "is no data type",
    ),
    (
        "plain",
        {"inputs": [tensor("A", "FP32", 3)], "raw_input_contents": [bytes(12)]},
        *("INVALID_ARGUMENT", "unexpected shape for input 'A' for model 'plain'. Expected [2], "),
    ),
    (
        "two",
        {"inputs": [tensor("A", "FP32", 1, 3), B1], "raw_input_contents": [bytes(12), bytes(4)]},
        "INVALID_ARGUMENT",
        "unexpected shape for input 'A' for model 'two'. Expected [-1,2], got [1,3]. NOTE: Setting "
        "a non-zero max_batch_size",
    ),
    (
        "plain",
        {"inputs": [tensor("A", "FP32", -1)], "raw_input_contents": [bytes(8)]},
        *("INVALID_ARGUMENT", "All input dimensions should be specified for input"),
    ),
    (
        "two",
        {
            "inputs": [tensor("A", "FP32", 5, 2), tensor("B", "INT32", 5, 1)],
            "raw_input_contents": [bytes(40), bytes(20)],
        },
        *("INVALID_ARGUMENT", "inference request batch-size must be <= 4 for 'two'"),
    ),
    (
        "two",
        {
            "inputs": [tensor("A", "FP32", 2, 2), B1],
            "raw_input_contents": [bytes(16), bytes(4)],
        },
        *("INVALID_ARGUMENT", "batch size does not match other inputs for 'two'"),
    ),
    (
        "two",
        {"inputs": [tensor("A", "FP32"), B1], "raw_input_contents": [bytes(4), bytes(4)]},
        *("INVALID_ARGUMENT", "has no shape but model requires batch dimension"),
    ),
    (
        "plain",
        {"inputs": [A], "raw_input_contents": [bytes(7)]},
        "INVALID_ARGUMENT",
        "input byte size mismatch for input 'A' for model 'plain'. Expected 8, got 7",
    ),
    (
        "two",
        {
            "inputs": [tensor("A", "FP32", 2**62, 2), tensor("B", "INT32", 2**62, 1)],
            "raw_input_contents": [bytes(8), bytes(4)],
        },
        *("INVALID_ARGUMENT", "inference request batch-size must be <= 4 for 'two'"),
    ),
    (
        "plain",
        {"inputs": [tensor("A", "FP32", 2**63 - 1, 2**63 - 1)], "raw_input_contents": [b""]},
        *("INVALID_ARGUMENT", "unexpected shape for input 'A'"),
    ),
    (
        "text",
        {"inputs": [tensor("T", "BYTES", 2)], "raw_input_contents": [string(0)]},
        "INVALID_ARGUMENT",
        "expected 2 string elements for inference input 'T' for model 'text', got 1",
    ),
    (
        "text",
        {"inputs": [tensor("T", "BYTES", 2)], "raw_input_contents": [string(0) * 3]},
        "INVALID_ARGUMENT",
        "unexpected number of string elements 3 for inference input 'T' for model 'text', "
        "expecting 2",
    ),
    (
        "text",
        {"inputs": [tensor("T", "BYTES", 2)], "raw_input_contents": [string(0) + b"\1\0"]},
        *("INVALID_ARGUMENT", "incomplete string length indicator for inference input"),
    ),
    (
        "text",
        {"inputs": [tensor("T", "BYTES", 2)], "raw_input_contents": [string(2**32 - 1, b"x")]},
        *("INVALID_ARGUMENT", "incomplete string data for inference input 'T'"),
    ),
    (
        "plain",
        {"inputs": [{**A, "contents": FLOATS}], "raw_input_contents": [bytes(8)]},
        "INVALID_ARGUMENT",
        "contents field must not be specified when using raw_input_contents",
    ),
    (
        "plain",
        {"inputs": [{**A, "contents": FLOATS, "parameters": REGION}]},
        *("INVALID_ARGUMENT", "unexpected 'content' provided when using shared memory"),
    ),
    ("plain", {"inputs": [A]}, "INVALID_ARGUMENT", "unable to find data for input tensor 'A'"),
    (
        "plain",
        {"inputs": [{**A, "contents": {"int_contents": [1, 2]}}]},
        "INVALID_ARGUMENT",
        "unexpected explicit tensor data for input tensor 'A' for model 'plain' of type 'FP32', "
        "expected datatype 'INT32'",
    ),
    (
        "half",
        {"inputs": [{**tensor("H", "FP16", 1), "contents": FLOATS}]},
        *("INVALID_ARGUMENT", "unexpected explicit tensor data for input tensor 'H'"),
    ),
    (
        "plain",
        {"inputs": [{**A, "contents": {**FLOATS, "fp64_contents": [1]}}]},
        *("INVALID_ARGUMENT", "binary data was already supplied"),
    ),
    (
        "plain",
        {"inputs": [{**A, "contents": {"fp32_contents": [1]}}]},
        *("INVALID_ARGUMENT", "input byte size mismatch for input 'A'"),
    ),
    (
        "plain",
        {"inputs": [{**A, "parameters": REGION}]},
        *("NOT_FOUND", "Unable to find shared memory region: 'r'"),
    ),
    (
        "plain",
        {"inputs": [{**A, "parameters": params(shared_memory_region="r")}]},
        *("INVALID_ARGUMENT", "'shared_memory_byte_size' must be specified along with"),
    ),
    (
        "plain",
        {"inputs": [{**A, "parameters": params(shared_memory_byte_size=1)}]},
        *("INVALID_ARGUMENT", "can not be specified without"),
    ),
    (
        "plain",
        {"parameters": params(sequence_id=True)},
        *("INVALID_ARGUMENT", "invalid value type for 'sequence_id' parameter, expected"),
    ),
    (
        "plain",
        {"parameters": params(triton_mine=1)},
        *("INVALID_ARGUMENT", "parameter keys starting with 'triton_' are reserved"),
    ),
]


def ask(name: str, fields: dict[str, Any]) -> bytes:
    return message("ModelInferRequest")(model_name=name, id="i", **fields).SerializeToString()


@pytest.mark.parametrize(("name", "fields", "code", "text"), CASES)
async def test_bad_requests(
    channel: Any, name: str, fields: dict[str, Any], code: str, text: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(INFER)(ask(name, fields))
    assert caught.value.code() is grpc.StatusCode[code]
    assert text in caught.value.details()


async def test_bad_requests_on_one_stream(channel: Any) -> None:
    call = channel.stream_stream(STREAM)()
    for name, fields, _, text in CASES:
        await call.write(ask(name, fields))
        answer: Any = message("ModelStreamInferResponse")()
        answer.ParseFromString(await call.read())
        assert text in answer.error_message
        assert answer.infer_response == message("ModelInferResponse")(id="i")
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_surplus_raw_contents_are_ignored(channel: Any) -> None:
    good = {"inputs": [A], "raw_input_contents": [bytes(8), b"surplus"]}
    answer: Any = message("ModelInferResponse")()
    answer.ParseFromString(await channel.unary_unary(INFER)(ask("plain", good)))
    assert list(answer.raw_output_contents) == [bytes(8)]


UNARY = sorted(path for path, method in methods().items() if not method.streams)


@pytest.mark.parametrize("path", UNARY)
async def test_bytes_that_are_no_message(channel: Any, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(path)(b"\xff" * 9)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (
        caught.value.details() == f"the message is not a valid {methods()[path].request.__name__}"
    )


async def test_a_call_that_there_is_not(channel: Any) -> None:
    for path in ("/x.Y/Z", f"/{SERVICES[0]}/Z", "/grpc.health.v1.Health/Watch"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(path)(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_metadata_without_end(channel: Any) -> None:
    good = ask("plain", {"inputs": [A], "raw_input_contents": [bytes(8)]})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(INFER)(good, metadata=(("x", "y" * (1 << 20)),))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await channel.unary_unary(INFER)(good)


class Endless(ResponseStream):
    """Responses of 64 KiB for as long as somebody takes them."""

    taken = 0

    async def __anext__(self) -> InferResponse:
        await asyncio.sleep(0)
        self.taken += 1
        output = Tensor("Y", DATA_TYPES["UINT8"], (1 << 16,), bytes(1 << 16))
        return InferResponse("plain", 1, "i", (output,), final=False)


async def test_a_client_that_never_reads_is_waited_for(
    server: FakeServer, channel: Any, grpc_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: asyncio.Queue[Endless] = asyncio.Queue()
    abandoned = asyncio.Event()

    async def stream(request: InferRequest) -> ResponseStream:
        started.put_nowait(endless := Endless(abandoned.set))
        return endless

    monkeypatch.setattr(server, "stream", stream)
    call = channel.stream_stream(STREAM)()
    await call.write(ask("plain", {}))
    endless = await asyncio.wait_for(started.get(), 20)
    before = -1
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as other:
        while not 0 < endless.taken == before:  # until it has stopped, which it does early
            before = endless.taken
            assert before < 1000
            for _ in range(100):  # in which a stream without a brake sends hundreds of responses
                await other.unary_unary(f"/{SERVICES[0]}/ServerLive")(b"")
    call.cancel()
    await asyncio.wait_for(abandoned.wait(), 20)
