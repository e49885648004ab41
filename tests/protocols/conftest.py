"""Canned models, and front ends on free ports of 127.0.0.1."""

from collections.abc import AsyncIterator

import numpy as np
import pytest

from microkernel import (
    InferRequest,
    InferResponse,
    Internal,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Tensor,
    TransactionPolicy,
)
from microkernel.testing import FakeModel, FakeServer

NUMBERS = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
TYPES = (*NUMBERS, "FP16", "FP32", "FP64")


def _inputs(*names: str, kind: str, dims: tuple[int, ...]) -> tuple[ModelInput, ...]:
    return tuple(ModelInput(name=name, data_type=kind, dims=dims) for name in names)


def _outputs(*names: str, kind: str, dims: tuple[int, ...]) -> tuple[ModelOutput, ...]:
    return tuple(ModelOutput(name=name, data_type=kind, dims=dims) for name in names)


def _answer(request: InferRequest, *outputs: Tensor) -> InferResponse:
    wanted = request.outputs
    kept = tuple(output for output in outputs if not wanted or output.name in wanted)
    return InferResponse(request.model_name, request.version, request.id, kept)


async def _add_and_subtract(config: ModelConfig, request: InferRequest) -> InferResponse:
    a, b = request.inputs[0].as_numpy(), request.inputs[1].as_numpy()
    if a.flat[0] < 0:
        raise Internal("A starts below zero")
    return _answer(request, Tensor.from_numpy("SUM", a + b), Tensor.from_numpy("DIFF", a - b))


async def _upper(config: ModelConfig, request: InferRequest) -> InferResponse:
    text = request.inputs[0].as_numpy()
    upper = np.array([t.upper() for t in text.reshape(-1)], dtype=np.object_)
    length = np.array([len(t) for t in text.reshape(-1)], dtype=np.int64)
    return _answer(
        request,
        Tensor.from_numpy("UPPER", upper.reshape(text.shape)),
        Tensor.from_numpy("LENGTH", length.reshape(text.shape)),
    )


async def _types(config: ModelConfig, request: InferRequest) -> InferResponse:
    outputs = [Tensor(f"{t.name}_OUT", t.datatype, t.shape, t.data) for t in request.inputs]
    return _answer(request, *outputs)


def _models() -> list[FakeModel]:
    identity = ModelConfig(
        name="identity",
        backend="python",
        max_batch_size=8,
        input=_inputs("INPUT0", kind="TYPE_FP32", dims=(-1,)),
        output=_outputs("OUTPUT0", kind="TYPE_FP32", dims=(-1,)),
    )
    addsub = ModelConfig(
        name="addsub",
        backend="python",
        input=_inputs("A", "B", kind="TYPE_INT32", dims=(4,)),
        output=_outputs("SUM", "DIFF", kind="TYPE_INT32", dims=(4,)),
    )
    strings = ModelConfig(
        name="strings",
        backend="python",
        max_batch_size=4,
        input=_inputs("TEXT", kind="TYPE_STRING", dims=(-1,)),
        output=(
            *_outputs("UPPER", kind="TYPE_STRING", dims=(-1,)),
            *_outputs("LENGTH", kind="TYPE_INT64", dims=(-1,)),
        ),
    )
    types = ModelConfig(
        name="types",
        backend="python",
        input=tuple(ModelInput(name=t, data_type=f"TYPE_{t}", dims=(-1,)) for t in TYPES),
        output=tuple(
            ModelOutput(name=f"{t}_OUT", data_type=f"TYPE_{t}", dims=(-1,)) for t in TYPES
        ),
    )
    stream = ModelConfig(
        name="stream", backend="python", model_transaction_policy=TransactionPolicy(decoupled=True)
    )
    return [
        FakeModel(identity),
        FakeModel(addsub, _add_and_subtract),
        FakeModel(strings, _upper),
        FakeModel(types, _types),
        FakeModel(stream),
    ]


@pytest.fixture
def server() -> FakeServer:
    return FakeServer(_models())


@pytest.fixture
async def http_port(server: FakeServer) -> AsyncIterator[int]:
    pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
    from microkernel_http.frontend import HttpFrontend
    from microkernel_http.settings import HttpSettings

    frontend = HttpFrontend(server, HttpSettings(address="127.0.0.1", port=0))
    line = await frontend.start()
    assert line == f"Started HTTPService at 127.0.0.1:{frontend.port}"
    yield frontend.port
    await frontend.stop(5)


@pytest.fixture
async def grpc_port(server: FakeServer) -> AsyncIterator[int]:
    pytest.importorskip("grpc", reason="the extra 'grpc' is missing")
    from microkernel_grpc.frontend import GrpcFrontend
    from microkernel_grpc.settings import GrpcSettings

    frontend = GrpcFrontend(server, GrpcSettings(address="127.0.0.1", port=0))
    line = await frontend.start()
    assert line == f"Started GRPCInferenceService at 127.0.0.1:{frontend.port}"
    yield frontend.port
    await frontend.stop(5)
