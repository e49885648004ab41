import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel import (
    DATA_TYPES,
    InferRequest,
    Internal,
    InvalidArgument,
    MicrokernelError,
    Sequence,
)
from microkernel_http.decode import (
    ALL_BINARY,
    ALL_JSON,
    Limits,
    OutputForms,
    decode,
    header_length,
)

LIMITS = Limits()


def entry(**changes: Any) -> dict[str, Any]:
    whole = {"name": "X", "datatype": "FP32", "shape": [2], "data": [1, 2.5], **changes}
    return {key: value for key, value in whole.items() if value is not ...}


def read(document: object, tail: bytes = b"", limits: Limits = LIMITS) -> InferRequest:
    return read_both(document, tail, limits)[0]


def read_both(
    document: object, tail: bytes = b"", limits: Limits = LIMITS
) -> tuple[InferRequest, OutputForms]:
    header = json.dumps(document).encode()
    return decode(header + tail, len(header), "m", 3, limits)


def test_a_whole_request() -> None:
    request, forms = read_both(
        {
            "id": "seven",
            "inputs": [entry()],
            "outputs": [{"name": "A"}, {"name": "B", "parameters": {"binary_data": True}}],
            "parameters": {
                "sequence_id": 5,
                "sequence_start": True,
                "priority": 2,
                "timeout": 9,
                "mine": "text",
                "count": -3,
                "on": True,
                "half": 0.5,
                "large": 2**63,
            },
        }
    )
    assert (request.model_name, request.version, request.id) == ("m", 3, "seven")
    assert request.outputs == ("A", "B")
    assert [forms.is_binary(name) for name in "AB"] == [False, True]
    assert request.sequence == Sequence(5, start=True)
    assert (request.priority, request.timeout_us) == (2, 9)
    assert request.parameters == {
        "mine": "text",
        "count": -3,
        "on": True,
        "half": 0.5,
        "large": 2.0**63,
    }
    assert type(request.parameters["large"]) is float
    np.testing.assert_array_equal(request.inputs[0].as_numpy(), np.array([1, 2.5], np.float32))


@pytest.mark.parametrize(
    ("document", "forms"),
    [
        ({}, ALL_JSON),
        ({"outputs": []}, ALL_JSON),
        ({"parameters": {"binary_data_output": True}}, ALL_BINARY),
        ({"outputs": [], "parameters": {"binary_data_output": True}}, ALL_BINARY),
    ],
)
def test_the_form_of_outputs_that_are_not_listed(
    document: dict[str, Any], forms: OutputForms
) -> None:
    request, found = read_both({"inputs": [], **document})
    assert (request.outputs, found) == ((), forms)


def test_a_listed_output_does_not_follow_binary_data_output() -> None:
    _, forms = read_both(
        {"inputs": [], "outputs": [{"name": "A"}], "parameters": {"binary_data_output": True}}
    )
    assert not forms.is_binary("A")


def test_the_outputs_of_which_classes_are_wanted() -> None:
    listed = [
        {"name": "A", "parameters": {"classification": 3, "binary_data": True}},
        {"name": "B", "parameters": {"classification": 0}},
        {"name": "C"},
    ]
    request, forms = read_both({"inputs": [], "outputs": listed})
    assert request.outputs == ("A", "B", "C")
    assert request.classifications == {"A": 3}
    assert [forms.is_binary(name) for name in "ABC"] == [True, False, False]


def test_a_shape_that_is_huge_but_for_a_zero_holds_nothing() -> None:
    request, _ = read_both({"inputs": [entry(shape=[2**62, 2**62, 0, 5], data=[])]})
    assert request.inputs[0].shape == (2**62, 2**62, 0, 5)
    assert len(request.inputs[0].data) == 0


def test_binary_inputs_are_views_on_the_body_in_the_order_of_the_inputs() -> None:
    def binary(name: str, size: int) -> dict[str, Any]:
        shape = [size // 4]
        return entry(name=name, data=..., shape=shape, parameters={"binary_data_size": size})

    header = json.dumps({"inputs": [binary("A", 8), entry(), binary("B", 4), binary("C", 0)]})
    body = header.encode() + struct.pack("<3f", 1, 2, 3)
    request, _ = decode(body, len(header), "m", -1, LIMITS)
    assert [bytes(tensor.data) for tensor in request.inputs] == [
        struct.pack("<2f", 1, 2),
        struct.pack("<2f", 1, 2.5),
        struct.pack("<f", 3),
        b"",
    ]
    for tensor in (request.inputs[0], request.inputs[2]):
        assert isinstance(tensor.data, memoryview)
        assert tensor.data.obj is body


@pytest.mark.parametrize(
    ("datatype", "data", "values"),
    [
        ("BOOL", [True, False], [True, False]),
        ("UINT8", [255, 257], [255, 1]),
        ("UINT64", [0, 2**64 - 1], [0, 2**64 - 1]),
        ("INT8", [-128, 128], [-128, -128]),
        ("INT16", [1, 65536 + 7], [1, 7]),
        ("INT64", [-(2**63), 2**63 - 1], [-(2**63), 2**63 - 1]),
        ("FP32", [1, 1e300], [1, float("inf")]),
        ("FP64", [0.1, 2**70], [0.1, 2.0**70]),
        ("BYTES", ["a\0b", "zürich"], [b"a\0b", "zürich".encode()]),
    ],
)
def test_elements_of_each_type_wrap_and_never_coerce(
    datatype: str, data: list[Any], values: list[Any]
) -> None:
    request = read({"inputs": [entry(datatype=datatype, data=data)]})
    assert request.inputs[0].datatype is DATA_TYPES[datatype]
    assert request.inputs[0].as_numpy().tolist() == values


@pytest.mark.parametrize(
    ("datatype", "value", "kinds"),
    [
        ("BOOL", 1, "non-boolean as boolean"),
        ("UINT8", -1, "non-unsigned-integer as unsigned-integer"),
        ("UINT8", 1.0, "non-unsigned-integer as unsigned-integer"),
        ("UINT64", 2**64, "non-unsigned-integer as unsigned-integer"),
        ("UINT64", True, "non-unsigned-integer as unsigned-integer"),
        ("INT32", 1.0, "non-signed-integer as signed-integer"),
        ("INT64", 2**63, "non-signed-integer as signed-integer"),
        ("FP32", True, "non-number as double"),
        ("FP32", None, "non-number as double"),
        ("FP32", "x", "non-number as double"),
        ("FP64", {}, "non-number as double"),
    ],
)
def test_an_element_of_another_kind(datatype: str, value: object, kinds: str) -> None:
    with pytest.raises(Internal) as caught:
        read({"inputs": [entry(datatype=datatype, shape=[1], data=[value])]})
    assert str(caught.value) == f"Unable to parse 'data': attempt to access JSON {kinds}"


@pytest.mark.parametrize(
    "data",
    [
        [1, 2, 3, 4, 5, 6],
        [[1, 2, 3], [4, 5, 6]],
        [[[1, 2], [3, 4], [5, 6]]],
        [1, [2, [3]], [[4, 5]], [], 6],
    ],
)
def test_any_nesting_is_read_in_row_major_order(data: list[Any]) -> None:
    request = read({"inputs": [entry(shape=[2, 3], data=data)]})
    assert request.inputs[0].as_numpy().tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(("depth", "fits"), [(100, True), (101, False)])
def test_the_depth_of_data_is_limited(depth: int, fits: bool) -> None:
    text = b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1],"data":%s}]}' % (
        b"[" * depth + b"1" + b"]" * depth
    )
    if fits:
        assert decode(text, len(text), "m", -1, LIMITS)[0].inputs[0].as_numpy().tolist() == [1]
        return
    with pytest.raises(InvalidArgument, match="nested deeper than 100 levels"):
        decode(text, len(text), "m", -1, LIMITS)


@pytest.mark.parametrize("shape", [[], [0], [3, 0]])
def test_no_data_is_read_for_a_shape_without_elements(shape: list[int]) -> None:
    request = read({"inputs": [entry(shape=shape, data=["anything"])]})
    assert request.inputs[0].shape == tuple(shape)
    assert request.inputs[0].nbytes == 0


def test_what_to_say_of_raw_data_of_no_type_is_left_to_who_knows_the_model() -> None:
    raw = entry(datatype="FP9", data=..., parameters={"binary_data_size": 8})
    datatype = read({"inputs": [raw]}, bytes(8)).inputs[0].datatype
    assert (datatype.name, datatype.number) == ("FP9", 0)


ONE_OF = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in "
    "'parameters', 'shared_memory_region' in 'parameters'. But "
)


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        ([], Internal, "Unable to parse 'inputs': attempt to access non-existing object member"),
        ({"inputs": {}}, Internal, "Unable to parse 'inputs': attempt to access JSON non-array"),
        ({"inputs": [1]}, InvalidArgument, ONE_OF + "no field is set"),
        ({"inputs": [{}]}, InvalidArgument, ONE_OF + "no field is set"),
        (
            {"inputs": [entry(parameters={"binary_data_size": 8})]},
            InvalidArgument,
            ONE_OF + "set 'data' 'binary_data_size'",
        ),
        ({"inputs": [entry(name=...)]}, Internal, "Unable to parse 'name': attempt to access non-"),
        ({"inputs": [entry(name=7)]}, Internal, "Unable to parse 'name': attempt to access JSON"),
        ({"inputs": [entry(datatype="FP9")]}, InvalidArgument, "invalid datatype for input X"),
        (
            {"inputs": [entry(shape=[-1])]},
            Internal,
            "Unable to parse 'shape': attempt to access JSON non-unsigned-integer",
        ),
        (
            {"inputs": [entry(shape=[2**40, 2**40])]},
            InvalidArgument,
            "causes total element count to exceed maximum size of",
        ),
        (
            {"inputs": [entry(shape=[2**62], datatype="INT64")]},
            InvalidArgument,
            "byte size overflow for input 'X'",
        ),
        (
            {"inputs": [entry(shape=[2**40])]},
            InvalidArgument,
            "JSON input 'X' has a byte_size of 4398046511104 bytes",
        ),
        (
            {"inputs": [entry(shape=[3])]},
            Internal,
            "Failed to parse 'data' field: shape does not match true shape",
        ),
        (
            {"inputs": [entry(shape=[1])]},
            Internal,
            "Unable to parse 'data': Shape does not match true shape of 'data' field",
        ),
        ({"inputs": [entry(data={})]}, Internal, "Unable to parse 'data': attempt to access JSON"),
        (
            {"inputs": [entry(datatype="BYTES")]},
            Internal,
            "Unable to parse JSON bytes array: attempt to access JSON non-string as string",
        ),
        (
            {"inputs": [entry(datatype="BF16")]},
            InvalidArgument,
            "receiving BF16 data via JSON is not supported. "
            "Please use the binary data format for input X",
        ),
        (
            {"inputs": [entry(data=..., parameters={"binary_data_size": 12})]},
            InvalidArgument,
            "unexpected size for input 'X', expecting 12 additional bytes for model 'm'",
        ),
        ({"inputs": [], "outputs": [{}]}, Internal, "Unable to parse 'name': attempt to access"),
        (
            {"inputs": [], "outputs": [{"name": "A"}, {"name": "A"}]},
            InvalidArgument,
            "output 'A' already exists in request",
        ),
        (
            {"inputs": [], "outputs": [{"name": "A", "parameters": {"binary_data": 1}}]},
            Internal,
            "Unable to parse 'binary_data': attempt to access JSON non-boolean as boolean",
        ),
        (
            {"inputs": [], "outputs": [{"name": "A", "parameters": {"classification": -1}}]},
            Internal,
            "Unable to parse 'classification': attempt to access JSON non-unsigned-integer",
        ),
        ({"id": 7, "inputs": []}, Internal, "Unable to parse 'id': attempt to access JSON non-str"),
        ({"parameters": 1}, Internal, "Unable to parse 'parameters': attempt to access JSON non-o"),
        (
            {"parameters": {"sequence_id": -1}, "inputs": []},
            Internal,
            "Unable to parse 'sequence_id': attempt to access JSON non-string as string",
        ),
        (
            {"parameters": {"sequence_end": 1}, "inputs": []},
            Internal,
            "Unable to parse 'sequence_end': attempt to access JSON non-boolean as boolean",
        ),
        (
            {"parameters": {"timeout": -1}, "inputs": []},
            Internal,
            "Unable to parse 'timeout': attempt to access JSON non-unsigned-integer",
        ),
        (
            {"parameters": {"triton_x": 1}, "inputs": []},
            InvalidArgument,
            "parameter keys starting with 'triton_' are reserved for Triton usage",
        ),
        (
            {"parameters": {"list": [1]}, "inputs": []},
            InvalidArgument,
            "parameter 'list' has invalid type. It should be either 'int', 'bool', or 'string'.",
        ),
    ],
)
def test_bad_requests(document: object, error: type[MicrokernelError], message: str) -> None:
    with pytest.raises(error) as caught:
        read(document)
    assert type(caught.value) is error
    assert message in str(caught.value)


def test_bytes_after_the_last_input() -> None:
    with pytest.raises(InvalidArgument) as caught:
        read({"inputs": [entry()]}, tail=b"x")
    assert str(caught.value) == "unexpected additional input data for model 'm'"


def test_the_size_of_json_is_limited_and_equality_passes() -> None:
    document = {"inputs": [entry()]}
    size = len(json.dumps(document))
    assert read(document, limits=Limits(json_size=size)).inputs
    with pytest.raises(InvalidArgument) as caught:
        read(document, limits=Limits(json_size=size - 1))
    assert str(caught.value) == (
        f"request JSON size of {size} bytes exceeds the maximum allowed input size of {size - 1} "
        "bytes. Use --http-max-input-size to increase the limit."
    )


@pytest.mark.parametrize(
    ("value", "length", "message"),
    [
        (None, 95, ""),
        ("0", 0, ""),
        ("95", 95, ""),
        ("96", 0, "inference header size should be in range (0, 95), got: 96"),
        ("-1", 0, "inference header size should be in range (0, 95), got: -1"),
        ("x", 0, "Unable to parse Inference-Header-Content-Length, got: x"),
        ("1_0", 0, "Unable to parse Inference-Header-Content-Length, got: 1_0"),
        ("\u0661", 0, "Unable to parse Inference-Header-Content-Length, got: \u0661"),
        ("9" * 5000, 0, "Unable to parse Inference-Header-Content-Length, got: 999"),
    ],
)
def test_the_length_header(value: str | None, length: int, message: str) -> None:
    if not message:
        assert header_length(value, 95) == length
        return
    with pytest.raises(InvalidArgument) as caught:
        header_length(value, 95)
    assert str(caught.value).startswith(message)


_leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
_any = st.recursive(_leaf, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
_entry = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=3) | _any,
        "datatype": st.sampled_from([*DATA_TYPES, "FP9"]) | _any,
        "shape": st.lists(st.integers(-1, 4) | st.integers(), max_size=3) | _any,
        "data": st.lists(_any, max_size=5) | _any,
        "parameters": st.fixed_dictionaries(
            {},
            optional={"binary_data_size": st.integers(-2, 99) | _any, "shared_memory_region": _any},
        )
        | _any,
    },
)
_document = st.fixed_dictionaries(
    {},
    optional={
        "id": _any,
        "inputs": st.lists(_entry, max_size=3) | _any,
        "outputs": st.lists(_entry, max_size=3) | _any,
        "parameters": _any
        | st.dictionaries(
            st.sampled_from(["sequence_id", "sequence_end", "priority", "timeout", "mine"]), _any
        ),
    },
)


@given(_document, st.binary(max_size=20))
@settings(max_examples=120, deadline=None)
def test_decode_raises_nothing_but_our_errors(document: object, tail: bytes) -> None:
    header = json.dumps(document).encode()
    try:
        request, _ = decode(header + tail, len(header), "m", -1, LIMITS)
    except MicrokernelError:
        return
    for tensor in request.inputs:
        assert isinstance(tensor.data, bytes | memoryview)


@given(st.binary(max_size=200), st.integers(0, 200))
@settings(max_examples=120, deadline=None)
def test_decode_takes_any_bytes(body: bytes, length: int) -> None:
    with contextlib.suppress(MicrokernelError):
        decode(body, min(length, len(body)), "m", -1, LIMITS)
