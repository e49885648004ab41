"""What an infer request over gRPC may hold, and how it is answered."""

import json
import struct
from typing import Any

import pytest
from facts_grpc import (
    PATIENCE,
    Code,
    Infer,
    add,
    echo,
    many,
    pair,
    parameter,
    refused,
    service_pb2,
)


def contents(**values: Any) -> Any:
    """A request of typed contents for the model kinds, FP32 if nothing else is said."""
    request = Infer(model_name="kinds")
    add(request, "FP32", "FP32", [2]).contents.CopyFrom(service_pb2.InferTensorContents(**values))
    return request


def both() -> Any:
    request = contents(fp32_contents=[1, 2])
    request.raw_input_contents.append(bytes(8))
    return request


def somewhere(**values: Any) -> Any:
    """An input in shared memory, with these parameters."""
    request = Infer(model_name="echo")
    tensor = add(request, "X", "FP32", [1, 2])
    for key, value in values.items():
        kind = "string_param" if isinstance(value, str) else "int64_param"
        tensor.parameters[f"shared_memory_{key}"].CopyFrom(
            service_pb2.InferParameter(**{kind: value})
        )
    return request


def asking(**value: Any) -> Any:
    """A request for so many classes."""
    request = echo()
    output = request.outputs.add(name="Y")
    output.parameters["classification"].CopyFrom(service_pb2.InferParameter(**value))
    return request


def content_in_memory() -> Any:
    request = somewhere(region="r", byte_size=8)
    request.inputs[0].contents.fp32_contents.extend([1, 2])
    return request


REQUESTS: dict[str, tuple[Any, Any, str]] = {
    "an unknown model": (Infer(model_name="absent"), Code.NOT_FOUND, "'absent' is not found"),
    "an unknown version": (
        echo(model_version="7"),
        Code.NOT_FOUND,
        "'echo' version 7 is not found",
    ),
    "a version of letters": (
        *(echo(model_version="x"), Code.INVALID_ARGUMENT),
        "failed to get model version from specified version string",
    ),
    "contents beside raw data": (
        *(both(), Code.INVALID_ARGUMENT),
        "contents field must not be specified when using raw_input_contents",
    ),
    "contents in shared memory": (
        *(content_in_memory(), Code.INVALID_ARGUMENT),
        "unexpected 'content' provided when using shared memory",
    ),
    "no data": (
        *(somewhere(), Code.INVALID_ARGUMENT),
        "unable to find data for input tensor 'X'",
    ),
    "contents of another kind": (
        *(contents(int_contents=[1, 2]), Code.INVALID_ARGUMENT),
        "unexpected explicit tensor data for input tensor 'FP32' for model 'kinds'",
    ),
    "contents of two kinds": (
        *(contents(fp32_contents=[1, 2], int_contents=[1]), Code.INVALID_ARGUMENT),
        "",
    ),
    "a variable dimension": (
        *(echo(shape=(1, -1)), Code.INVALID_ARGUMENT),
        "All input dimensions should be specified for input",
    ),
    "a region that is nowhere": (
        *(somewhere(region="none", byte_size=8), Code.NOT_FOUND),
        "Unable to find shared memory region: 'none'",
    ),
    "a region without a size": (
        *(somewhere(region="r"), Code.INVALID_ARGUMENT),
        "'shared_memory_byte_size' must be specified along with",
    ),
    "a size without a region": (
        *(somewhere(byte_size=8), Code.INVALID_ARGUMENT, "can not be specified without"),
    ),
    "an offset without a region": (
        *(somewhere(offset=8), Code.INVALID_ARGUMENT, "can not be specified without"),
    ),
    "no classes": (asking(int64_param=0), Code.INVALID_ARGUMENT, "classification"),
    "classes by name": (asking(string_param="1"), Code.INVALID_ARGUMENT, "classification"),
    "a sequence that is true": (
        *(parameter(echo(), "sequence_id", bool_param=True), Code.INVALID_ARGUMENT),
        "invalid value type for 'sequence_id' parameter, expected ",
    ),
    "a start of 1": (
        *(parameter(echo(), "sequence_start", int64_param=1), Code.INVALID_ARGUMENT),
        "invalid value type for 'sequence_start' parameter, expected ",
    ),
    "an end of text": (
        *(parameter(echo(), "sequence_end", string_param="1"), Code.INVALID_ARGUMENT),
        "invalid value type for 'sequence_end' parameter, expected ",
    ),
    "a priority of text": (
        *(parameter(echo(), "priority", string_param="1"), Code.INVALID_ARGUMENT),
        "invalid value type for 'priority' parameter, expected ",
    ),
    "a priority below zero": (
        *(parameter(echo(), "priority", int64_param=-1), Code.INVALID_ARGUMENT, "priority"),
    ),
    "a timeout of uint64": (
        *(parameter(echo(), "timeout", uint64_param=1), Code.INVALID_ARGUMENT),
        "invalid value type for 'timeout' parameter, expected ",
    ),
    "a custom uint64": (
        *(parameter(echo(), "mine", uint64_param=1), Code.INVALID_ARGUMENT),
        "invalid value type for 'mine' parameter, expected ",
    ),
    "triton_": (
        *(parameter(echo(), "triton_x", bool_param=True), Code.INVALID_ARGUMENT),
        "parameter keys starting with 'triton_' are reserved",
    ),
    "too few elements": (
        *(echo(bytes(4)), Code.INVALID_ARGUMENT),
        "input byte size mismatch for input 'X' for model 'echo'. Expected 8, got 4",
    ),
    "a missing input": (
        *(Infer(model_name="echo"), Code.INVALID_ARGUMENT),
        "[request id: <id_unknown>] expected 1 inputs but got 0 inputs for model 'echo'",
    ),
    "a missing input of a request with an id": (
        *(Infer(model_name="echo", id="mine"), Code.INVALID_ARGUMENT),
        "[request id: mine] expected 1 inputs",
    ),
    "a decoupled model": (
        *(many(2), Code.UNIMPLEMENTED),
        "ModelInfer RPC doesn't support models with decoupled transaction policy",
    ),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_requests_that_are_refused(stub: Any, case: str) -> None:
    request, code, phrase = REQUESTS[case]
    refused(lambda: stub.ModelInfer(request, timeout=PATIENCE), code, phrase)


CODES = [
    *(Code.UNKNOWN, Code.INTERNAL, Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.UNAVAILABLE),
    *(Code.UNIMPLEMENTED, Code.ALREADY_EXISTS, Code.CANCELLED),
]


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_the_status_of_each_class_of_error(stub: Any, code: Any) -> None:
    request = pair(-1 - CODES.index(code))
    refused(lambda: stub.ModelInfer(request, timeout=PATIENCE), code, "the model refuses")


@pytest.mark.parametrize("name", ["sequence_id", "priority", "timeout", "headers"])
def test_reserved_metadata_cannot_be_forwarded(stub: Any, name: str) -> None:
    metadata = ((name, "1"),)
    refused(
        lambda: stub.ModelInfer(echo(), timeout=PATIENCE, metadata=metadata),
        *(Code.INVALID_ARGUMENT, "is reserved for Triton usage and cannot be forwarded"),
    )


def test_what_a_model_is_told(stub: Any) -> None:
    request = Infer(model_name="told", id="i")
    add(request, "X", "INT32", [1], bytes(4))
    given: dict[str, dict[str, Any]] = {
        "sequence_id": {"string_param": "s"},
        "sequence_end": {"bool_param": True},
        "priority": {"uint64_param": 1},
        "timeout": {"int64_param": 9_000_000},
        "a": {"int64_param": 1},
        "b": {"bool_param": True},
        "c": {"double_param": 0.5},
        "d": {"string_param": "x"},
        "binary_data_output": {"bool_param": True},
    }
    for key, value in given.items():
        parameter(request, key, **value)
    found = stub.ModelInfer(request, timeout=PATIENCE, metadata=(("x-mine", "m"), ("other", "o")))
    (size,) = struct.unpack_from("<I", found.raw_output_contents[0])
    about = json.loads(found.raw_output_contents[0][4:])
    assert size == len(found.raw_output_contents[0]) - 4
    custom = {"a": 1, "b": True, "c": 0.5, "d": "x", "binary_data_output": True, "x-mine": "m"}
    assert about == {
        "id": "i",
        "parameters": custom,
        "flags": 2,
        "sequence": "s",
        "timeout": 9_000_000,
    }
    assert (found.id, found.model_version) == ("i", "1")
    assert found.parameters["on"].bool_param is True
    assert found.parameters["count"].int64_param == 3
    assert found.parameters["word"].string_param == "w"


TYPED: dict[str, tuple[str, list[Any], bytes]] = {
    "BOOL": ("bool_contents", [True, False], b"\1\0"),
    "UINT8": ("uint_contents", [1, 0x1FF], b"\1\xff"),
    "UINT16": ("uint_contents", [1, 0x1FFFF], struct.pack("<2H", 1, 0xFFFF)),
    "UINT32": ("uint_contents", [1, 2], struct.pack("<2I", 1, 2)),
    "UINT64": ("uint64_contents", [1, 2], struct.pack("<2Q", 1, 2)),
    "INT8": ("int_contents", [-1, 0x101], b"\xff\1"),
    "INT16": ("int_contents", [-1, 0x10001], struct.pack("<2h", -1, 1)),
    "INT32": ("int_contents", [-1, 2], struct.pack("<2i", -1, 2)),
    "INT64": ("int64_contents", [-1, 2], struct.pack("<2q", -1, 2)),
    "FP32": ("fp32_contents", [1, 2.5], struct.pack("<2f", 1, 2.5)),
    "FP64": ("fp64_contents", [1, 2.5], struct.pack("<2d", 1, 2.5)),
    "BYTES": ("bytes_contents", [b"a\0", b"\xff"], b"\2\0\0\0a\0\1\0\0\0\xff"),
}


@pytest.mark.parametrize("kind", TYPED)
def test_typed_contents_are_answered_raw(stub: Any, kind: str) -> None:
    field, values, raw = TYPED[kind]
    name = "STRING" if kind == "BYTES" else kind
    request = Infer(model_name="kinds")
    getattr(add(request, name, kind, [2]).contents, field).extend(values)
    request.outputs.add(name=f"{name}_OUT")
    found = stub.ModelInfer(request, timeout=PATIENCE)
    assert list(found.raw_output_contents) == [raw]
    assert not found.outputs[0].HasField("contents")
    assert (found.outputs[0].datatype, list(found.outputs[0].shape)) == (kind, [2])


@pytest.mark.parametrize("kind", ["FP16", "BF16"])
def test_half_precision_travels_raw(stub: Any, kind: str) -> None:
    request = Infer(model_name="kinds")
    add(request, kind, kind, [2], b"\x00\x3c\x00\x40")
    request.outputs.add(name=f"{kind}_OUT")
    found = stub.ModelInfer(request, timeout=PATIENCE)
    assert list(found.raw_output_contents) == [b"\x00\x3c\x00\x40"]


def test_surplus_raw_data_is_ignored_and_outputs_keep_their_order(stub: Any) -> None:
    request = pair(1)
    request.raw_input_contents.append(b"more")
    found = stub.ModelInfer(request, timeout=PATIENCE)
    assert [output.name for output in found.outputs] == ["SUM", "DIFF"]
    assert struct.unpack("<4i", found.raw_output_contents[0]) == (11, 20, 30, 40)


def test_an_empty_output_has_an_empty_entry(stub: Any) -> None:
    found = stub.ModelInfer(echo(b"", (1, 0)), timeout=PATIENCE)
    assert list(found.raw_output_contents) == [b""]
    assert list(found.outputs[0].shape) == [1, 0]


@pytest.mark.parametrize(("asked", "ran"), [("", "2"), ("1", "1"), ("2", "2")])
def test_the_version_that_ran_is_told(stub: Any, asked: str, ran: str) -> None:
    request = Infer(model_name="two", model_version=asked)
    add(request, "X", "FP32", [1, 1], bytes(4))
    assert stub.ModelInfer(request, timeout=PATIENCE).model_version == ran


def test_classes_replace_the_entry(stub: Any) -> None:
    found = stub.ModelInfer(asking(int64_param=1), timeout=PATIENCE)
    assert (found.outputs[0].datatype, list(found.outputs[0].shape)) == ("BYTES", [1, 1])
    assert found.raw_output_contents[0] == b"\x0a\0\0\x002.000000:1"


def test_a_repeated_input(stub: Any) -> None:
    request = echo()
    add(request, "X", "FP32", [1, 2], bytes(8))
    phrase = "input 'X' already exists in request"
    refused(lambda: stub.ModelInfer(request, timeout=PATIENCE), Code.INVALID_ARGUMENT, phrase)
