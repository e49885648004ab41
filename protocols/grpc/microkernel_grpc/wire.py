"""Large tensors past protobuf: reading and writing the raw fields of the infer messages by hand
spares a copy of every tensor each way."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

_LENGTH_DELIMITED = 2
_MAX_FIELDS = 1000
RAW_INPUT = 7
RAW_OUTPUT = 6
INFER_RESPONSE = 2


def split_raw(packed: bytes) -> tuple[bytes, list[memoryview]] | None:
    """A serialised ModelInferRequest as the message without its `raw_input_contents`, and those as
    views on `packed`.

    None where the message is not of the plain form that clients send; protobuf may read it yet.
    """
    places = raw_places(packed)
    if places is None:
        return None
    view, kept, position = memoryview(packed), [], 0
    for field, _, end in places:
        kept.append(view[position:field])
        position = end
    kept.append(view[position:])
    return b"".join(kept), [view[start:end] for _, start, end in places]


def raw_places(packed: bytes) -> list[tuple[int, int, int]] | None:
    """Where each of the `raw_input_contents` of a serialised ModelInferRequest lies: where its
    field starts, and where its bytes start and end. None as `split_raw`."""
    view, end, position, others = memoryview(packed), len(packed), 0, 0
    places: list[tuple[int, int, int]] = []
    try:
        while position < end:
            field = position
            tag, position = _varint(view, position)
            length, start = _varint(view, position)
            position = start + length
            if tag & 7 != _LENGTH_DELIMITED or position > end or others > _MAX_FIELDS:
                return None
            if tag >> 3 == RAW_INPUT:
                places.append((field, start, position))
            else:
                others += 1
    except IndexError:
        return None
    return places


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise IndexError


def join_raw(head: bytes, contents: Sequence[Buffer]) -> bytes:
    """A serialised ModelInferResponse from one without `raw_output_contents` and those."""
    return b"".join(_parts(head, contents))


def join_streamed(head: bytes, contents: Sequence[Buffer]) -> bytes:
    """As `join_raw`, inside a serialised ModelStreamInferResponse."""
    parts = _parts(head, contents)
    return b"".join((_prefix(INFER_RESPONSE, sum(map(len, parts))), *parts))


def _parts(head: bytes, contents: Sequence[Buffer]) -> list[Buffer]:
    parts: list[Buffer] = [head]
    for buffer in contents:
        parts += (_prefix(RAW_OUTPUT, len(buffer)), buffer)
    return parts


@lru_cache(1024)
def _prefix(field: int, length: int) -> bytes:
    prefix = bytearray((field << 3 | _LENGTH_DELIMITED,))
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix)
