"""The table of data types, and tensors as views on bytes.

Every conversion between a type's names, sizes and numpy forms asks the table. The raw layout is the
one of the V2 protocol in every transport: little-endian, row-major, packed; a BYTES element is a
4-byte length and that many bytes.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from microkernel.errors import InvalidArgument

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]
Buffer: TypeAlias = bytes | bytearray | memoryview

_LENGTH = struct.Struct("<I")
_AT_ONCE = 4 << 10


@dataclass(frozen=True, slots=True, eq=False)
class DataType:
    """One element type. Rows are compared by identity: there is exactly one object per type.

    `size` is the bytes of an element, 0 where it varies (BYTES). `numpy` is None where numpy has no
    such type (BF16). `number` is that of the configuration, 0 for what is no type at all.
    """

    name: str
    number: int
    size: int
    numpy: np.dtype[Any] | None

    @property
    def config_name(self) -> str:
        """The name in `config.pbtxt`: `TYPE_FP32`; BYTES is spelled `TYPE_STRING` there."""
        return "TYPE_STRING" if self.name == "BYTES" else f"TYPE_{self.name}"

    @property
    def shown(self) -> str:
        """The name in messages, where Triton shows what is no type as `<invalid>`."""
        return self.name if self.number else "<invalid>"

    def __repr__(self) -> str:
        return self.name


def _row(name: str, number: int, size: int, numpy: str | type[object] | None) -> DataType:
    return DataType(name, number, size, None if numpy is None else np.dtype(numpy))


BOOL = _row("BOOL", 1, 1, "?")
UINT8 = _row("UINT8", 2, 1, "u1")
UINT16 = _row("UINT16", 3, 2, "<u2")
UINT32 = _row("UINT32", 4, 4, "<u4")
UINT64 = _row("UINT64", 5, 8, "<u8")
INT8 = _row("INT8", 6, 1, "i1")
INT16 = _row("INT16", 7, 2, "<i2")
INT32 = _row("INT32", 8, 4, "<i4")
INT64 = _row("INT64", 9, 8, "<i8")
FP16 = _row("FP16", 10, 2, "<f2")
FP32 = _row("FP32", 11, 4, "<f4")
FP64 = _row("FP64", 12, 8, "<f8")
BYTES = _row("BYTES", 13, 0, object)
BF16 = _row("BF16", 14, 2, None)

DATA_TYPES: Mapping[str, DataType] = {
    row.name: row
    for row in (
        *(BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64),
        *(FP16, FP32, FP64, BYTES, BF16),
    )
}
BY_CONFIG_NAME: Mapping[str, DataType] = {row.config_name: row for row in DATA_TYPES.values()}
BY_NUMBER: Mapping[int, DataType] = {row.number: row for row in DATA_TYPES.values()}
_BY_NUMPY: Mapping[np.dtype[Any], DataType] = {
    row.numpy: row for row in DATA_TYPES.values() if row.numpy is not None
}


def unknown_type(name: str) -> DataType:
    """A row for a name that is no type's. It is none of the types, so no model takes a tensor of
    it: who checks the request can say which input is wrong, and what would be right."""
    return DataType(name, 0, 0, None)


def datatype_of(array: Array) -> DataType:
    """The type of a numpy array. Arrays of objects, `bytes` or `str` are BYTES.

    Raises InvalidArgument where the protocol has no such type.
    """
    if array.dtype.kind in "OSU":
        return BYTES
    try:
        return _BY_NUMPY[array.dtype.newbyteorder("<")]
    except KeyError:
        raise InvalidArgument(
            f"numpy type '{array.dtype}' has no counterpart on the wire"
        ) from None


def element_count(shape: Iterable[int]) -> int:
    """How many elements a shape holds; 1 for the empty shape."""
    return math.prod(shape)


@dataclass(slots=True)
class Tensor:
    """A named tensor whose `data` is a view on contiguous host bytes in the raw layout; nothing is
    copied.

    Whoever made the view keeps it valid as long as the tensor lives. Treat a tensor as read-only.
    """

    name: str
    datatype: DataType
    shape: Shape
    data: Buffer

    @property
    def nbytes(self) -> int:
        """The size of `data` in bytes."""
        return len(self.data)

    def as_numpy(self) -> Array:
        """The tensor as a numpy array of its shape: a view, except for BYTES, whose elements become
        `bytes` objects.

        Raises InvalidArgument for BF16, which numpy lacks, and for data that does not fit the
        shape.
        """
        if self.datatype is BYTES:
            elements = decode_bytes(self.data, self.name)
            array = np.empty(len(elements), dtype=np.object_)
            array[:] = elements
        elif self.datatype.numpy is None:
            raise InvalidArgument(
                f"tensor '{self.name}' is {self.datatype.name}, which numpy lacks"
            )
        else:
            if len(self.data) % self.datatype.size:
                raise InvalidArgument(
                    f"tensor '{self.name}' holds {len(self.data)} bytes, which are no whole number "
                    f"of {self.datatype.name} elements"
                )
            array = np.frombuffer(self.data, dtype=self.datatype.numpy)
        try:
            return array.reshape(self.shape)
        except ValueError:
            raise InvalidArgument(
                f"tensor '{self.name}' holds {array.size} elements, its shape {list(self.shape)} "
                f"wants {element_count(self.shape)}"
            ) from None

    @classmethod
    def from_numpy(cls, name: str, array: Array) -> "Tensor":
        """A tensor on the array's memory; copied only where the array is not contiguous or not
        little-endian.

        Arrays of objects become BYTES: `bytes` elements as they are, others as `str(element)` in
        UTF-8.
        """
        datatype = datatype_of(array)
        shape = array.shape
        if datatype is BYTES:
            return cls(name, datatype, shape, encode_bytes(array.reshape(-1).tolist()))
        assert datatype.numpy is not None
        return cls(name, datatype, shape, raw_view(array.astype(datatype.numpy, copy=False)))


def raw_view(array: Array) -> memoryview:
    """The bytes of an array in row-major order, as a flat view where it is contiguous, else as a
    copy."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def encode_bytes(elements: Sequence[object]) -> bytes:
    """BYTES elements in the raw layout; an element that is not `bytes` becomes `str(element)` in
    UTF-8."""
    count = len(elements)
    if count > _AT_ONCE:  # the parts of tiny elements take many times what they are joined to
        starts = range(0, count, _AT_ONCE)
        return b"".join([encode_bytes(elements[i : i + _AT_ONCE]) for i in starts])
    parts: list[bytes] = []
    for element in elements:
        raw = element if isinstance(element, bytes) else str(element).encode()
        parts += (_LENGTH.pack(len(raw)), raw)
    return b"".join(parts)


def decode_bytes(data: Buffer, name: str) -> list[bytes]:
    """The elements of a BYTES tensor in the raw layout. `name` is the input's, for the messages of
    InvalidArgument."""
    elements: list[bytes] = []
    raw = bytes(data)
    position, end = 0, len(raw)
    while position < end:
        start = position + _LENGTH.size
        if start > end:
            raise InvalidArgument(
                f"incomplete string length indicator for inference input '{name}', "
                f"expecting {_LENGTH.size} bytes but only {end - position} bytes available"
            )
        (length,) = _LENGTH.unpack_from(raw, position)
        position = start + length
        if position > end:
            raise InvalidArgument(
                f"incomplete string data for inference input '{name}', "
                f"expecting string of length {length} but only {end - start} bytes available"
            )
        elements.append(raw[start:position])
    return elements
