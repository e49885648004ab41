"""What a worker sends to the server."""

import contextlib
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

from fuzz_mutations import NUMBERS, mutate_bytes
from fuzz_requests import CONFIG
from fuzz_targets import Target

from microkernel import DATA_TYPES, RESCHEDULE, InferResponse, NotFound, Outcome, Tensor
from microkernel.request import Answer
from microkernel.stats import Execution
from microkernel.workers import descriptors, parts, wire
from microkernel.workers.descriptors import Schema
from microkernel.workers.wire import HEADER_SIZE, Kind

_SCHEMA = Schema.of(CONFIG)
_BLOCK = memoryview(bytes(4096))
_WORD = struct.Struct("<q")
_ERRORS = (struct.error, ValueError, LookupError, RecursionError)
"""Upon these the server ends the worker."""


def _tensors(*kinds: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(kind, DATA_TYPES[kind], (2,), bytes(2 * DATA_TYPES[kind].size)) for kind in kinds
    )


def _answer(*kinds: str) -> InferResponse:
    return InferResponse("m", 1, "", _tensors(*kinds), {"a": 1, "b": "c"})


_OUTCOMES: tuple[Outcome, ...] = (
    *(_answer("INT8", "FP32"), NotFound("no"), RESCHEDULE, _answer()),
)


def _result() -> bytes:
    offsets, _ = descriptors.place(_OUTCOMES)
    message = descriptors.result_message(_OUTCOMES, offsets, _SCHEMA, Execution(1, 2, 3, 4))
    return message[HEADER_SIZE:]


def _part(outcome: Outcome | None) -> bytes:
    moments = parts.Moments(1, 2)
    final = outcome in (None, RESCHEDULE)
    message, _ = parts.part_message(7, outcome, _SCHEMA, moments, final=final)
    return message[HEADER_SIZE:]


def _read_result(body: bytes) -> Any:
    return descriptors.read_result(body, _SCHEMA, _BLOCK, 1)[1]


def _read_part(body: bytes) -> Any:
    return [parts.read_part(body, _SCHEMA)[1].answer]


def _read_stream(body: bytes) -> Any:
    """All messages of a channel; the one that came alone is the same either way."""
    whole, buffer = None, bytearray(body)
    with contextlib.suppress(ValueError):
        whole = wire.whole_message(body)
    found = list(wire.split_messages(buffer, wire.LARGEST_MESSAGE))
    assert whole is None or found == [whole]
    assert sum(HEADER_SIZE + len(each) for _, each in found) + len(buffer) == len(body)
    return []


def _read_fixed(body: bytes) -> Any:
    for read in (wire.read_map, wire.read_unmap, wire.read_need, wire.read_signal):
        with contextlib.suppress(struct.error):
            read(body)
    return [descriptors.read_error(body)]


_READERS: tuple[tuple[Callable[[bytes], Any], tuple[bytes, ...]], ...] = (
    (_read_result, (_result(),)),
    (_read_part, tuple(map(_part, (_answer("FP32"), NotFound("no"), RESCHEDULE, None)))),
    (_read_stream, (wire.need_message(7) + wire.frame(Kind.LOG, b"x"), wire.map_message(1, 2))),
    (_read_fixed, (json.dumps(["NOT_FOUND", "no"]).encode(), bytes(12))),
)


def _read(data: bytes) -> Any:
    reader, _ = _READERS[data[0] % len(_READERS) if data else 0]
    try:
        return reader(data[1:])
    except _ERRORS:
        return None


def _check(read: list[Any]) -> None:
    """What is answered from has the size that it claims, and parameters are such."""
    for each in read:
        if isinstance(each, Answer):
            assert type(each.parameters) is dict or not each.parameters
            for value in each.parameters.values():
                assert type(value) in (bool, int, float, str)
            for tensor in each.outputs:
                wanted = len(tensor.data) if not tensor.datatype.size else _size(tensor)
                assert len(tensor.data) == wanted, "an output is not as long as it says"


def _size(tensor: Tensor) -> int:
    assert all(size >= 0 for size in tensor.shape)
    size = tensor.datatype.size
    for dim in tensor.shape:
        size *= dim
    return size


def _change(data: bytes, rng: Random) -> bytes:
    """Change one of the words of a descriptor, or any byte."""
    words = (len(data) - 5) // _WORD.size
    if words < 1 or rng.random() < 0.3:
        return data[:1] + mutate_bytes(data[1:], rng)
    place = 5 + _WORD.size * rng.randrange(words)
    (old,) = _WORD.unpack_from(data, place)
    near = [old + 1, old - 1, -old, old * 2]
    new = rng.choice([n for n in (*NUMBERS, *near) if -(2**63) <= n < 2**63])
    return data[:place] + _WORD.pack(new) + data[place + _WORD.size :]


WORKER_MESSAGES = Target(
    "worker_messages",
    _read,
    _check,
    [bytes((i,)) + seed for i, (_, seeds) in enumerate(_READERS) for seed in seeds],
    _change,
)
