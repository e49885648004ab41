"""The rules of the forms that tensors are sent in, each at a real model: JSON elements, typed
fields, forms of outputs, empty tensors, scalars and strings that are no text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from identity_models import write_identity
from server_harness import PATIENCE, Answer, Running

from microkernel import DATA_TYPES, encode_bytes

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")
clients = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

from tritonclient.grpc import service_pb2, service_pb2_grpc  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

SCALAR = """
backend: "onnxruntime"
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
"""


def write_scalar(repository: Path) -> None:
    """An ONNX graph whose input and output have no dimensions: y = x + x."""
    onnx = pytest.importorskip("onnx", reason="onnx, of the group 'dev', is missing")
    helper = onnx.helper
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", *zip(values))
    (repository / "scalar" / "1").mkdir(parents=True)
    (repository / "scalar" / "config.pbtxt").write_text(SCALAR)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, repository / "scalar" / "1" / "model.onnx")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    repository = tmp_path_factory.mktemp("rules") / "models"
    for form in ("plain", "batching"):
        write_identity(repository, f"any_{form}", "python", form, [*DATA_TYPES], "optional: true")
    for backend in ("onnx", "torch"):
        pytest.importorskip("onnxruntime", reason="the extra 'onnx' is missing")
        pytest.importorskip("torch", reason="the extra 'torchscript' is missing")
        write_identity(repository, f"{backend}_words", backend, "plain", ["BYTES"])
        write_identity(repository, f"{backend}_floats", backend, "plain", ["FP32"])
    write_scalar(repository)
    return start_server(repository)


def tensor(kind: str, shape: list[int], **more: Any) -> dict[str, Any]:
    return {"name": f"IN_{kind}", "datatype": kind, "shape": shape, **more}


def post(
    server: Running, model: str, inputs: list[Any], binary: bytes = b"", **more: Any
) -> Answer:
    """An infer request over HTTP, with the bytes of its binary inputs."""
    head = json.dumps({"inputs": inputs, **more}).encode()
    length = str(len(head))
    return server.post(
        f"/v2/models/{model}/infer", head + binary, Inference_Header_Content_Length=length
    )


def data_of(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return answer.json["outputs"][0]["data"]


def binary_of(answer: Answer) -> bytes:
    assert answer.status == 200, answer.body
    return answer.body[int(answer.headers["inference-header-content-length"]) :]


@pytest.mark.parametrize(
    ("kind", "data", "found"),
    [
        ("FP32", "[NaN,Infinity,-Infinity,Inf]", "[NaN,Infinity,-Infinity,Infinity]"),
        ("FP64", "[NaN,Infinity,-Infinity,-0.0]", "[NaN,Infinity,-Infinity,-0.0]"),
        ("FP32", "[0.1,1,-2,1e300]", "[0.10000000149011612,1.0,-2.0,Infinity]"),
        ("INT8", "[300,-129,127,-128]", "[44,127,127,-128]"),
        ("UINT16", "[65536,65537,65535,0]", "[0,1,65535,0]"),
        ("INT32", "[[1,[2]],[[[3]]],4]", "[1,2,3,4]"),
        ("INT64", "[9223372036854775807,-9223372036854775808,0,1]", ""),
        ("UINT64", "[18446744073709551615,9223372036854775808,0,1]", ""),
        ("BOOL", "[true,false,true,true]", ""),
        ("BYTES", r'["a\u0000b","\u00e9\ud83d\ude00","","\\"]', '["a\\u0000b","é😀","","\\\\"]'),
        ("INT32", "[" * 100 + "1,2,3,4" + "]" * 100, "[1,2,3,4]"),
    ],
)
def test_json_elements(server: Running, kind: str, data: str, found: str) -> None:
    body = f'{{"inputs":[{{"name":"IN_{kind}","datatype":"{kind}","shape":[2,2],"data":{data}}}]}}'
    answer = server.post("/v2/models/any_plain/infer", body.encode())
    assert answer.status == 200, answer.body
    assert f'"shape":[2,2],"data":{found or data}'.encode() in answer.body


KINDS = {"BOOL": "boolean", "BYTES": "string", "FP32": "number", "FP64": "number"}


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *(("BOOL", wrong) for wrong in ("1", "0.0", '"true"', "null", "{}")),
        *(("INT32", wrong) for wrong in ("1.0", "true", '"1"', "null", "9223372036854775808")),
        *(("INT8", wrong) for wrong in ("1e0", "NaN", "-0.0")),
        *(("UINT8", wrong) for wrong in ("-1", "1.5", "false", "18446744073709551616")),
        *(("UINT64", wrong) for wrong in ("-1", "18446744073709551616")),
        *(("FP32", wrong) for wrong in ('"1"', "true", "null", '"NaN"', "{}")),
        *(("FP64", wrong) for wrong in ('""', "null")),
        *(("BYTES", wrong) for wrong in ("1", "null", "true", "{}")),
    ],
)
def test_json_elements_are_not_converted(server: Running, kind: str, wrong: str) -> None:
    unsigned = "unsigned-integer" if kind[0] == "U" else "signed-integer"
    good = {"BOOL": "true", "BYTES": '"x"'}.get(kind, "1")
    answer = server.post(
        "/v2/models/any_plain/infer",
        f'{{"inputs":[{{"name":"IN_{kind}","datatype":"{kind}","shape":[1,2],'
        f'"data":[{good},{wrong}]}}]}}'.encode(),
    )
    named = KINDS.get(kind, unsigned)
    wanted = "double" if named == "number" else named
    assert answer.status == 500
    assert f"attempt to access JSON non-{named} as {wanted}" in answer.error


@pytest.mark.parametrize("kind", ["FP16", "BF16"])
def test_half_precision_needs_a_binary_form(server: Running, kind: str) -> None:
    bits = np.array([0x3F80, 0x8001], np.uint16).tobytes()
    answer = post(server, "any_plain", [tensor(kind, [1, 2], data=[1, 2])])
    assert answer.status == 400
    assert answer.error == (
        f"receiving {kind} data via JSON is not supported. "
        f"Please use the binary data format for input IN_{kind}"
    )
    given = [tensor(kind, [1, 2], parameters={"binary_data_size": 4})]
    answer = post(server, "any_plain", given, bits)
    assert answer.status == 400
    assert f"sending {kind} data via JSON is not supported" in answer.error
    outputs = [{"name": f"OUT_{kind}", "parameters": {"binary_data": True}}]
    assert binary_of(post(server, "any_plain", given, bits, outputs=outputs)) == bits


Typed = Callable[[Any], None]


def over_grpc(server: Running, fill: Typed, model: str = "any_plain") -> tuple[str, Any]:
    """Status with the response, or the status and details of an error."""
    request = service_pb2.ModelInferRequest(model_name=model)
    fill(request)
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            return "OK", stub.ModelInfer(request, timeout=PATIENCE)
        except grpc.RpcError as error:
            return error.code().name, str(error.details())


def typed(kind: str, shape: list[int], **fields: list[Any]) -> Typed:
    """An input in typed fields."""

    def fill(request: Any) -> None:
        entry = request.inputs.add(name=f"IN_{kind}", datatype=kind, shape=shape)
        entry.contents.SetInParent()
        for name, values in fields.items():
            getattr(entry.contents, name).extend(values)

    return fill


def raw(kind: str, shape: list[int], *contents: bytes) -> Typed:
    """An input, and any number of raw contents."""

    def fill(request: Any) -> None:
        request.inputs.add(name=f"IN_{kind}", datatype=kind, shape=shape)
        request.raw_input_contents.extend(contents)

    return fill


def together(*fills: Typed) -> Typed:
    def fill(request: Any) -> None:
        for each in fills:
            each(request)

    return fill


def test_small_integers_are_the_low_bytes_of_typed_fields(server: Running) -> None:
    status, found = over_grpc(server, typed("INT8", [1, 2], int_contents=[300, -129]))
    assert (status, list(found.raw_output_contents)) == ("OK", [bytes([44, 127])])
    assert not found.outputs[0].HasField("contents")


def test_surplus_raw_contents_are_left_alone(server: Running) -> None:
    status, found = over_grpc(server, raw("INT8", [1, 2], b"ab", b"more", b""))
    assert (status, list(found.raw_output_contents)) == ("OK", [b"ab"])


@pytest.mark.parametrize(
    ("fill", "phrase"),
    [
        (
            together(typed("INT8", [1, 2], int_contents=[1, 2]), raw("INT16", [1, 2], b"abcd")),
            "contents field must not be specified when using raw_input_contents",
        ),
        (
            typed("INT32", [1, 2], int64_contents=[1, 2]),
            "unexpected explicit tensor data for input tensor 'IN_INT32' for model 'any_plain' of "
            "type 'INT32', expected datatype 'INT64'",
        ),
        (
            typed("FP16", [1, 2], fp32_contents=[1, 2]),
            "unexpected explicit tensor data for input tensor 'IN_FP16' for model 'any_plain' of "
            "type 'FP16', expected datatype 'FP32'",
        ),
        (
            typed("INT32", [1, 2], int_contents=[1, 2], uint_contents=[1, 2]),
            "binary data was already supplied",
        ),
        (raw("INT8", [1, 2]), "unable to find data for input tensor 'IN_INT8'"),
        (
            together(raw("INT8", [1, 2], b"ab"), raw("INT16", [1, 2])),
            "unable to find data for input tensor 'IN_INT16'",
        ),
        (typed("INT8", [1, 2]), "input byte size mismatch"),
        (typed("INT8", [1, 2], int_contents=[1]), "input byte size mismatch"),
        (raw("FP31", [1, 2], b"ab"), "unexpected inference input 'IN_FP31'"),
    ],
)
def test_typed_fields_and_raw_contents_that_are_wrong(
    server: Running, fill: Typed, phrase: str
) -> None:
    status, details = over_grpc(server, fill)
    assert status == "INVALID_ARGUMENT"
    assert phrase in details


def test_the_forms_of_outputs(server: Running) -> None:
    pair = [tensor("INT8", [1, 2], data=[1, 2]), tensor("INT32", [1, 2], data=[3, 4])]
    every = post(server, "any_plain", pair)
    assert [o["data"] for o in every.json["outputs"]] == [[1, 2], [3, 4]]
    assert "inference-header-content-length" not in every.headers
    raw_all = post(server, "any_plain", pair, parameters={"binary_data_output": True})
    assert binary_of(raw_all) == bytes([1, 2, 3, 0, 0, 0, 4, 0, 0, 0])
    listed = post(
        server,
        "any_plain",
        pair,
        parameters={"binary_data_output": True},
        outputs=[
            {"name": "OUT_INT32", "parameters": {"binary_data": True}},
            {"name": "OUT_INT8"},
        ],
    )
    assert binary_of(listed) == bytes([3, 0, 0, 0, 4, 0, 0, 0])
    head = json.loads(listed.body[: -len(binary_of(listed))])
    forms = {o["name"]: "data" in o for o in head["outputs"]}
    assert forms == {"OUT_INT32": False, "OUT_INT8": True}


@pytest.mark.parametrize("kind", DATA_TYPES)
def test_empty_tensors(server: Running, kind: str) -> None:
    for model, shape in (("any_plain", [0, 2]), ("any_batching", [3, 0])):
        sources: list[dict[str, Any]] = [{"data": []}, {"parameters": {"binary_data_size": 0}}]
        for given in sources:
            outputs = [{"name": f"OUT_{kind}", "parameters": {"binary_data": True}}]
            answer = post(server, model, [tensor(kind, shape, **given)], outputs=outputs)
            assert answer.status == 200, answer.body
            [output] = answer.json["outputs"]  # without binary data that is all of the body
            assert (output["shape"], output["parameters"]) == (shape, {"binary_data_size": 0})
        for fill in (typed(kind, shape), raw(kind, shape, b"")):
            status, found = over_grpc(server, fill, model)
            assert (status, list(found.outputs[0].shape)) == ("OK", shape)
            assert list(found.raw_output_contents) == [b""]


@pytest.mark.parametrize("rows", [1, 7, 4097])
@pytest.mark.parametrize("model", ["any_plain", "onnx_floats", "torch_floats"])
def test_a_dimension_that_varies(server: Running, model: str, rows: int) -> None:
    data = np.arange(2 * rows, dtype=np.float32).tobytes()
    given = [tensor("FP32", [rows, 2], parameters={"binary_data_size": len(data)})]
    every = {"binary_data_output": True}
    assert binary_of(post(server, model, given, data, parameters=every)) == data
    status, found = over_grpc(server, raw("FP32", [rows, 2], data), model)
    assert (status, list(found.raw_output_contents)) == ("OK", [data])


def test_a_model_of_scalars_takes_one_element(server: Running) -> None:
    one = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.5]}
    answer = post(server, "scalar", [one])
    assert (data_of(answer), answer.json["outputs"][0]["shape"]) == ([3.0], [1])


@pytest.mark.parametrize(
    ("model", "kind", "name", "phrase"),
    [
        ("scalar", "FP32", "x", "unexpected shape for input 'x' for model 'scalar'. Expected [1]"),
        ("any_plain", "FP32", "IN_FP32", "Expected [-1,2], got []"),
        ("any_plain", "BYTES", "IN_BYTES", "Expected [-1,2], got []"),
        ("any_batching", "FP32", "IN_FP32", "has no shape but model requires batch dimension"),
    ],
)
def test_no_shape_is_the_shape_of_no_input(
    server: Running, model: str, kind: str, name: str, phrase: str
) -> None:
    answer = post(server, model, [{"name": name, "datatype": kind, "shape": [], "data": ["x"]}])
    assert (answer.status, phrase in answer.error) == (400, True), answer.error

    def fill(request: Any) -> None:
        request.inputs.add(name=name, datatype=kind)
        request.raw_input_contents.append(b"abcd")

    status, details = over_grpc(server, fill, model)
    assert (status, phrase in details) == ("INVALID_ARGUMENT", True), details


NO_TEXT = [b"\x00", b"a\x00b", b"\xff\xfe", b"\xc3"]
"""Strings with NUL, and some that are no UTF-8."""


def test_strings_are_any_bytes(server: Running) -> None:
    data = encode_bytes(NO_TEXT)
    given = [tensor("BYTES", [2, 2], parameters={"binary_data_size": len(data)})]
    every = {"binary_data_output": True}
    assert binary_of(post(server, "any_plain", given, data, parameters=every)) == data
    as_json = post(server, "any_plain", given, data)
    assert as_json.status == 200
    assert b'"data":["\\u0000","a\\u0000b","\xff\xfe","\xc3"]' in as_json.body
    for fill in (raw("BYTES", [2, 2], data), typed("BYTES", [2, 2], bytes_contents=NO_TEXT)):
        status, found = over_grpc(server, fill)
        assert (status, list(found.raw_output_contents)) == ("OK", [data])


@pytest.mark.parametrize(
    ("backend", "shape", "refused", "phrase"),
    [
        (
            *("onnx", [1, 2], (400, "INVALID_ARGUMENT")),
            "input 'IN_BYTES' holds bytes that are not valid UTF-8, which the onnxruntime backend "
            "cannot pass to the model",
        ),
        (
            *("torch", [2], (500, "INTERNAL")),
            "PyTorch execute failure: the model returned a string that is not valid UTF-8",
        ),
    ],
)
def test_backends_that_give_text_only(
    server: Running, backend: str, shape: list[int], refused: tuple[int, str], phrase: str
) -> None:
    model = f"{backend}_words"
    good, bad = encode_bytes(["é".encode(), b""]), encode_bytes([b"fine", b"\xff"])
    given = [tensor("BYTES", shape, parameters={"binary_data_size": len(bad)})]
    answer = post(server, model, given, bad)
    status, details = over_grpc(server, raw("BYTES", shape, bad), model)
    assert (answer.status, status) == refused
    assert (phrase in answer.error, phrase in details) == (True, True)
    status, found = over_grpc(server, raw("BYTES", shape, good), model)
    assert (status, list(found.raw_output_contents)) == ("OK", [good])


@pytest.mark.parametrize(("backend", "shape"), [("onnx", [1, 2]), ("torch", [2])])
def test_text_may_hold_nul(server: Running, backend: str, shape: list[int]) -> None:
    words = encode_bytes([b"a\0b", b"c"])  # Triton cuts those of ONNX at the NUL
    status, response = over_grpc(server, raw("BYTES", shape, words), f"{backend}_words")
    assert (status, list(response.raw_output_contents)) == ("OK", [words])
