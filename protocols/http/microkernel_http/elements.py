"""The elements of a JSON `data` array as raw bytes, and back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from microkernel import (
    DATA_TYPES,
    DataType,
    Internal,
    InvalidArgument,
    Tensor,
    decode_bytes,
    encode_bytes,
    raw_view,
)
from microkernel_http.document import refuse
from microkernel_http.nesting import STEP, flatten, kinds_of

_BYTES = DATA_TYPES["BYTES"]


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the elements of a data type must be in JSON. `wide` is the numpy type that elements are
    read as before they are cut down to the data type, which wraps, as in Triton."""

    types: frozenset[type]
    wide: str
    name: str
    wanted: str = ""


_UNSIGNED = _Kind(frozenset({int}), "<u8", "unsigned-integer")
_SIGNED = _Kind(frozenset({int}), "<i8", "signed-integer")
_NUMBER = _Kind(frozenset({int, float}), "<f8", "number", "double")
_KINDS: Mapping[DataType, _Kind] = {
    DATA_TYPES["BOOL"]: _Kind(frozenset({bool}), "?", "boolean"),
    **{DATA_TYPES[f"UINT{bits}"]: _UNSIGNED for bits in (8, 16, 32, 64)},
    **{DATA_TYPES[f"INT{bits}"]: _SIGNED for bits in (8, 16, 32, 64)},
    **{DATA_TYPES[f"FP{bits}"]: _NUMBER for bits in (32, 64)},
}


def to_raw(name: str, datatype: DataType, count: int, data: list[Any]) -> bytes | memoryview:
    """The elements of input `name`, nested in any way, in the raw layout.

    `count` is the number of elements that the input's shape wants; for BYTES any number will do.
    Raises Internal for an element of another kind and for a wrong count, InvalidArgument for a data
    type that JSON cannot carry.
    """
    if datatype is _BYTES:
        return _strings(flatten(data))
    kind = _KINDS.get(datatype)
    if kind is None:
        raise InvalidArgument(
            f"receiving {datatype.name} data via JSON is not supported. "
            f"Please use the binary data format for input {name}"
        )
    flat = flatten(data)
    if not kind.types >= kinds_of(flat):
        refuse("data", kind.name, kind.wanted)
    _check_count(len(flat), count)
    return _numbers(flat, datatype, kind)


def _check_count(found: int, wanted: int) -> None:
    if found < wanted:
        raise Internal("Failed to parse 'data' field: shape does not match true shape")
    if found > wanted:
        raise Internal("Unable to parse 'data': Shape does not match true shape of 'data' field")


def _numbers(flat: list[Any], datatype: DataType, kind: _Kind) -> memoryview:
    if len(flat) <= STEP:
        return raw_view(_cut_down(flat, datatype, kind))
    numbers = np.empty(len(flat), datatype.numpy)
    for start in range(0, len(flat), STEP):
        part = flat[start : start + STEP]
        numbers[start : start + STEP] = _cut_down(part, datatype, kind)
    return raw_view(numbers)


def _cut_down(flat: list[Any], datatype: DataType, kind: _Kind) -> np.ndarray[Any, Any]:
    if kind is _UNSIGNED and flat and min(flat) < 0:
        refuse("data", kind.name)  # not every numpy refuses it
    try:
        wide = np.array(flat, dtype=kind.wide)
    except OverflowError:
        refuse("data", kind.name, kind.wanted)
    with np.errstate(over="ignore"):
        return wide.astype(datatype.numpy, copy=False)


def _strings(flat: list[Any]) -> bytes:
    if not kinds_of(flat) <= {str}:
        raise Internal(
            "Unable to parse JSON bytes array: attempt to access JSON non-string as string"
        )
    return encode_bytes(flat)


def to_json(output: Tensor) -> list[Any]:
    """The elements of an output as a flat list that JSON can write; FP32 is widened to double.

    BYTES elements that are not UTF-8 hold surrogate escapes, to be written as the bytes they are.
    Raises InvalidArgument for FP16 and BF16.
    """
    datatype = output.datatype
    if datatype is _BYTES:
        elements = decode_bytes(output.data, output.name)
        return [element.decode("utf-8", "surrogateescape") for element in elements]
    if datatype not in _KINDS:
        raise InvalidArgument(
            f"sending {datatype.name} data via JSON is not supported. "
            "Please use the binary data format for output"
        )
    flat: list[Any] = np.frombuffer(output.data, dtype=datatype.numpy).tolist()
    return flat


def parts_to_json(output: Tensor) -> Iterator[list[Any]]:
    """The same elements in lists that are not long."""
    if output.datatype not in _KINDS:
        flat = to_json(output)
        yield from (flat[start : start + STEP] for start in range(0, len(flat), STEP))
        return
    numbers = np.frombuffer(output.data, dtype=output.datatype.numpy)
    for start in range(0, len(numbers), STEP):
        yield numbers[start : start + STEP].tolist()
