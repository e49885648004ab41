"""ModelInferRequest as an `InferRequest`; nothing here knows grpc."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
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
)
from microkernel_grpc.parameters import read
from microkernel_grpc.places import classifications, parts
from microkernel_grpc.schema import message
from microkernel_grpc.wire import split_raw

Buffer: TypeAlias = bytes | bytearray | memoryview

_LARGE = 16 << 10
"""From this size on the raw fields are cut out by hand, which costs more than a small copy."""
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


def parse(packed: bytes) -> tuple[Any, Sequence[Buffer]]:
    """The message of a serialised ModelInferRequest, and its raw contents: views on `packed` where
    they are large. Raises InvalidArgument for what is no such message."""
    split = split_raw(packed) if len(packed) >= _LARGE else None
    head, raw = (packed, None) if split is None else split
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
    remaining, shared = iter(raw), parts("input", infer.inputs)
    inputs = tuple([_input(infer, entry, raw, remaining, shared) for entry in infer.inputs])
    return InferRequest(
        infer.model_name,
        inputs,
        version,
        infer.id,
        tuple([output.name for output in infer.outputs]) if infer.outputs else (),
        {**given.custom, **forwarded} if forwarded else given.custom,
        given.priority,
        given.timeout_us,
        given.sequence,
        classifications(infer.outputs),
        shared,
        parts("output", infer.outputs),
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
        raise InvalidArgument(
            f"invalid datatype '{entry.datatype}' for input '{name}', "
            f"expected one of {', '.join(DATA_TYPES)}"
        )
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
            f"'{model_name}' of type '{datatype.name}', expected datatype "
            f"'{_TYPE_OF_FIELD[field]}'"
        )
    if like == "BYTES":
        return encode_bytes(elements)
    wide = np.fromiter(elements, dtype=DATA_TYPES[like].numpy, count=len(elements))
    return raw_view(wide.astype(datatype.numpy, copy=False))  # keeps the low bytes, as Triton does
