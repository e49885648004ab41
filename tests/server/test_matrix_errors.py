"""The errors that clients rely on, with Triton's words, over both protocols and from models of
every backend; the server goes on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checked_models import BACKENDS, write_checked
from server_harness import PATIENCE, Answer, Running, ask

from microkernel import encode_bytes

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")
pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

from tritonclient.grpc import service_pb2, service_pb2_grpc  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    """See `write_checked`; `gone` was unloaded again."""
    repository: Path = tmp_path_factory.mktemp("errors") / "models"
    write_checked(repository)
    flags = "--model-control-mode=explicit", "--exit-on-error=false", "--load-model=*"
    running = start_server(repository, *flags)
    assert running.post("/v2/repository/models/gone/unload").status == 200
    return running


Tensor = tuple[str, str, list[int], bytes]

A: Tensor = ("A", "FP32", [1, 3], np.array([1, 2, 3], np.float32).tobytes())
B: Tensor = ("B", "INT32", [1, 2], np.array([4, 5], np.int32).tobytes())
TEXT: Tensor = ("TEXT", "BYTES", [2], encode_bytes([b"one", b"two"]))
MORE: Tensor = ("MORE", "FP32", [1], bytes(4))
INDEX: Tensor = ("INDEX", "INT64", [1], np.int64(7).tobytes())


@dataclass
class Asked:
    """A request."""

    model: str
    tensors: list[Tensor]
    outputs: list[str] = field(default_factory=list)
    version: str = ""
    id: str = ""


def over_http(server: Running, asked: Asked) -> tuple[str, str]:
    """Status and message of a request with binary tensors."""
    entries = [
        {"name": n, "datatype": d, "shape": s, "parameters": {"binary_data_size": len(data)}}
        for n, d, s, data in asked.tensors
    ]
    document: dict[str, Any] = {
        "id": asked.id,
        "inputs": entries,
        "outputs": [{"name": name} for name in asked.outputs],
    }
    header = json.dumps(document).encode()
    version = f"/versions/{asked.version}" if asked.version else ""
    body = header + b"".join(data for *_, data in asked.tensors)
    found = server.post(
        f"/v2/models/{asked.model}{version}/infer",
        body,
        Inference_Header_Content_Length=str(len(header)),
    )
    return str(found.status), "" if found.status == 200 else found.error


def over_grpc(server: Running, asked: Asked) -> tuple[str, str]:
    """Status and details of the same request; sent as a message, for the client library would
    refuse some of them itself."""
    request = service_pb2.ModelInferRequest(
        model_name=asked.model, model_version=asked.version, id=asked.id
    )
    for name, datatype, shape, data in asked.tensors:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(data)
    for name in asked.outputs:
        request.outputs.add(name=name)
    with grpc.insecure_channel(server.grpc_url) as channel:
        try:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=PATIENCE)
        except grpc.RpcError as error:
            return error.code().name, str(error.details())
    return "OK", ""


Send = Callable[[Running, Asked], tuple[str, str]]
SENT: list[Send] = [over_http, over_grpc]
INVALID = ("400", "INVALID_ARGUMENT")
NOT_FOUND = ("404", "NOT_FOUND")
UNAVAILABLE = ("503", "UNAVAILABLE")
FAULTY = ("500", "INTERNAL")


def text(shape: list[int], data: bytes) -> Tensor:
    return ("TEXT", "BYTES", shape, data)


def adder(*tensors: Tensor, outputs: Sequence[str] = ()) -> Asked:
    return Asked("adder_{backend}", list(tensors), list(outputs))


Row = tuple[Asked, tuple[str, str], str]

ADDED: dict[str, Row] = {
    "version unknown": (
        Asked("adder_{backend}", [A, B], version="7"),
        NOT_FOUND,
        "Request for unknown model: 'adder_{backend}' version 7 is not found",
    ),
    "input missing": (
        adder(A),
        INVALID,
        "expected 2 inputs but got 1 inputs for model 'adder_{backend}'. Got input(s) ['A'], but "
        "missing required input(s) ['B']. Please provide all required input(s).",
    ),
    "no inputs": (
        adder(),
        INVALID,
        "expected 2 inputs but got 0 inputs for model 'adder_{backend}'. Got input(s) [], but "
        "missing required input(s) ['A','B']. Please provide all required input(s).",
    ),
    "input name unknown": (
        adder(A, ("C", *B[1:])),
        INVALID,
        "unexpected inference input 'C' for model 'adder_{backend}'",
    ),
    "input repeated": (adder(A, B, A), INVALID, "input 'A' already exists in request"),
    "output name unknown": (
        adder(A, B, outputs=["MEAN"]),
        INVALID,
        "unexpected inference output 'MEAN' for model 'adder_{backend}'",
    ),
    "wrong data type": (
        adder(("A", "INT32", *A[2:]), B),
        INVALID,
        "inference input 'A' data-type is 'INT32', but model 'adder_{backend}' expects 'FP32'",
    ),
    "wrong shape": (
        adder(("A", "FP32", [1, 2], A[3][:8]), B),
        INVALID,
        "unexpected shape for input 'A' for model 'adder_{backend}'. Expected [-1,3], got [1,2]. "
        "NOTE: Setting a non-zero max_batch_size",
    ),
    "batch too large": (
        adder(("A", "FP32", [5, 3], A[3] * 5), ("B", "INT32", [5, 2], B[3] * 5)),
        INVALID,
        "inference request batch-size must be <= 4 for 'adder_{backend}'",
    ),
    "batch differs": (
        adder(A, ("B", "INT32", [2, 2], B[3] * 2)),
        INVALID,
        "batch size does not match other inputs for 'adder_{backend}'",
    ),
    "empty shape": (
        adder(("A", "FP32", [], A[3]), B),
        INVALID,
        "has no shape but model requires batch dimension",
    ),
    "byte count wrong": (
        adder(("A", "FP32", [1, 3], A[3][:8]), B),
        INVALID,
        "input byte size mismatch for input 'A' for model 'adder_{backend}'. Expected 12, got 8",
    ),
    "batch of none": (
        adder(("A", "FP32", [0, 3], b""), ("B", "INT32", [0, 2], b"")),
        INVALID,
        "input byte size mismatch for input 'A' for model 'adder_{backend}'. Expected 12, got 0",
    ),
    "model fails": (Asked("picker_{backend}", [INDEX]), FAULTY, ""),
}
OTHER: dict[str, Row] = {
    "model never seen": (
        Asked("absent", [A]),
        NOT_FOUND,
        "Request for unknown model: 'absent' is not found",
    ),
    "unloaded": (
        Asked("gone", [TEXT]),
        NOT_FOUND,
        "Request for unknown model: 'gone' has no available versions",
    ),
    "load failed": (
        Asked("failed", [TEXT]),
        NOT_FOUND,
        "Request for unknown model: 'failed' has no available versions",
    ),
    "version not ready": (
        Asked("gone", [TEXT], version="1"),
        UNAVAILABLE,
        "Request for unknown model: 'gone' version 1 is not at ready state",
    ),
    "too few with optional": (
        Asked("words", []),
        INVALID,
        "expected number of inputs between 1 and 2 but got 0 inputs for model",
    ),
    "too many with optional": (
        Asked("words", [TEXT, MORE, ("C", *MORE[1:])]),
        INVALID,
        "expected number of inputs between 1 and 2 but got 3 inputs for model",
    ),
    "only the optional": (
        Asked("words", [MORE]),
        INVALID,
        "expected number of inputs between 1 and 2 but got 1 inputs for model 'words'. Got "
        "input(s) ['MORE'], but missing required input(s) ['TEXT'].",
    ),
    "too few strings": (
        Asked("words", [text([2], encode_bytes([b"one"]))]),
        INVALID,
        "expected 2 string elements for inference input 'TEXT' for model 'words', got 1",
    ),
    "too many strings": (
        Asked("words", [text([2], encode_bytes([b"one"] * 3))]),
        INVALID,
        "unexpected number of string elements 3 for inference input 'TEXT' for model 'words', "
        "expecting 2",
    ),
    "length of a string cut": (
        Asked("words", [text([2], TEXT[3] + b"\3\0")]),
        INVALID,
        "incomplete string length indicator for inference input",
    ),
    "string cut": (
        Asked("words", [text([2], TEXT[3][:-1])]),
        INVALID,
        "incomplete string data for inference input 'TEXT'",
    ),
    "string of 4 GiB": (
        Asked("words", [text([2], b"\xff\xff\xff\xff" + TEXT[3])]),
        INVALID,
        "incomplete string data for inference input 'TEXT'",
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("send", SENT)
@pytest.mark.parametrize("row", ADDED)
def test_of_every_backend(server: Running, send: Send, backend: str, row: str) -> None:
    asked, codes, phrase = ADDED[row]
    model = asked.model.format(backend=backend)
    status, message = send(
        server, Asked(model, asked.tensors, asked.outputs, asked.version, asked.id)
    )
    assert status == codes[SENT.index(send)]
    assert phrase.replace("{backend}", backend) in message


@pytest.mark.parametrize("send", SENT)
@pytest.mark.parametrize("row", OTHER)
def test_of_any_model(server: Running, send: Send, row: str) -> None:
    asked, codes, phrase = OTHER[row]
    status, message = send(server, asked)
    assert status == codes[SENT.index(send)]
    assert phrase in message


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("send", "good"), [(over_http, "200"), (over_grpc, "OK")])
def test_the_requests_that_the_wrong_ones_are_made_of(
    server: Running, send: Send, good: str, backend: str
) -> None:
    right = Asked(f"adder_{backend}", [A, B], ["SUM"], version="1", id="x")
    assert send(server, right) == (good, "")
    assert send(server, Asked("words", [TEXT])) == (good, "")
    assert send(server, Asked("words", [MORE, TEXT])) == (good, "")
    last = ("INDEX", "INT64", [1], np.int64(2).tobytes())
    assert send(server, Asked(f"picker_{backend}", [last])) == (good, "")


WORDS_OF_FAILURE = {
    "python": "index 7 is out of bounds for axis 0 with size 3",
    "onnx": "indices element out of data bounds, idx=7",
    "torch": "index 7 is out of bounds for dimension 0 with size 3",
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("send", SENT)
def test_a_failure_has_the_words_of_its_backend(server: Running, send: Send, backend: str) -> None:
    _, message = send(server, Asked(f"picker_{backend}", [INDEX], id="mine"))
    assert WORDS_OF_FAILURE[backend] in message
    assert "[request id" not in message


@pytest.mark.parametrize("send", SENT)
@pytest.mark.parametrize(
    ("identity", "shown"), [("", "<id_unknown>"), ("mine \u00e9", "mine \u00e9")]
)
def test_errors_of_checks_name_the_request(
    server: Running, send: Send, identity: str, shown: str
) -> None:
    wrong = Asked("adder_python", [("A", "FP64", *A[2:]), B], id=identity)
    _, message = send(server, wrong)
    assert message.startswith(f"[request id: {shown}] inference input 'A' data-type is 'FP64'")


@pytest.mark.parametrize("version", ["m", "1x", "1.0", "99999999999999999999"])
def test_a_version_that_is_no_number(server: Running, version: str) -> None:
    asked = Asked("adder_python", [A, B], version=version)
    phrase = "failed to get model version from specified version string"
    status, message = over_grpc(server, asked)
    assert (status, phrase in message) == ("INVALID_ARGUMENT", True)
    status, message = over_http(server, asked)
    if version.isdigit():
        assert (status, phrase in message) == ("400", True)
    else:
        assert (status, message) == ("404", "Not Found")


def test_dimensions_must_be_specified_over_grpc(server: Running) -> None:
    status, message = over_grpc(server, Asked("adder_python", [A, ("B", "INT32", [1, -1], B[3])]))
    assert status == "INVALID_ARGUMENT"
    assert "All input dimensions should be specified for input" in message


INFER = "/v2/models/adder_python/infer"


def of_shape(shape: str, data: str = "[1]") -> str:
    return f'{{"inputs":[{{"name":"A","datatype":"FP32","shape":{shape},"data":{data}}}]}}'


@pytest.mark.parametrize(
    ("body", "status", "phrase"),
    [
        ("{", 500, "failed to parse the request JSON buffer: Missing a name for object member"),
        ('{"inputs":[', 500, "failed to parse the request JSON buffer: Invalid value. at 11"),
        (" ", 500, "failed to parse the request JSON buffer: The document is empty. at 1"),
        ("{}", 500, "attempt to access non-existing object member 'inputs'"),
        ('{"inputs":[{}]}', 400, "Input must set only one of the following fields"),
        (
            '{"inputs":[{"data":[]}]}',
            *(500, "attempt to access non-existing object member 'name'"),
        ),
        (
            '{"inputs":[{"name":"A","data":[]}]}',
            *(500, "attempt to access non-existing object member 'datatype'"),
        ),
        (
            '{"inputs":[{"name":"A","datatype":"FP32","data":[]}]}',
            *(500, "attempt to access non-existing object member 'shape'"),
        ),
        (
            of_shape("[1,3]", '["x"]'),
            *(500, "Unable to parse 'data': attempt to access JSON non-number as double"),
        ),
        (of_shape("[1,3]", "[1,2]"), 500, "Failed to parse 'data' field: shape does not match"),
        (of_shape("[1,3]", "[1,2,3,4]"), 500, "Shape does not match true shape of 'data' field"),
        (of_shape("[-1,3]"), 500, "attempt to access JSON non-unsigned-integer"),
        (of_shape("[1.0,3]"), 500, "attempt to access JSON non-unsigned-integer"),
        (
            of_shape("[4294967296,4294967296]"),
            *(400, "causes total element count to exceed maximum size of"),
        ),
        (of_shape("[4611686018427387904]"), 400, "byte size overflow for input"),
        ('{"id":1,"inputs":[]}', 500, "Unable to parse 'id'"),
        (
            '{"inputs":[],"parameters":{"triton_x":1}}',
            *(400, "parameter keys starting with 'triton_' are reserved for Triton usage"),
        ),
        ('{"inputs":[],"parameters":{"x":null}}', 400, "parameter 'x' has invalid type"),
        (
            '{"inputs":[],"outputs":[{"name":"SUM"},{"name":"SUM"}]}',
            *(400, "output 'SUM' already exists in request"),
        ),
    ],
)
def test_json_that_is_wrong(server: Running, body: str, status: int, phrase: str) -> None:
    found = server.post(INFER, body.encode())
    assert (found.status, phrase in found.error) == (status, True), found.body


def test_a_message_that_is_none(server: Running) -> None:
    with grpc.insecure_channel(server.grpc_url) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", None, None)
        with pytest.raises(grpc.RpcError) as raised:
            call(b"\x0a\xff", timeout=PATIENCE)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("action", ["load", "unload"])
def test_a_repository_cannot_be_named(server: Running, action: str) -> None:
    found = server.post(f"/v2/repository/mine/models/words/{action}")
    phrase = "'repository_name' specification is not supported"
    assert (found.status, phrase in found.error) == (501, True)
    name = f"RepositoryModel{action.capitalize()}"
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = getattr(service_pb2, f"{name}Request")(repository_name="x", model_name="words")
        with pytest.raises(grpc.RpcError) as raised:
            getattr(stub, name)(request, timeout=PATIENCE)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert phrase in raised.value.details()


WORDS_X = "/v2/models/words/versions/x"


@pytest.mark.parametrize("path", ["/", "/v2/", "/v3", WORDS_X, f"{WORDS_X}/infer", "/%00"])
def test_no_such_route(server: Running, path: str) -> None:
    found = server.get(path)
    assert (found.status, found.error) == (404, "Not Found")


@pytest.mark.parametrize("service", ["inference.GRPCInferenceService", "inference.Other"])
def test_no_such_call(server: Running, service: str) -> None:
    with grpc.insecure_channel(server.grpc_url) as channel:
        call = channel.unary_unary(f"/{service}/ModelTrain", None, None)
        with pytest.raises(grpc.RpcError) as raised:
            call(b"", timeout=PATIENCE)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", INFER, "POST"),
        ("DELETE", "/v2/models/words", "GET"),
        ("POST", "/v2/health/live", "GET"),
        ("POST", "/v2/models/stats", "GET"),
        ("GET", "/v2/repository/index", "POST"),
        ("GET", "/v2/systemsharedmemory/region/r/register", "POST"),
        ("PUT", "/v2/logging", "GET, POST"),
        ("OPTIONS", "/v2/models/words/trace/setting", "GET, POST"),
    ],
)
def test_methods_that_a_path_does_not_know(
    server: Running, method: str, path: str, allowed: str
) -> None:
    found = ask(server.http, method, path)
    assert (found.status, found.error) == (405, "Method Not Allowed")
    assert found.headers["allow"] == allowed


def test_a_method_that_the_metrics_page_does_not_know(server: Running) -> None:
    found: Answer = ask(server.ports["Metrics"], "POST", "/metrics")
    assert (found.status, found.headers["allow"]) == (405, "GET")
