"""What the tables of facts about gRPC share: messages for the models of the facts."""

import importlib
import struct
from collections.abc import Callable
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")
pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")

service_pb2: Any = importlib.import_module("tritonclient.grpc.service_pb2")
service_pb2_grpc: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")
Code = grpc.StatusCode
Infer = service_pb2.ModelInferRequest
PATIENCE = 30


def refused(call: Callable[[], object], code: Any, phrase: str) -> None:
    """A call that must end with this code, and a message that holds the phrase."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    assert raised.value.code() is code, raised.value.details()
    assert phrase in raised.value.details()


def add(request: Any, name: str, datatype: str, shape: list[int], raw: bytes | None = None) -> Any:
    """Add an input, with its raw data if there is any; the input."""
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request.inputs.add(name=name, datatype=datatype, shape=shape)


def echo(raw: bytes | None = None, shape: tuple[int, ...] = (1, 2), **fields: Any) -> Any:
    """A request for the model echo."""
    request = Infer(model_name="echo", **fields)
    add(request, "X", "FP32", list(shape), struct.pack("<2f", 1, 2) if raw is None else raw)
    return request


def pair(*first: int, **fields: Any) -> Any:
    """A request for the model pair, whose first element of A is given."""
    request = Infer(model_name="pair", **fields)
    for name, values in (("A", (*first, 0, 0, 0, 0)[:4]), ("B", (10, 20, 30, 40))):
        add(request, name, "INT32", [4], struct.pack("<4i", *values))
    return request


def many(count: int, **fields: Any) -> Any:
    """A request for a number of responses."""
    request = Infer(model_name="many", **fields)
    add(request, "COUNT", "INT32", [1], struct.pack("<i", count))
    return request


def parameter(request: Any, key: str, **value: Any) -> Any:
    """A request with one parameter more."""
    request.parameters[key].CopyFrom(service_pb2.InferParameter(**value))
    return request


def named(kind: str, **fields: Any) -> Any:
    """A request message of the service."""
    return getattr(service_pb2, f"{kind}Request")(**fields)
