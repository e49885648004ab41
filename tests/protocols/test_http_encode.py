import json
import math
from typing import Any

import numpy as np
import pytest

from microkernel import (
    DATA_TYPES,
    AlreadyExists,
    Cancelled,
    InferResponse,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelIndex,
    NotFound,
    Tensor,
    Unavailable,
    Unknown,
    Unsupported,
    encode_bytes,
)
from microkernel_http.decode import ALL_BINARY, ALL_JSON, OutputForms
from microkernel_http.encode import encode, repository_index
from microkernel_http.status import error_body, status_of


def tensor(name: str, values: Any, dtype: str) -> Tensor:
    return Tensor.from_numpy(name, np.array(values, dtype))


def answer(*outputs: Tensor, **changes: Any) -> InferResponse:
    return InferResponse(
        **{"model_name": "m", "version": 1, "id": "", "outputs": outputs, **changes}
    )


def test_keys_come_in_the_order_of_triton() -> None:
    response = answer(
        tensor("O", [[1, 2]], "<i4"), id="seven", parameters={"a": True, "b": 2, "c": "d", "e": 0.5}
    )
    encoded = encode(response, ALL_JSON)
    assert encoded.headers == {"Content-Type": "application/json"}
    assert b"".join(encoded.buffers) == (
        b'{"id":"seven","model_name":"m","model_version":"1",'
        b'"parameters":{"a":true,"b":2,"c":"d","e":0.5},'
        b'"outputs":[{"name":"O","datatype":"INT32","shape":[1,2],"data":[1,2]}]}'
    )


@pytest.mark.parametrize(
    ("output", "data"),
    [
        (tensor("O", [0.1, 1], "<f4"), "[0.10000000149011612,1.0]"),
        (tensor("O", [0.1, 1e300], "<f8"), "[0.1,1e+300]"),
        (tensor("O", [math.nan, math.inf, -math.inf], "<f4"), "[NaN,Infinity,-Infinity]"),
        (tensor("O", [True, False], "?"), "[true,false]"),
        (tensor("O", [2**64 - 1], "<u8"), "[18446744073709551615]"),
        (tensor("O", [[-1], [2]], "i1"), "[-1,2]"),
        (tensor("O", [["zü\0"]], "O"), '["zü\\u0000"]'),
        (tensor("O", [], "<f4"), "[]"),
    ],
)
def test_data_is_flat_and_exact(output: Tensor, data: str) -> None:
    text = b"".join(encode(answer(output), ALL_JSON).buffers).decode()
    assert text.endswith(f',"data":{data}}}]}}')


def test_bytes_that_are_no_text_are_written_as_they_are() -> None:
    output = Tensor("O", DATA_TYPES["BYTES"], (1,), encode_bytes([b"\xff\xfe"]))
    assert b'"data":["\xff\xfe"]' in b"".join(encode(answer(output), ALL_JSON).buffers)


def test_binary_outputs_follow_the_json_as_views() -> None:
    outputs = [tensor("A", [1, 2], "<i4"), tensor("B", [3], "<i4"), tensor("C", [4], "<f2")]
    encoded = encode(answer(*outputs), OutputForms(binary=["A", "C"]))
    header = encoded.buffers[0]
    assert encoded.headers == {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(header)),
    }
    assert encoded.buffers[1] is outputs[0].data
    assert encoded.buffers[2] is outputs[2].data
    assert json.loads(bytes(header))["outputs"] == [
        {"name": "A", "datatype": "INT32", "shape": [2], "parameters": {"binary_data_size": 8}},
        {"name": "B", "datatype": "INT32", "shape": [1], "data": [3]},
        {"name": "C", "datatype": "FP16", "shape": [1], "parameters": {"binary_data_size": 2}},
    ]


def test_empty_binary_outputs_leave_plain_json() -> None:
    encoded = encode(answer(tensor("A", [], "<f4")), ALL_BINARY)
    assert encoded.headers == {"Content-Type": "application/json"}
    assert len(encoded.buffers) == 1
    assert b'"parameters":{"binary_data_size":0}' in bytes(encoded.buffers[0])


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_cannot_be_json(datatype: str) -> None:
    output = Tensor("O", DATA_TYPES[datatype], (1,), b"\0\0")
    with pytest.raises(InvalidArgument) as caught:
        encode(answer(output), ALL_JSON)
    assert str(caught.value) == (
        f"sending {datatype} data via JSON is not supported. "
        "Please use the binary data format for output"
    )


def test_the_index_leaves_out_what_is_empty() -> None:
    lines = [ModelIndex("a"), ModelIndex("b", "1", "UNAVAILABLE", "unloaded")]
    assert repository_index(lines) == [
        {"name": "a"},
        {"name": "b", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"},
    ]


class _Special(NotFound):
    pass


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Internal, 500),
        (NotFound, 404),
        (_Special, 404),
        (Unavailable, 503),
        (Unsupported, 501),
        (InvalidArgument, 400),
        (AlreadyExists, 400),
        (Cancelled, 400),
        (Unknown, 400),
        (MicrokernelError, 500),
    ],
)
def test_each_class_of_error_has_a_status(error: type[MicrokernelError], status: int) -> None:
    assert status_of(error("x")) == status


def test_an_error_is_one_key_whatever_its_text() -> None:
    assert error_body('a "b" ü') == '{"error":"a \\"b\\" ü"}'.encode()
    assert json.loads(error_body("\udcff\ud800")) == {"error": r"\udcff\ud800"}
