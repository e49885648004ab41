"""Many elements in typed fields do not keep the loop from other clients."""

import threading
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")

from microkernel_grpc.decode import decode  # noqa: E402 - after the check above
from microkernel_grpc.schema import message  # noqa: E402

INFER = "/inference.GRPCInferenceService/ModelInfer"
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
    asked: Any = message("ModelInferRequest")(model_name="identity")
    tensor = asked.inputs.add(name="INPUT0", datatype="FP32", shape=[1, elements])
    tensor.contents.fp32_contents.extend([1.5] * elements)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        packed = await channel.unary_unary(INFER)(asked.SerializeToString())
    answer: Any = message("ModelInferResponse")()
    answer.ParseFromString(packed)
    assert len(answer.raw_output_contents[0]) == 4 * elements
    assert threads == [not elsewhere]
