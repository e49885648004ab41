"""Long messages do not keep the loop from other clients, nor do those of many parts."""

import threading
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")

from microkernel_grpc.decode import decode, parse  # noqa: E402 - after the check above
from microkernel_grpc.schema import message  # noqa: E402

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
MANY = 100_000


@pytest.mark.parametrize(("elements", "elsewhere"), [(2, False), (MANY, True)])
async def test_where_elements_are_converted(
    grpc_port: int, monkeypatch: pytest.MonkeyPatch, elements: int, elsewhere: bool
) -> None:
    threads = []

    def watched(*arguments: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return decode(*arguments)

    monkeypatch.setattr("microkernel_grpc.inference.decode", watched)
    infer: Any = message("ModelInferRequest")(model_name="identity")
    tensor = infer.inputs.add(name="INPUT0", datatype="FP32", shape=[1, elements])
    tensor.contents.fp32_contents.extend([1.5] * elements)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        packed = await channel.unary_unary(INFER)(infer.SerializeToString())
    answer: Any = message("ModelInferResponse")()
    answer.ParseFromString(packed)
    assert len(answer.raw_output_contents[0]) == 4 * elements
    assert threads == [not elsewhere]


def empties(number: int, count: int) -> bytes:
    """Fields of a message with nothing in them."""
    return bytes([number << 3 | 2, 0]) * count


def read_answer(packed: bytes) -> Any:
    return message("ModelStreamInferResponse").FromString(packed)


def asked(**fields: Any) -> bytes:
    given = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 1]}
    packed: bytes = message("ModelInferRequest")(
        model_name="identity", inputs=[given], **fields
    ).SerializeToString()
    return packed


@pytest.mark.parametrize("surplus", [empties(7, MANY), empties(6, MANY), empties(4, MANY)])
async def test_more_parts_than_any_model_has_are_refused(grpc_port: int, surplus: bytes) -> None:
    packed = asked(raw_input_contents=[bytes(4)]) + surplus
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        with pytest.raises(grpc.RpcError) as raised:
            await channel.unary_unary(INFER)(packed)
        call = channel.stream_stream(STREAM)(iter([packed]))
        answers = [read_answer(each) async for each in call]
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "the message has more than 65536 fields" in raised.value.details()
    assert [each.error_message for each in answers] == [raised.value.details()]


async def test_a_message_is_long_beside_its_raw_contents(
    grpc_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def watched(packed: bytes) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return parse(packed)

    monkeypatch.setattr("microkernel_grpc.inference.parse", watched)
    long = {"long": {"string_param": "x" * (300 << 10)}}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        call = channel.unary_unary(INFER)
        await call(asked(raw_input_contents=[bytes(4), bytes(300 << 10)]))
        assert threads == []
        await call(asked(raw_input_contents=[bytes(4)], parameters=long))
        assert threads == [False]
        await call(asked(raw_input_contents=[bytes(4)]) + empties(7, 20_000))
        assert threads == [False, False]


@pytest.mark.parametrize(
    ("name", "packed", "phrase"),
    [
        ("TraceSetting", empties(1, 1 << 20), "has 2097152 bytes, expected no more than 1048576"),
        ("ModelReady", empties(1, 1 << 20), "has 2097152 bytes, expected no more than 1048576"),
        ("RepositoryModelLoad", empties(3, 1 << 20), "has more than 65536 parameters"),
    ],
)
async def test_other_calls_with_more_than_any_needs(
    grpc_port: int, name: str, packed: bytes, phrase: str
) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        with pytest.raises(grpc.RpcError) as raised:
            await channel.unary_unary(f"/inference.GRPCInferenceService/{name}")(packed)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert phrase in raised.value.details()
