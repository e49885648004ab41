"""Compressed bodies; nothing here knows aiohttp.

Inflating stops at a bound, whatever a body claims to be: a few bytes can stand for gigabytes.
"""

import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache

from microkernel import Internal, InvalidArgument
from microkernel_http.encode import Buffer

IDENTITY = "identity"
_GZIP_OR_ZLIB = 47
_GZIP = b"\x1f\x8b"
_MOST_MEMBERS = 4096
_FED = 64 << 10
_WINDOWS = {"gzip": 31, "deflate": 15}
CODINGS = frozenset(_WINDOWS)
"""The ways of compression that are known; `deflate` is the format of zlib."""
PIECE = 256 << 10
"""The most bytes that `inflate` gives at a time."""


def inflate(body: bytes, limit: int) -> Iterator[bytes]:
    """The contents of a body in gzip or zlib format, whichever it is, piece by piece as they are
    asked for; no piece is empty. In gzip format there may be several members, one behind another.

    Raises InvalidArgument for an empty body and as soon as there are more than `limit` bytes, and
    Internal for corrupt data.
    """
    if not body:
        raise InvalidArgument("nothing to be decompressed")
    stream, view, position, size, members = _stream(), memoryview(body), 0, 0, 1
    while True:
        data: Buffer = stream.unconsumed_tail
        if not data:
            data, position = view[position : position + _FED], position + _FED
        piece = _piece(stream, data)
        size += len(piece)
        _check_size(size, limit)
        if piece:
            yield piece
        if stream.eof:
            position = min(position, len(body)) - len(stream.unused_data)
            if position == len(body):
                return
            if not _both_gzip(body, position) or members == _MOST_MEMBERS:
                raise _corrupt("there is more data after its end")
            stream, members = _stream(), members + 1


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise InvalidArgument(
            f"Decompressed data size exceeds the maximum allowed value of {limit} bytes. "
            "Use --http-max-input-size to increase the limit."
        )


def _stream() -> "zlib._Decompress":
    return zlib.decompressobj(_GZIP_OR_ZLIB)


def _both_gzip(body: bytes, position: int) -> bool:
    """Whether a body begins in gzip format, and once more at a position."""
    return body.startswith(_GZIP) and body.startswith(_GZIP, position)


def _piece(stream: "zlib._Decompress", data: Buffer) -> bytes:
    try:
        piece = stream.decompress(data, PIECE)
    except zlib.error as error:
        raise _corrupt(str(error)) from None
    if not piece and not data:
        raise _corrupt("it ends too early")
    return piece


def _corrupt(reason: str) -> Internal:
    return Internal(f"failed to decompress the request body: {reason}")


@lru_cache(256)
def choose(accepted: str | None) -> str:
    """The coding of an answer by the request's `Accept-Encoding`: the known one of the highest
    weight, the first of equals, IDENTITY where none is acceptable. What is malformed is ignored,
    and so is `*`, as in Triton."""
    best, highest = IDENTITY, 0.0
    for item in accepted.split(",") if accepted else ():
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = _weight(parameters)
        if (name == IDENTITY or name in CODINGS) and weight > highest:
            best, highest = name, weight
    return best


def _weight(parameters: list[str]) -> float:
    """The weight of an item, 1 where it gives none, 0 where it is malformed."""
    if not parameters:
        return 1.0
    key, _, value = parameters[0].partition("=")
    try:
        weight = float(value) if key.strip() == "q" and len(parameters) == 1 else 0.0
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0


def deflate(buffers: Iterable[Buffer], coding: str) -> bytes:
    """Buffers, one after the other, as one compressed body in a coding of CODINGS."""
    stream = zlib.compressobj(wbits=_WINDOWS[coding])
    parts = [stream.compress(buffer) for buffer in buffers]
    return b"".join([*parts, stream.flush()])
