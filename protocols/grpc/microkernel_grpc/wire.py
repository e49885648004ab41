"""Large tensors past protobuf: reading and writing the raw fields of the infer messages by hand
spares a copy of every tensor each way."""

import sys
from collections.abc import Container, Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

MOST_FIELDS = 1 << 16
"""The most fields that a message may have: each takes some time, however small it is."""
_MAX_FIELDS = 2000
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
RAW_INPUT = 7
RAW_OUTPUT = 6
INFER_RESPONSE = 2


def split_raw(packed: bytes, longest: int = sys.maxsize) -> tuple[bytes, list[memoryview]] | None:
    """A serialised ModelInferRequest as the message without its `raw_input_contents`, and those as
    views on `packed`.

    None where the message is not of the plain form that clients send; protobuf may read it yet.
    None, too, where there would be more than `longest` bytes of it without those.
    """
    places = raw_places(packed)
    if places is None:
        return None
    view, kept, position = memoryview(packed), [], 0
    for field, _, end in places:
        kept.append(view[position:field])
        position = end
    kept.append(view[position:])
    if len(packed) > longest and sum(map(len, kept)) > longest:
        return None
    return b"".join(kept), [view[start:end] for _, start, end in places]


def raw_places(packed: bytes) -> list[tuple[int, int, int]] | None:
    """Where each of the `raw_input_contents` of a serialised ModelInferRequest lies: where its
    field starts, and where its bytes start and end. None as `split_raw`."""
    view, end, position, fields = memoryview(packed), len(packed), 0, 0
    places: list[tuple[int, int, int]] = []
    try:
        while position < end:
            field = position
            tag, position = _varint(view, position)
            length, start = _varint(view, position)
            position = start + length
            fields += 1
            if tag & 7 != _LENGTH_DELIMITED or position > end or fields > _MAX_FIELDS:
                return None
            if tag >> 3 == RAW_INPUT:
                places.append((field, start, position))
    except IndexError:
        return None
    return places


def crowded(packed: bytes, nested: Container[int] = ()) -> bool:
    """Whether a serialised message has more than `MOST_FIELDS` fields, together with the fields of
    the messages in its fields of the `nested` numbers. Of bytes that are no message it says
    nothing of use."""
    view, count, inner = memoryview(packed), 0, nested
    spans = [(0, len(packed))]
    for begin, finish in spans:
        for number, start, end in _fields(view, begin, finish):
            count += 1
            if count > MOST_FIELDS:
                return True
            if number in inner:
                spans.append((start, end))
        inner = ()
    return False


def _fields(view: memoryview, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The number of each field of a message, and where what it holds starts and ends; up to the
    first byte that makes no sense. What lies in a group counts as if it lay around it."""
    try:
        while position < end:
            tag, start = _varint(view, position)
            position, kind = start, tag & 7
            if kind == _LENGTH_DELIMITED:
                length, start = _varint(view, start)
                position = start + length
            elif kind == _VARINT:
                _, position = _varint(view, start)
            else:
                position += _FIXED.get(kind, 0)
            yield tag >> 3, start, min(position, end)
    except IndexError:
        return


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
