"""Responses of decoupled models as messages: what goes in comes out, and what cannot be right is an
error that the reader expects."""

import struct
import time
from typing import Any

import pytest
from any_tensors import tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel import (
    DATA_TYPES,
    RESCHEDULE,
    Cancelled,
    InferResponse,
    Internal,
    MicrokernelError,
    Outcome,
    Tensor,
)
from microkernel.request import Answer
from microkernel.workers import parts
from microkernel.workers.descriptors import Schema
from microkernel.workers.parts import Moments, part_message, read_part, too_large
from microkernel.workers.wire import HEADER_SIZE

OUTPUTS = ("OUT0", "OUT1", "OUT2")
SCHEMA = Schema((), OUTPUTS, batches=True, decoupled=True)
EXPECTED_ERRORS = (struct.error, ValueError, LookupError)
NOW = Moments(5, 7)


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome | None:
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return None
    if kind == 4:
        return RESCHEDULE
    if kind == 1:
        error: MicrokernelError = draw(st.sampled_from([Internal, Cancelled]))(draw(st.text()))
        return error
    names = draw(st.lists(st.sampled_from(OUTPUTS), unique=True))
    scalars = st.one_of(st.booleans(), st.integers(), st.text(), st.floats(-1, 1))
    parameters = draw(st.dictionaries(st.text(), scalars, max_size=3))
    return InferResponse("", 1, "", tuple(draw(tensors(name)) for name in names), parameters)


def plain(outcome: Any) -> Any:
    """Something that compares."""
    if isinstance(outcome, MicrokernelError):
        return type(outcome), str(outcome)
    if outcome is None or outcome is RESCHEDULE:
        return outcome
    rows = [(t.name, t.datatype, tuple(t.shape), bytes(t.data)) for t in outcome.outputs]
    return rows, dict(outcome.parameters)


@settings(max_examples=80)
@given(outcomes(), st.integers(0, 2**60), st.booleans())
def test_what_goes_in_comes_out(outcome: Outcome | None, number: int, final: bool) -> None:
    final = final or outcome is None or outcome is RESCHEDULE
    message, end = part_message(number, outcome, SCHEMA, NOW, final=final)
    read, part = read_part(message[HEADER_SIZE:], SCHEMA)
    assert (read, part.final, part.began, part.output_start, part.end) == (number, final, 5, 7, end)
    assert end <= time.monotonic_ns()
    assert plain(part.answer) == plain(outcome)


@settings(max_examples=150)
@given(outcomes(), st.data())
def test_a_damaged_message_is_an_expected_error_or_a_sound_part(
    outcome: Outcome | None, data: st.DataObject
) -> None:
    message, _ = part_message(3, outcome, SCHEMA, NOW, final=True)
    body = bytearray(message[HEADER_SIZE:])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    damaged = bytes(body[:cut] if data.draw(st.booleans()) else body)
    try:
        _, part = read_part(damaged, SCHEMA)
    except EXPECTED_ERRORS:
        return
    assert 0 < part.began <= part.output_start <= part.end
    if isinstance(part.answer, Answer):
        for tensor in part.answer.outputs:
            assert tensor.name in OUTPUTS
            if tensor.datatype.size and tensor.datatype.numpy is not None:
                assert tensor.as_numpy().shape == tensor.shape


WRONG = [
    ("unknown kind", {1: 4}),
    ("rescheduled and not final", {1: 3, 2: 0}),
    ("rescheduled with outputs", {1: 3}),
    ("no answer that is not final", {1: 0, 2: 0}),
    ("began at no time", {3: 0}),
    ("ended before it began", {5: 1}),
    ("an output that does not exist", {8: 3}),
    ("an output from the other end", {8: -1}),
    ("an unknown data type", {9: 99}),
    ("fewer bytes than its shape says", {10: 4}),
    ("more bytes than there are", {10: 800}),
    ("a negative rank", {11: -1}),
    ("a negative shape", {12: -1, 13: -2}),
    ("more outputs than there are", {7: 2}),
    ("negative extras", {6: -1}),
]


@pytest.mark.parametrize("change", [row[1] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_cannot_be_right_is_refused(change: dict[int, int]) -> None:
    tensor = Tensor("OUT0", DATA_TYPES["INT32"], (1, 2), b"12345678")
    message, _ = part_message(0, InferResponse("", 1, "", (tensor,)), SCHEMA, NOW, final=True)
    body = bytearray(message[HEADER_SIZE:])
    assert read_part(bytes(body), SCHEMA)[0] == 0
    for place, value in change.items():
        struct.pack_into("<q", body, 4 + 8 * place, value)
    with pytest.raises(EXPECTED_ERRORS):
        read_part(bytes(body), SCHEMA)


def test_parameters_must_be_scalars() -> None:
    response = InferResponse("", 1, "", (), {"a": [1]})  # type: ignore[dict-item]  # the point
    message, _ = part_message(0, response, SCHEMA, NOW, final=True)
    with pytest.raises(ValueError, match="parameters of a response"):
        read_part(message[HEADER_SIZE:], SCHEMA)


def test_a_response_that_is_too_large_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LARGEST_PART", 10)
    tensor = Tensor("OUT0", DATA_TYPES["UINT8"], (6,), b"123456")
    assert too_large(InferResponse("", 1, "", (tensor,))) is None
    assert too_large(Internal("far too long a text")) is None
    assert too_large(None) is None
    error = too_large(InferResponse("", 1, "", (tensor, tensor)))
    assert str(error) == (
        "a response of a decoupled model may hold at most 10 bytes of outputs, got 12; send it as "
        "several responses"
    )
