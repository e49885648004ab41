"""ModelInferRequest as an `InferRequest`; nothing here knows grpc."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from microkernel import (
    DATA_TYPES,
    DataType,
    InferRequest,
    InvalidArgument,
    Parameters,
    RegionPart,
    Tensor,
    encode_bytes,
    parse_version,
    raw_view,
    unknown_type,
)
from microkernel_grpc.parameters import read
from microkernel_grpc.places import classifications, parts
from microkernel_grpc.schema import message
from microkernel_grpc.wire import MOST_FIELDS, crowded, split_raw

Array: TypeAlias = npt.NDArray[Any]
Buffer: TypeAlias = bytes | bytearray | memoryview
Parsed: TypeAlias = tuple[Any, Sequence[Buffer]]
"""A message, and its raw contents."""

_LARGE = 16 << 10
"""From this size on the raw fields are cut out by hand, which costs more than a small copy."""
_LONG = 256 << 10
"""Messages of more bytes than this that are not raw take long."""
_MOST_DIMS = 1 << 10
_INPUTS, _OUTPUTS = 5, 6
_TURN = 8 << 10
"""How many elements are converted before another thread may have its turn."""
_FIELDS: Mapping[DataType, tuple[str, str]] = {
    DATA_TYPES[name]: (field, like)
    for field, like, names in (
        ("bool_contents", "BOOL", ("BOOL",)),
        ("int_contents", "INT32", ("INT8", "INT16", "INT32")),
        ("int64_contents", "INT64", ("INT64",)),
        ("uint_contents", "UINT32", ("UINT8", "UINT16", "UINT32")),
        ("uint64_contents", "UINT64", ("UINT64",)),
        ("fp32_contents", "FP32", ("FP32",)),
        ("fp64_contents", "FP64", ("FP64",)),
        ("bytes_contents", "BYTES", ("BYTES",)),
    )
    for name in names
}
"""The field that carries a data type's elements, and the data type with the elements' own size."""
NOTHING_FORWARDED: Parameters = {}
_TYPE_OF_FIELD = dict(_FIELDS.values())


def parse_short(packed: bytes) -> Parsed | None:
    """As `parse`; None where that, or decoding the message, takes so long that others should not
    have to wait for it."""
    if len(packed) < _LARGE:
        return _parse(packed, None)
    split = split_raw(packed, _LONG)
    return None if split is None else _parse(*split)


def parse(packed: bytes) -> Parsed:
    """The message of a serialised ModelInferRequest, and its raw contents: views on `packed` where
    they are large. Raises InvalidArgument for what is no such message, and for a long one that has
    more inputs, outputs, dims and the like than any model."""
    short = parse_short(packed)
    if short is not None:
        return short
    if crowded(packed, (_INPUTS, _OUTPUTS)):
        raise InvalidArgument(
            f"the message has more than {MOST_FIELDS} fields: inputs, outputs, parameters, raw "
            "contents and what the inputs and outputs hold"
        )
    infer, raw = _parse(*(split_raw(packed) or (packed, None)))
    for entry in infer.inputs:
        if len(entry.shape) > _MOST_DIMS:
            raise InvalidArgument(
                f"unexpected shape for input '{entry.name}' for model '{infer.model_name}'. "
                f"Expected no more than {_MOST_DIMS} dims, got {len(entry.shape)}"
            )
    return infer, raw


def _parse(head: bytes, raw: Sequence[Buffer] | None) -> Parsed:
    """The message of a head, and its raw contents: the given ones, else its own."""
    infer: Any = message("ModelInferRequest")()
    try:
        infer.ParseFromString(head)
    except DecodeError:
        raise InvalidArgument("the message is not a valid ModelInferRequest") from None
    return infer, list(infer.raw_input_contents) if raw is None else raw


def decode(
    infer: Any, raw: Sequence[Buffer], forwarded: Parameters = NOTHING_FORWARDED
) -> InferRequest:
    """The request of a message and its raw contents, with views on the latter. `forwarded` are
    parameters from metadata, which an operator's proxy may set: they beat those of the message.

    Raises InvalidArgument for contents that cannot be right.
    """
    version = parse_version(infer.model_version)
    given = read(infer.parameters)
    entries, outputs = infer.inputs, infer.outputs
    remaining, shared = iter(raw), parts("input", entries)
    inputs = tuple([_input(infer, entry, raw, remaining, shared) for entry in entries])
    return InferRequest(
        infer.model_name,
        inputs,
        version,
        infer.id,
        tuple([output.name for output in outputs]) if outputs else (),
        {**given.custom, **forwarded} if forwarded else given.custom,
        given.priority,
        given.timeout_us,
        given.sequence,
        classifications(outputs),
        shared,
        parts("output", outputs),
    )


def _input(
    infer: Any,
    entry: Any,
    raw: Sequence[Buffer],
    remaining: Iterator[Buffer],
    shared: Mapping[str, RegionPart],
) -> Tensor:
    name, shape = entry.name, tuple(entry.shape)
    datatype = DATA_TYPES.get(entry.datatype)
    if datatype is None:
        datatype = unknown_type(entry.datatype)
    if shape and min(shape) < 0:
        raise InvalidArgument(
            f"[request id: {infer.id or '<id_unknown>'}] All input dimensions should be specified "
            f"for input '{name}' for model '{infer.model_name}', got {list(shape)}"
        )
    explicit = entry.HasField("contents")
    if name in shared:
        if explicit:
            raise InvalidArgument(
                f"unexpected 'content' provided when using shared memory for input tensor '{name}' "
                f"for model '{infer.model_name}'"
            )
        return Tensor(name, datatype, shape, b"")
    if explicit:
        if raw:
            raise InvalidArgument(
                "contents field must not be specified when using raw_input_contents for "
                f"'{name}' for model '{infer.model_name}'"
            )
        return Tensor(name, datatype, shape, _contents(infer.model_name, entry, datatype))
    data = next(remaining, None)
    if data is None:
        raise InvalidArgument(
            f"unable to find data for input tensor '{name}' for model '{infer.model_name}' "
            "in request."
        )
    return Tensor(name, datatype, shape, data)


def _contents(model_name: str, entry: Any, datatype: DataType) -> Buffer:
    """The elements of the typed fields in the raw layout."""
    filled = entry.contents.ListFields()
    if not filled:
        return b""
    if len(filled) > 1:
        raise InvalidArgument(
            f"binary data was already supplied for input tensor '{entry.name}' for model "
            f"'{model_name}', it must be in one field only"
        )
    field, elements = filled[0][0].name, filled[0][1]
    wanted, like = _FIELDS.get(datatype, ("", ""))
    if field != wanted:
        raise InvalidArgument(
            f"unexpected explicit tensor data for input tensor '{entry.name}' for model "
            f"'{model_name}' of type '{datatype.shown}', expected datatype "
            f"'{_TYPE_OF_FIELD[field]}'"
        )
    if like == "BYTES":
        return encode_bytes(elements)
    wide = _array(elements, DATA_TYPES[like].numpy)
    return raw_view(wide.astype(datatype.numpy, copy=False))  # keeps the low bytes, as Triton does


def _array(elements: Sequence[Any], kind: Any) -> Array:
    """Elements as a numpy array. Each call of numpy keeps other threads waiting, so one never sees
    more than a turn's."""
    count = len(elements)
    if count <= _TURN:
        return np.fromiter(elements, kind, count)
    rest, filled = iter(elements), np.empty(count, kind)
    for start in range(0, count, _TURN):
        filled[start : start + _TURN] = np.fromiter(islice(rest, _TURN), kind)
    return filled
