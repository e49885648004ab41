"""What a kept response looks like: bytes in a format of ours, without pickle. Pure.

A fixed head, then a number of 64-bit words that describe the outputs, their names, and their data,
each at a multiple of `ALIGNMENT`. What is read may come from a stranger's memory: everything it
says is checked before it is believed.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from microkernel.errors import InvalidArgument
from microkernel.tensor import (
    BYTES,
    Buffer,
    DataType,
    Tensor,
    decode_bytes,
    element_count,
)

ALIGNMENT = 16
_MAGIC = b"mk\x00resp1"
_HEAD = struct.Struct("<8s32sII")
"""The magic number, the key, the number of words and the length of the names."""


def encode_entry(key: bytes, outputs: Sequence[Tensor]) -> bytes:
    """The outputs of a response to be kept under the key; their data is copied once."""
    words: list[int] = []
    names: list[bytes] = []
    for tensor in outputs:
        name, shape = tensor.name.encode(), tensor.shape
        words += (len(name), tensor.datatype.number, len(tensor.data), len(shape), *shape)
        names.append(name)
    text = b"".join(names)
    head = _HEAD.pack(_MAGIC, key, len(words), len(text))
    parts: list[Buffer] = [head, struct.pack(f"<{len(words)}q", *words), text]
    position = len(head) + 8 * len(words) + len(text)
    for tensor in outputs:
        start = _aligned(position)
        parts += (bytes(start - position), tensor.data)
        position = start + len(tensor.data)
    return b"".join(parts)


def decode_entry(
    data: Buffer, key: bytes, datatypes: Mapping[str, DataType], *, trusted: bool
) -> tuple[Tensor, ...]:
    """The outputs, as views on `data`. `datatypes` are those of the model's outputs.

    Raises ValueError for anything that `encode_entry` has not made for this key and this model.
    The elements of BYTES tensors are looked at only where the data is not `trusted`.
    """
    view = memoryview(data).cast("B")
    words, names, position = _head(view, key)
    at, outputs = 0, []
    for size, number, nbytes, shape in _described(words):
        name, at = names[at : at + size].decode(), at + size
        start = _aligned(position)
        position = start + nbytes
        datatype = datatypes.get(name)
        if datatype is None or datatype.number != number:
            raise ValueError(f"the model has no output '{name}' of that type")
        outputs.append(Tensor(name, datatype, shape, view[start:position]))
        _check(outputs[-1], nbytes, trusted=trusted)
    if at != len(names) or position != len(view) or len({t.name for t in outputs}) < len(outputs):
        raise ValueError("not as long as it says")
    return tuple(outputs)


def _head(view: memoryview, key: bytes) -> tuple[tuple[int, ...], bytes, int]:
    """The words, the names, and where they end."""
    if len(view) < _HEAD.size:
        raise ValueError("too short")
    magic, owner, count, length = _HEAD.unpack_from(view)
    names = _HEAD.size + 8 * count
    end = names + length
    if magic != _MAGIC or owner != key or end > len(view):
        raise ValueError("not an entry of this key")
    return struct.unpack_from(f"<{count}q", view, _HEAD.size), bytes(view[names:end]), end


def _described(words: Sequence[int]) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
    """The length of the name, the number of the type, the length of the data and the shape of each
    output."""
    i = 0
    while i < len(words):
        size, number, nbytes, rank = words[i : i + 4]
        i += 4 + rank
        if min(size, nbytes, rank) < 0 or i > len(words):
            raise ValueError("not as long as it says")
        yield size, number, nbytes, tuple(words[i - rank : i])


def _check(tensor: Tensor, nbytes: int, *, trusted: bool) -> None:
    count, size = element_count(tensor.shape), tensor.datatype.size
    if len(tensor.data) != nbytes or not _possible(tensor.shape, size):
        raise ValueError("not as long as it says")
    if tensor.datatype is BYTES:
        if not trusted and _elements(tensor) != count:
            raise ValueError("the elements do not fit the shape")
    elif count * size != nbytes:
        raise ValueError("the data does not fit the shape")


def _elements(tensor: Tensor) -> int:
    try:
        return len(decode_bytes(tensor.data, tensor.name))
    except InvalidArgument as error:
        raise ValueError(str(error)) from None


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


def _possible(shape: Sequence[int], size: int) -> bool:
    """Whether there can be an array of a shape: one without elements has bounds, too."""
    if min(shape, default=0) < 0:
        return False
    return prod(dim or 1 for dim in shape) * max(size, 8) < 1 << 63
