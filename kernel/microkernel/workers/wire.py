"""The messages between the server and its workers, in a format of ours and without pickle.

Every message is a header (length of the rest, kind) and a body, all little-endian. Pure: bytes in,
plain data out. The bodies that describe batches are in `descriptors`.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum

HEADER = struct.Struct("<IB")
"""The length of the body and the kind."""
_MAP = struct.Struct("<IQ")
_UNMAP = struct.Struct("<I")
_SIZE = struct.Struct("<Q")
_SIGNAL = struct.Struct("<IQ")
HEADER_SIZE = HEADER.size


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
    PART = 13  # one of the responses of a request, its tensors in the message
    CANCEL = 14  # nobody waits for a request any more
    PAUSE = 15  # the client of a request reads too slowly
    RESUME = 16  # it has caught up
    METRIC = 17  # metrics that a model declares: what became of them, and answers
    FATAL = 18  # the batch failed and so did its process, which must be ended
    VERBOSE = 19  # whether lines for debugging are to be sent from now on
    READY = 20  # whether an instance says that it is ready; and what it says


EXECUTE, RESULT, NEED, PART = Kind.EXECUTE, Kind.RESULT, Kind.NEED, Kind.PART
"""The kinds of every batch; to read a member off its class takes a call in Python 3.11."""
LARGEST_MESSAGE = 257 << 20
"""The most bytes that a worker may send at once: the tensors of a part, and what describes them. A
worker that announces more must not make the server collect it."""
_KINDS: Mapping[int, Kind] = {kind.value: kind for kind in Kind}
"""`Kind(number)` costs more than all else about a header; it is left to refuse what is unknown."""


def frame(kind: Kind, *parts: bytes) -> bytes:
    """A whole message."""
    return HEADER.pack(sum(map(len, parts)), kind) + b"".join(parts)


def map_message(number: int, size: int) -> bytes:
    """A block's number and size; its descriptor must ride along."""
    return frame(Kind.MAP, _MAP.pack(number, size))


def unmap_message(number: int) -> bytes:
    """The number of a block that is not used any more."""
    return frame(Kind.UNMAP, _UNMAP.pack(number))


def need_message(size: int) -> bytes:
    """How many bytes the outputs take."""
    return frame(Kind.NEED, _SIZE.pack(size))


def signal_message(kind: Kind, instance: int, number: int) -> bytes:
    """CANCEL, PAUSE or RESUME for the request of that number, in the instance at that place, or
    READY, whose number means nothing."""
    return frame(kind, _SIGNAL.pack(instance, number))


def fatal_message(text: str) -> bytes:
    """Why a batch failed and its worker cannot go on."""
    return frame(Kind.FATAL, text.encode(errors="replace"))


def control_message(kind: Kind, document: object) -> bytes:
    """A message of a worker's control channel; `document` is plain JSON data."""
    return frame(kind, json.dumps(document).encode())


def split_messages(buffer: bytearray, most: int = 2**32) -> Iterator[tuple[Kind, bytes]]:
    """Take the whole messages off the front of what was received; a part of one stays. Raises
    ValueError for an unknown kind and for a body of more than `most` bytes."""
    while len(buffer) >= HEADER_SIZE:
        length, kind = HEADER.unpack_from(buffer)
        if length > most:
            raise ValueError(f"a message of {length} bytes is too long")
        end = HEADER_SIZE + length
        if len(buffer) < end:
            return
        body = bytes(buffer[HEADER_SIZE:end])
        del buffer[:end]
        yield _KINDS.get(kind) or Kind(kind), body


def whole_message(data: bytes) -> tuple[Kind, bytes] | None:
    """The message, where exactly one was received, which is nearly always; else None."""
    if len(data) < HEADER_SIZE:
        return None
    length, kind = HEADER.unpack_from(data)
    if len(data) != HEADER_SIZE + length:
        return None
    return _KINDS.get(kind) or Kind(kind), data[HEADER_SIZE:]


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


def read_fatal(body: bytes) -> str:
    """Why a worker cannot go on."""
    return body.decode()


def read_signal(body: bytes) -> tuple[int, int]:
    """The place of an instance and the number of a request."""
    instance, number = _SIGNAL.unpack(body)
    return instance, number
