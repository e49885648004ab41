"""What clients send wrong comes back as an error with the right code and Triton's words, over both
protocols; the server goes on."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from server_harness import Running, write_python_model

pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")

CONFIG = """
max_batch_size: 4
input [
  { name: "A" data_type: TYPE_FP32 dims: [ 3 ] },
  { name: "B" data_type: TYPE_INT32 dims: [ -1 ] }
]
output { name: "SUM" data_type: TYPE_FP32 dims: [ 3 ] }
"""
BODY = """
def execute(self, requests):
    return [answer(SUM=read(r, "A") + read(r, "B").sum(dtype=np.float32)) for r in requests]
"""

Tensor = tuple[str, str, list[int], bytes]

A: Tensor = ("A", "FP32", [1, 3], np.array([1, 2, 3], np.float32).tobytes())
B: Tensor = ("B", "INT32", [1, 2], np.array([4, 5], np.int32).tobytes())


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    repository = tmp_path_factory.mktemp("requests") / "models"
    write_python_model(repository, "adder", CONFIG, BODY)
    return start_server(repository)


def over_http(
    server: Running, model: str, version: str, tensors: list[Tensor], outputs: list[str]
) -> tuple[str, str]:
    """Status and message of a request with binary tensors."""
    entries = [
        {"name": n, "datatype": d, "shape": s, "parameters": {"binary_data_size": len(data)}}
        for n, d, s, data in tensors
    ]
    document: dict[str, Any] = {"inputs": entries, "outputs": [{"name": n} for n in outputs]}
    header = json.dumps(document).encode()
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
    body = header + b"".join(data for *_, data in tensors)
    found = server.post(path, body, Inference_Header_Content_Length=str(len(header)))
    return str(found.status), "" if found.status == 200 else found.error


def over_grpc(
    server: Running, model: str, version: str, tensors: list[Tensor], outputs: list[str]
) -> tuple[str, str]:
    """Status and details of the same request; sent as messages, for the client library would
    refuse some of them itself."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for name, datatype, shape, data in tensors:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(data)
    for name in outputs:
        request.outputs.add(name=name)
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            stub.ModelInfer(request, timeout=30)
        except grpc.RpcError as error:
            return error.code().name, str(error.details())
    return "OK", ""


CASES: dict[str, tuple[tuple[str, str, list[Tensor], list[str]], str, str, str]] = {
    "unknown model": (
        ("absent", "", [A, B], []),
        *("404", "NOT_FOUND", "Request for unknown model: 'absent' is not found"),
    ),
    "unknown version": (
        ("adder", "7", [A, B], []),
        *("404", "NOT_FOUND", "Request for unknown model: 'adder' version 7 is not found"),
    ),
    "missing input": (
        ("adder", "", [A], []),
        *("400", "INVALID_ARGUMENT"),
        "expected 2 inputs but got 1 inputs for model 'adder'. Got input(s) ['A'], but missing "
        "required input(s) ['B']. Please provide all required input(s).",
    ),
    "unknown input": (
        ("adder", "", [A, ("C", *B[1:])], []),
        *("400", "INVALID_ARGUMENT", "unexpected inference input 'C' for model 'adder'"),
    ),
    "repeated input": (
        ("adder", "", [A, B, A], []),
        *("400", "INVALID_ARGUMENT", "input 'A' already exists in request"),
    ),
    "unknown output": (
        ("adder", "", [A, B], ["MEAN"]),
        *("400", "INVALID_ARGUMENT", "unexpected inference output 'MEAN' for model 'adder'"),
    ),
    "wrong data type": (
        ("adder", "", [("A", "INT32", *A[2:]), B], []),
        *("400", "INVALID_ARGUMENT"),
        "inference input 'A' data-type is 'INT32', but model 'adder' expects 'FP32'",
    ),
    "wrong shape": (
        ("adder", "", [("A", "FP32", [1, 2], A[3][:8]), B], []),
        *("400", "INVALID_ARGUMENT"),
        "unexpected shape for input 'A' for model 'adder'. Expected [-1,3], got [1,2]. "
        "NOTE: Setting a non-zero max_batch_size",
    ),
    "wrong byte size": (
        ("adder", "", [("A", "FP32", [1, 3], A[3][:8]), B], []),
        *("400", "INVALID_ARGUMENT"),
        "input byte size mismatch for input 'A' for model 'adder'. Expected 12, got 8",
    ),
    "batch too large": (
        ("adder", "", [("A", "FP32", [5, 3], A[3] * 5), ("B", "INT32", [5, 2], B[3] * 5)], []),
        *("400", "INVALID_ARGUMENT", "inference request batch-size must be <= 4 for 'adder'"),
    ),
    "batch of none": (
        ("adder", "", [("A", "FP32", [0, 3], b""), ("B", "INT32", [0, 2], b"")], []),
        *("400", "INVALID_ARGUMENT"),
        "input byte size mismatch for input 'A' for model 'adder'. Expected 12, got 0",
    ),
    "batches differ": (
        ("adder", "", [A, ("B", "INT32", [2, 2], B[3] * 2)], []),
        *("400", "INVALID_ARGUMENT", "batch size does not match other inputs for 'adder'"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_request_over_http(server: Running, case: str) -> None:
    request, status, _, phrase = CASES[case]
    found, message = over_http(server, *request)
    assert found == status
    assert phrase in message


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_request_over_grpc(server: Running, case: str) -> None:
    request, _, status, phrase = CASES[case]
    found, message = over_grpc(server, *request)
    assert found == status
    assert phrase in message


@pytest.mark.parametrize(("send", "good"), [(over_http, "200"), (over_grpc, "OK")])
def test_the_request_that_the_wrong_ones_were_made_of_is_right(
    server: Running, send: Callable[..., tuple[str, str]], good: str
) -> None:
    assert send(server, "adder", "1", [A, B], ["SUM"]) == (good, "")


@pytest.mark.parametrize(
    ("body", "status", "phrase"),
    [
        (b"{", 500, "failed to parse the request JSON buffer: Missing a name for object member"),
        (b'{"inputs":[', 500, "failed to parse the request JSON buffer: Invalid value. at 11"),
        (b"{}", 500, "attempt to access non-existing object member 'inputs'"),
        (
            b'{"inputs":[{"name":"A","datatype":"FP32","shape":[1,3],"data":["x"]}]}',
            *(500, "Unable to parse 'data': attempt to access JSON non-number as double"),
        ),
    ],
)
def test_broken_json(server: Running, body: bytes, status: int, phrase: str) -> None:
    found = server.post("/v2/models/adder/infer", body)
    assert found.status == status
    assert phrase in found.error


def test_broken_protobuf_over_grpc(server: Running) -> None:
    import grpc

    with grpc.insecure_channel(server.grpc_url) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", None, None)
        with pytest.raises(grpc.RpcError) as raised:
            call(b"\x0a\xff", timeout=30)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_version_that_is_no_number(server: Running) -> None:
    assert server.get("/v2/models/adder/versions/x").status == 404
    status, message = over_grpc(server, "adder", "x", [A, B], [])
    assert status == "INVALID_ARGUMENT"
    assert "failed to get model version from specified version string" in message
