"""The messages between the server and its workers, in a format of ours and without pickle.

Every message is a header (length of the rest, kind) and a body, all little-endian. Pure: bytes in,
plain data out. The bodies that describe batches are in `descriptors`.
"""

import json
import struct
from collections.abc import Iterator
from enum import IntEnum

_HEADER = struct.Struct("<IB")
_MAP = struct.Struct("<IQ")
_UNMAP = struct.Struct("<I")
_SIZE = struct.Struct("<Q")
HEADER_SIZE = _HEADER.size


class Kind(IntEnum):
    """What a message says."""

    MAP = 1  # a block: its number and size; the descriptor rides along
    UNMAP = 2  # a block is not used any more
    EXECUTE = 3  # run a batch
    RESULT = 4  # what became of the batch
    NEED = 5  # the output block is too small: so many bytes are needed
    COMPLETE = 6  # complete a model's configuration
    START = 7  # load a model version and make instances; their sockets ride along
    DONE = 8  # what was asked for was done
    FAILED = 9  # it could not be done
    LOG = 10  # a line for the log
    FORK = 11  # start a worker; its control socket rides along
    EXITED = 12  # a worker has ended


def frame(kind: Kind, *parts: bytes) -> bytes:
    """A whole message."""
    return _HEADER.pack(sum(map(len, parts)), kind) + b"".join(parts)


def map_message(number: int, size: int) -> bytes:
    """A block's number and size; its descriptor must ride along."""
    return frame(Kind.MAP, _MAP.pack(number, size))


def unmap_message(number: int) -> bytes:
    """The number of a block that is not used any more."""
    return frame(Kind.UNMAP, _UNMAP.pack(number))


def need_message(size: int) -> bytes:
    """How many bytes the outputs take."""
    return frame(Kind.NEED, _SIZE.pack(size))


def control_message(kind: Kind, document: object) -> bytes:
    """A message of a worker's control channel; `document` is plain JSON data."""
    return frame(kind, json.dumps(document).encode())


def split_messages(buffer: bytearray) -> Iterator[tuple[Kind, bytes]]:
    """Take the whole messages off the front of what was received; a part of one stays."""
    while len(buffer) >= HEADER_SIZE:
        length, kind = _HEADER.unpack_from(buffer)
        end = HEADER_SIZE + length
        if len(buffer) < end:
            return
        body = bytes(buffer[HEADER_SIZE:end])
        del buffer[:end]
        yield Kind(kind), body


def whole_message(data: bytes) -> tuple[Kind, bytes] | None:
    """The message, where exactly one was received, which is nearly always; else None."""
    if len(data) < HEADER_SIZE:
        return None
    length, kind = _HEADER.unpack_from(data)
    return (Kind(kind), data[HEADER_SIZE:]) if len(data) == HEADER_SIZE + length else None


def read_map(body: bytes) -> tuple[int, int]:
    """Number and size of a block."""
    number, size = _MAP.unpack(body)
    return number, size


def read_unmap(body: bytes) -> int:
    """Number of a block."""
    (number,) = _UNMAP.unpack(body)
    return int(number)


def read_need(body: bytes) -> int:
    """Bytes needed."""
    (size,) = _SIZE.unpack(body)
    return int(size)
