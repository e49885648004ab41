"""One of the responses of a request of a decoupled model, as a message: it carries its tensors.

Pure: bytes in, plain data out. What a worker sends is checked here, for the server trusts none of
it.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from microkernel.errors import Internal, MicrokernelError
from microkernel.request import RESCHEDULE, Answer, Answered, InferResponse, Outcome, Reschedule
from microkernel.tensor import BY_NUMBER, Tensor, element_count
from microkernel.workers.descriptors import (
    Schema,
    pack,
    read_error,
    read_parameters,
    unpack,
)
from microkernel.workers.wire import PART

LARGEST_PART = 256 << 20
"""The most bytes of tensors in one response of a decoupled model: the server collects a response
before it looks at it, and copies it on its event loop."""

_EMPTY, _ANSWER, _ERROR, _AGAIN = range(4)
_MALFORMED = "a part of a response is malformed"


@dataclass(slots=True)
class Part:
    """A response, an error, or None where all that is said is that there will be no more. With
    RESCHEDULE there will be more when the request runs again; it is `final` as well.

    The model worked for it from `began` to `output_start`, and what it gave was copied by `end`, on
    the monotonic clock. All are 0 where the server speaks for a model that cannot.
    """

    answer: Answered | None
    final: bool
    began: int = 0
    output_start: int = 0
    end: int = 0


@dataclass(slots=True)
class Moments:
    """When the model began to work for a response and when it gave it."""

    began: int
    output_start: int


def too_large(outcome: Outcome | None) -> Internal | None:
    """The error to send in place of a response that holds too much for one message."""
    if not isinstance(outcome, InferResponse):
        return None
    size = sum(len(tensor.data) for tensor in outcome.outputs)
    if size <= LARGEST_PART:
        return None
    return Internal(
        f"a response of a decoupled model may hold at most {LARGEST_PART} bytes of outputs, got "
        f"{size}; send it as several responses"
    )


def part_message(
    number: int, outcome: Outcome | None, schema: Schema, moments: Moments, *, final: bool
) -> tuple[bytes, int]:
    """The message, for the request of that number, and the moment at which its tensors had been
    copied into it. `outcome` is checked and not too large."""
    tensors: Sequence[Tensor] = ()
    kind, extras = _EMPTY, b""
    if isinstance(outcome, MicrokernelError):
        kind, extras = _ERROR, json.dumps([outcome.code, str(outcome)]).encode()
    elif isinstance(outcome, Reschedule):
        kind = _AGAIN
    elif outcome is not None:
        kind, tensors = _ANSWER, outcome.outputs
        if outcome.parameters:
            extras = json.dumps(dict(outcome.parameters)).encode()
    text = b"".join([extras, *(tensor.data for tensor in tensors)])
    end = time.monotonic_ns()
    words = [number, kind, final, moments.began, moments.output_start, end, len(extras)]
    words.append(len(tensors))
    for tensor in tensors:
        index, shape = schema.outputs.index(tensor.name), tensor.shape
        words += (index, tensor.datatype.number, len(tensor.data), len(shape), *shape)
    return pack(PART, words, (text,)), end


def read_part(body: bytes, schema: Schema) -> tuple[int, Part]:
    """The number of the request and the part, whose tensors are views on `body`. Raises ValueError,
    LookupError or struct.error for a message that cannot be right."""
    words, text = unpack(body)
    number, kind, final, began, output_start, end, extras_length, count = words[:8]
    data = memoryview(body)[text:]
    if not 0 <= extras_length <= len(data) or not 0 < began <= output_start <= end:
        raise ValueError(_MALFORMED)
    extras = bytes(data[:extras_length])
    outputs = _outputs(words[8:], count, schema, data[extras_length:])
    answer: Answered | None = None
    if kind == _ANSWER:
        answer = Answer(outputs, read_parameters(extras))
    elif kind == _ERROR:
        answer = read_error(extras)
    elif kind == _AGAIN:
        answer = RESCHEDULE
    said = isinstance(answer, (Answer, MicrokernelError))
    if not _EMPTY <= kind <= _AGAIN or not (said or final) or (outputs and kind != _ANSWER):
        raise ValueError(_MALFORMED)
    return number, Part(answer, bool(final), began, output_start, end)


def _outputs(
    words: Sequence[int], count: int, schema: Schema, data: memoryview
) -> tuple[Tensor, ...]:
    tensors, i, start = [], 0, 0
    for _ in range(count):
        index, number, nbytes, rank = words[i : i + 4]
        shape = words[i + 4 : i + 4 + rank] if rank >= 0 else ()
        i += 4 + rank
        datatype = BY_NUMBER[number]
        expected = element_count(shape) * datatype.size if datatype.size else nbytes
        fits = len(shape) == rank and min(shape, default=0) >= 0
        if index < 0 or not fits or not 0 <= nbytes == expected:
            raise ValueError(_MALFORMED)
        name = schema.outputs[index]
        tensors.append(Tensor(name, datatype, tuple(shape), data[start : start + nbytes]))
        start += nbytes
    if i != len(words) or start != len(data):
        raise ValueError(_MALFORMED)
    return tuple(tensors)
