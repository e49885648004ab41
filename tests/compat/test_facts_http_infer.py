"""What an infer request over HTTP may hold, and how it is answered: members, parameters, elements,
binary data and the answer."""

import json
import struct
from typing import Any

import pytest
from facts_harness import JSON, LENGTH, OCTETS, TEXT, A, B, Fact, X, an_input, request
from server_harness import Running

ONE_SOURCE = "Input must set only one of the following fields"
UNSIGNED = "attempt to access JSON non-unsigned-integer as unsigned-integer"
SIGNED = "attempt to access JSON non-signed-integer as signed-integer"
DOUBLE = "attempt to access JSON non-number as double"
BOOLEAN = "attempt to access JSON non-boolean as boolean"
MISSING = "attempt to access non-existing object member"


def infer(
    body: bytes, status: int, phrase: str, *, model: str = "echo", kind: str = JSON, **headers: str
) -> Fact:
    """A POST to a model's infer route."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fact("POST", f"/v2/models/{model}/infer", status, kind, phrase, body, sent)


def refused(status: int, phrase: str, **fields: Any) -> Fact:
    """A request whose only input has these fields beside its name; one of None is left out."""
    entry = {**X, "shape": [1, 1], "data": [1], **fields}
    kept = {name: value for name, value in entry.items() if value is not None}
    return infer(request(kept), status, phrase)


def with_output(status: int, phrase: str, **given: Any) -> Fact:
    """A request of one output with these parameters."""
    return infer(request(X, outputs=[{"name": "Y", "parameters": given}]), status, phrase)


def with_parameter(status: int, phrase: str, **given: Any) -> Fact:
    """A request with these parameters."""
    return infer(request(X, parameters=given), status, phrase)


def elements(datatype: str, listed: list[Any], phrase: str, status: int = 500) -> Fact:
    """A request with these elements of a type."""
    name = "STRING" if datatype == "BYTES" else datatype
    entry = an_input(name, datatype, [len(listed)], data=listed)
    body = request(entry, outputs=[{"name": f"{name}_OUT"}])
    return infer(body, status, phrase, model="kinds")


def binary(data: bytes, shape: list[int], size: Any, status: int, phrase: str) -> Fact:
    """A request of FP32 data after the JSON."""
    body = request(an_input("X", "FP32", shape, parameters={"binary_data_size": size}))
    return infer(body + data, status, phrase, **{LENGTH: str(len(body))})


def raw(data: bytes, status: int, phrase: str, model: str = "echo", kind: str = JSON) -> Fact:
    """A request that is the data of the only input."""
    return infer(data, status, phrase, model=model, kind=kind, **{LENGTH: "0"})


MEMBERS = {
    "unknown members do not matter": infer(request(X, model_name="no", other={}), 200, '"Y"'),
    "no inputs": infer(b"{}", 500, f"Unable to parse 'inputs': {MISSING} 'inputs'"),
    "inputs of another kind": infer(b'{"inputs": 1}', 500, "Unable to parse 'inputs': "),
    "malformed JSON": infer(b'{"inputs": [', 500, "failed to parse the request JSON buffer: "),
    "an id that is no string": infer(request(X, id=1), 500, "Unable to parse 'id': "),
    "the id comes back": infer(request(X, id="7"), 200, '{"id":"7","model_name":"echo"'),
    "an empty id does not": infer(request(X, id=""), 200, '{"model_name":"echo"'),
    "no name": refused(500, f"Unable to parse 'name': {MISSING} 'name'", name=None),
    "no data type": refused(500, f"Unable to parse 'datatype': {MISSING}", datatype=None),
    "no shape": refused(500, f"Unable to parse 'shape': {MISSING}", shape=None),
    "an unknown data type": refused(400, "X", datatype="FP99"),
    "a negative dimension": refused(500, f"Unable to parse 'shape': {UNSIGNED}", shape=[-1, 1]),
    "a dimension that is no integer": refused(500, "Unable to parse 'shape': ", shape=[1.0, 1]),
    "no data": refused(400, ONE_SOURCE, data=None),
    "data from two places": refused(400, ONE_SOURCE, parameters={"binary_data_size": 4}),
    "data from three places": refused(
        *(400, "But set 'data' 'binary_data_size' 'shared_memory_region'"),
        parameters={"binary_data_size": 4, "shared_memory_region": "r"},
    ),
    "more elements than 63 bits": refused(
        *(400, "causes total element count to exceed maximum size of"),
        shape=[1 << 32, 1 << 32],
    ),
    "more bytes than 63 bits": refused(400, "byte size overflow for input", shape=[1, 1 << 62]),
    "an output without a name": infer(request(X, outputs=[{}]), 500, "Unable to parse 'name': "),
    "an unknown output": infer(
        request(X, outputs=[{"name": "Q"}]), 400, "unexpected inference output 'Q' for model 'echo'"
    ),
    "a repeated output": infer(request(X, outputs=[{"name": "Y"}] * 2), 400, "'Y'"),
    "no outputs are all outputs": infer(request(X, outputs=[]), 200, '"name":"Y"'),
    "of the wrong kind: binary_data": with_output(500, BOOLEAN, binary_data=1),
    "of the wrong kind: classification": with_output(500, UNSIGNED, classification=-1),
    "no classes are no classification": with_output(200, '"datatype":"FP32"', classification=0),
    "classes in shared memory": with_output(
        *(400, "'classification'"),
        classification=1,
        shared_memory_region="r",
        shared_memory_byte_size=8,
    ),
    "binary in shared memory": with_output(
        *(400, "'binary_data'"),
        binary_data=True,
        shared_memory_region="r",
        shared_memory_byte_size=8,
    ),
}

PARAMETERS = {
    "a sequence below zero": with_parameter(500, "Unable to parse 'sequence_id': ", sequence_id=-1),
    "a sequence of half": with_parameter(500, "Unable to parse 'sequence_id': ", sequence_id=0.5),
    "no sequence by number": with_parameter(200, "", sequence_id=0),
    "no sequence by name": with_parameter(200, "", sequence_id=""),
    "a start of 1": with_parameter(500, f"'sequence_start': {BOOLEAN}", sequence_start=1),
    "an end of x": with_parameter(500, f"'sequence_end': {BOOLEAN}", sequence_end="x"),
    "a priority below zero": with_parameter(500, f"'priority': {UNSIGNED}", priority=-1),
    "a priority of text": with_parameter(500, f"'priority': {UNSIGNED}", priority="1"),
    "a timeout of half": with_parameter(500, f"'timeout': {UNSIGNED}", timeout=0.5),
    "binary output of 1": with_parameter(500, BOOLEAN, binary_data_output=1),
    "triton_": with_parameter(400, "reserved for Triton usage", triton_x=1),
    "null": with_parameter(400, "has invalid type", a=None),
    "an array": with_parameter(400, "has invalid type", a=[]),
    "an object": with_parameter(400, "has invalid type", a={}),
    "no object": infer(request(X, parameters=1), 500, "Unable to parse 'parameters': "),
}

ELEMENTS = {
    "1 is no BOOL": elements("BOOL", [1], f"Unable to parse 'data': {BOOLEAN}"),
    "-1 is no UINT8": elements("UINT8", [-1], f"Unable to parse 'data': {UNSIGNED}"),
    "1.0 is no INT8": elements("INT8", [1.0], f"Unable to parse 'data': {SIGNED}"),
    "true is no INT32": elements("INT32", [True], f"Unable to parse 'data': {SIGNED}"),
    "2^64 is no UINT64": elements("UINT64", [1 << 64], f"Unable to parse 'data': {UNSIGNED}"),
    "2^63 is no INT64": elements("INT64", [1 << 63], f"Unable to parse 'data': {SIGNED}"),
    "text is no FP32": elements("FP32", ["1"], f"Unable to parse 'data': {DOUBLE}"),
    "null is no FP64": elements("FP64", [None], f"Unable to parse 'data': {DOUBLE}"),
    "1 is no string": elements("BYTES", [1], "attempt to access JSON non-string as string"),
    "UINT8 wraps": elements("UINT8", [256, 257], '"data":[0,1]', 200),
    "INT8 wraps": elements("INT8", [300, -129], '"data":[44,127]', 200),
    "integers are numbers": elements("FP64", [1, 2], '"data":[1.0,2.0]', 200),
    "FP32 is widened": elements("FP32", [0.1], '"data":[0.10000000149011612]', 200),
    "NUL in a string": elements("BYTES", ["a\0b"], '"data":["a\\u0000b"]', 200),
    "FP16": elements("FP16", [1], "receiving FP16 data via JSON is not supported", 400),
    "BF16": elements("BF16", [1], "receiving BF16 data via JSON is not supported", 400),
    "bare words": infer(
        b'{"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], '
        b'"data": [NaN, Infinity, -Infinity, Inf]}]}',
        *(200, '"data":[NaN,Infinity,-Infinity,Infinity]'),
    ),
    "nesting does not matter": infer(
        request({**X, "shape": [2, 2], "data": [[[1], 2], [[3, [4]]]]}),
        *(200, '"shape":[2,2],"data":[1.0,2.0,3.0,4.0]'),
    ),
    "too few": infer(
        request({**X, "data": [1]}),
        *(500, "Failed to parse 'data' field: shape does not match true shape"),
    ),
    "too many": infer(
        request({**X, "data": [1, 2, 3]}),
        *(500, "Unable to parse 'data': Shape does not match true shape of 'data' field"),
    ),
    "too few strings": infer(
        request(an_input("X", "BYTES", [1, 2], data=["a"])),
        *(400, "expected 2 string elements for inference input 'X' for model 'text', got 1"),
        model="text",
    ),
    "too many strings": infer(
        request(an_input("X", "BYTES", [1, 1], data=["a", "b"])),
        *(400, "unexpected number of string elements 2 for inference input 'X' for model 'text'"),
        model="text",
    ),
    "a shape with a zero reads nothing": infer(
        request({**X, "shape": [1, 0], "data": [1, 2]}), 200, '"shape":[1,0],"data":[]'
    ),
    "an empty shape reads nothing": infer(
        request({**X, "shape": [], "data": [1]}),
        *(400, "has no shape but model requires batch dimension"),
    ),
}

TWO = struct.pack("<2f", 1.5, -2)
JSON_INPUT = request(X)
BINARY = {
    "data after the JSON": binary(TWO, [1, 2], 8, 200, '"data":[1.5,-2.0]'),
    "too few bytes": binary(
        *(TWO[:6], [1, 2], 8, 400),
        "unexpected size for input 'X', expecting 2 additional bytes",
    ),
    "left-over bytes": binary(
        TWO + b"1", [1, 2], 8, 400, "unexpected additional input data for model"
    ),
    "another size than the shape's": binary(
        *(TWO, [1, 3], 8, 400),
        "input byte size mismatch for input 'X' for model 'echo'. Expected 12, got 8",
    ),
    "a size that is no number": binary(TWO, [1, 2], "8", 500, "binary_data_size"),
    "a length of letters": infer(JSON_INPUT, 400, "Unable to parse", kind=TEXT, **{LENGTH: "x"}),
    "a negative length": infer(
        JSON_INPUT, 400, "inference header size should be in range", kind=TEXT, **{LENGTH: "-1"}
    ),
    "a length beyond the body": infer(
        JSON_INPUT, 400, "inference header size should be in range", kind=TEXT, **{LENGTH: "999"}
    ),
    "a raw body": raw(TWO, 200, '"shape":[1,2]', kind=OCTETS),
    "a raw body of a fixed dimension": raw(TWO * 2, 200, '"shape":[2,2]', "grid", OCTETS),
    "a raw body of nothing": raw(b"", 200, '"shape":[1,0]'),
    "a raw text": raw(b"hello", 200, '"shape":[1,1]', "word", OCTETS),
    "a raw body for two inputs": raw(TWO, 400, "Raw request must only have 1 input", "pair"),
    "a raw body for two variable dimensions": raw(
        *(TWO, 400),
        "can not be deduced because there are more than one variable-sized dimension",
        "plane",
    ),
    "a raw body of half an element": raw(TWO[:3], 400, "input byte size mismatch"),
}

TABLES = {**MEMBERS, **PARAMETERS, **ELEMENTS, **BINARY}


def test_no_row_hides_another() -> None:
    assert len(TABLES) == sum(map(len, (MEMBERS, PARAMETERS, ELEMENTS, BINARY)))


@pytest.mark.parametrize("fact", TABLES)
def test_answers(facts: Running, fact: str) -> None:
    TABLES[fact].check(facts)


def told(server: Running, **given: Any) -> dict[str, Any]:
    """What a model is told of a request with these parameters."""
    body = request(an_input("X", "INT32", [1], data=[1]), id="i", parameters=given)
    found = server.post("/v2/models/told/infer", body, X_Mine="header").json
    about: dict[str, Any] = json.loads(found["outputs"][0]["data"][0])
    return about


def test_custom_parameters_reach_the_model(facts: Running) -> None:
    given = {"a": 1, "b": True, "c": 0.5, "d": "x", "headers": "h", "large": 1 << 64}
    found = told(facts, **given, timeout=5_000_000, sequence_id="s", sequence_start=True)
    forwarded = {**given, "large": float(1 << 64), "X-Mine": "header"}
    assert found == {
        "id": "i",
        "parameters": forwarded,
        "flags": 1,
        "sequence": "s",
        "timeout": 5_000_000,
    }


@pytest.mark.parametrize(
    ("given", "sequence", "flags"),
    [
        ({}, 0, 0),
        ({"sequence_id": 7, "sequence_end": True}, 7, 2),
        ({"sequence_id": (1 << 64) - 1, "sequence_start": True, "sequence_end": True}, -1, 3),
    ],
)
def test_a_sequence(facts: Running, given: dict[str, Any], sequence: int, flags: int) -> None:
    found = told(facts, **given)
    assert (found["sequence"], found["flags"]) == (sequence % (1 << 64), flags)


def test_a_models_parameters_stand_before_its_outputs(facts: Running) -> None:
    body = request(an_input("X", "INT32", [1], data=[1]), id="i")
    document = facts.post("/v2/models/told/infer", body).json
    assert list(document) == ["id", "model_name", "model_version", "parameters", "outputs"]
    assert document["parameters"] == {"on": True, "count": 3, "word": "w"}
    assert document["model_version"] == "1"


def test_a_listed_output_is_json_whatever_all_are(facts: Running) -> None:
    outputs = [{"name": "DIFF"}, {"name": "SUM", "parameters": {"binary_data": True}}]
    body = request(A, B, outputs=outputs, parameters={"binary_data_output": True})
    found = facts.post("/v2/models/pair/infer", body)
    length = int(found.headers[LENGTH.lower()])
    total, difference = json.loads(found.body[:length])["outputs"]
    assert (total["name"], total["parameters"]) == ("SUM", {"binary_data_size": 16})
    assert (difference["name"], difference["data"]) == ("DIFF", [0, 0, 0, 0])
    assert struct.unpack("<4i", found.body[length:]) == (2, 4, 6, 8)


def test_binary_outputs_that_are_empty_leave_plain_json(facts: Running) -> None:
    body = request({**X, "shape": [1, 0], "data": []}, parameters={"binary_data_output": True})
    found = facts.post("/v2/models/echo/infer", body)
    assert LENGTH.lower() not in found.headers
    assert found.headers["content-type"] == JSON
    assert found.json["outputs"][0]["parameters"] == {"binary_data_size": 0}


@pytest.mark.parametrize("kind", ["FP16", "BF16"])
def test_half_precision_is_binary_only(facts: Running, kind: str) -> None:
    entry = an_input(kind, kind, [2], parameters={"binary_data_size": 4})
    data = b"\x00\x3c\x00\x40"
    for form in (False, True):
        head = request(
            entry, outputs=[{"name": f"{kind}_OUT", "parameters": {"binary_data": form}}]
        )
        found = facts.post(
            "/v2/models/kinds/infer", head + data, Inference_Header_Content_Length=str(len(head))
        )
        if form:
            assert found.body.endswith(data)
        else:
            assert found.status == 400
            assert f"sending {kind} data via JSON is not supported" in found.error


def test_text_that_is_none_makes_json_that_is_none(facts: Running) -> None:
    head = request(an_input("X", "BYTES", [1, 1], parameters={"binary_data_size": 6}))
    found = facts.post(
        *("/v2/models/text/infer", head + b"\2\0\0\0\xff\xfe"),
        Inference_Header_Content_Length=str(len(head)),
    )
    assert b'"data":["\xff\xfe"]' in found.body


def test_binary_and_json_inputs_together(facts: Running) -> None:
    second = an_input("B", "INT32", [4], parameters={"binary_data_size": 16})
    head = request(A, second, outputs=[{"name": "SUM"}])
    body = head + struct.pack("<4i", 10, 20, 30, 40)
    found = facts.post(
        "/v2/models/pair/infer", body, Inference_Header_Content_Length=str(len(head))
    )
    assert found.json["outputs"][0]["data"] == [11, 22, 33, 44]


@pytest.mark.parametrize(("count", "status"), [(0, 501), (1, 200), (2, 501)])
def test_a_decoupled_model_must_answer_once(facts: Running, count: int, status: int) -> None:
    body = request(an_input("COUNT", "INT32", [1], data=[count]))
    found = facts.post("/v2/models/many/infer", body)
    assert found.status == status
    if status == 501:
        phrase = "HTTP end point doesn't support models with decoupled transaction policy"
        assert found.error == f"{phrase}: expected a single response, got {count}"


def test_requests_without_an_id_are_named_so(facts: Running) -> None:
    for given, name in (({}, "<id_unknown>"), ({"id": "mine"}, "mine")):
        found = facts.post("/v2/models/pair/infer", request(A, **given))
        assert found.error.startswith(f"[request id: {name}] expected 2 inputs but got 1 inputs")
