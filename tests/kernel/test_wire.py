"""The messages between server and worker: what goes in comes out, and what is damaged is an error
that the reader expects."""

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel import (
    DATA_TYPES,
    RESCHEDULE,
    InferRequest,
    InferResponse,
    Internal,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    ModelOutput,
    NotFound,
    Outcome,
    Reschedule,
    Tensor,
    Unavailable,
    element_count,
    encode_bytes,
)
from microkernel import Sequence as Seq
from microkernel.batch import Batch
from microkernel.request import Answer
from microkernel.stats import Execution
from microkernel.workers import descriptors, wire
from microkernel.workers.descriptors import Schema
from microkernel.workers.wire import HEADER_SIZE, Kind

TYPES = sorted(DATA_TYPES)
OUTPUTS = ("OUT0", "OUT1", "OUT2")
few = settings(max_examples=40)
EXPECTED_ERRORS = (struct.error, ValueError, LookupError)


def schema_of(kinds: Sequence[str], *, batches: bool = True) -> Schema:
    config = ModelConfig(
        max_batch_size=8 if batches else 0,
        input=tuple(
            ModelInput(f"IN{i}", DATA_TYPES[kind].config_name) for i, kind in enumerate(kinds)
        ),
        output=tuple(ModelOutput(name, "TYPE_FP32") for name in OUTPUTS),
    )
    return Schema.of(config)


def data_of(draw: st.DrawFn, kind: str, count: int) -> bytes:
    if kind == "BYTES":
        sizes = st.binary(max_size=6)
        return encode_bytes(draw(st.lists(sizes, min_size=count, max_size=count)))
    size = count * DATA_TYPES[kind].size
    return draw(st.binary(min_size=size, max_size=size))


def extras(draw: st.DrawFn) -> dict[str, Any]:
    """What most requests leave at its default."""
    numbers = st.integers(0, 2**63)
    scalars = st.one_of(st.booleans(), st.integers(-(2**63), 2**63), st.text(), st.floats(-1, 1))
    fields = {
        "id": st.text(),
        "outputs": st.lists(st.sampled_from(OUTPUTS), unique=True).map(tuple),
        "parameters": st.dictionaries(st.text(), scalars, max_size=3),
        "priority": numbers,
        "timeout_us": numbers,
        "sequence": st.builds(
            Seq, st.one_of(st.integers(1, 2**63), st.text(min_size=1)), st.booleans(), st.booleans()
        ),
    }
    return draw(st.fixed_dictionaries({}, optional=fields))


@st.composite
def batches(draw: st.DrawFn) -> tuple[Schema, list[InferRequest]]:
    """Requests that may share a batch: the same inputs, in configuration order, some left out."""
    kinds = draw(st.lists(st.sampled_from(TYPES), max_size=6))
    given_inputs = [i for i in range(len(kinds)) if draw(st.booleans())] or list(range(len(kinds)))
    tails = [draw(st.lists(st.integers(0, 3), max_size=3)) for _ in kinds]
    requests = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.integers(0, 3))
        shapes = {i: (size, *tails[i]) for i in given_inputs}
        tensors = tuple(
            Tensor(f"IN{i}", DATA_TYPES[kinds[i]], s, data_of(draw, kinds[i], element_count(s)))
            for i, s in shapes.items()
        )
        requests.append(InferRequest("m", tensors, version=3, **extras(draw)))
    return schema_of(kinds), requests


def sizes_of(requests: Sequence[InferRequest]) -> list[int]:
    return [r.inputs[0].shape[0] if r.inputs else 1 for r in requests]


def sent(schema: Schema, requests: Sequence[InferRequest]) -> tuple[bytes, memoryview]:
    """The body of the EXECUTE message, and the block that goes with it."""
    plan = descriptors.plan(requests, schema)
    block = memoryview(bytearray(b"\xee" * (plan.total + 7)))
    descriptors.gather(plan, block)
    message = descriptors.execute_message(plan, sizes_of(requests), schema, (5, 9, 70))
    ((kind, body),) = wire.split_messages(bytearray(message))
    assert kind is Kind.EXECUTE
    return body, block


def received(schema: Schema, requests: Sequence[InferRequest]) -> Batch:
    body, block = sent(schema, requests)
    return descriptors.read_execute(body, schema, block, ("m", 3))


def plain(tensors: Sequence[Tensor]) -> list[tuple[object, ...]]:
    return [(t.name, t.datatype, t.shape, bytes(t.data)) for t in tensors]


@given(batches())
@few
def test_a_batch_arrives_as_it_was_sent(made: tuple[Schema, list[InferRequest]]) -> None:
    schema, requests = made
    batch = received(schema, requests)
    assert list(batch.sizes) == sizes_of(requests)
    for got, given_request in zip(batch.requests, requests, strict=True):
        assert plain(got.inputs) == plain(given_request.inputs)
        for field in InferRequest.__slots__:
            if field != "inputs":
                assert getattr(got, field) == getattr(given_request, field), field


@given(batches())
@few
def test_the_stacked_inputs_are_the_requests_laid_end_to_end(
    made: tuple[Schema, list[InferRequest]],
) -> None:
    schema, requests = made
    batch = received(schema, requests)
    assert list(batch.stacked) == [tensor.name for tensor in requests[0].inputs]
    for column, tensor in enumerate(batch.stacked.values()):
        assert tensor.shape == (batch.size, *requests[0].inputs[column].shape[1:])
        assert bytes(tensor.data) == b"".join(r.inputs[column].data for r in requests)


@given(batches())
@few
def test_a_batch_in_the_same_process_is_laid_out_alike(
    made: tuple[Schema, list[InferRequest]],
) -> None:
    schema, requests = made
    plan = descriptors.plan(requests, schema)
    block = memoryview(bytearray(plan.total))
    descriptors.gather(plan, block)
    here = descriptors.lay_out(plan, sizes_of(requests), schema, block)
    there = received(schema, requests)
    assert plain(list(here.stacked.values())) == plain(list(there.stacked.values()))
    assert list(here.sizes) == list(there.sizes)


def test_a_model_that_does_not_batch_sees_the_shape_as_it_is() -> None:
    schema = schema_of(["UINT8"], batches=False)
    request = InferRequest("m", (Tensor("IN0", DATA_TYPES["UINT8"], (2, 2), b"abcd"),))
    plan = descriptors.plan([request], schema)
    block = memoryview(bytearray(plan.total))
    descriptors.gather(plan, block)
    message = descriptors.execute_message(plan, [1], schema, (1, 0, 0))
    batch = descriptors.read_execute(message[HEADER_SIZE:], schema, block, ("m", 1))
    assert batch.stacked["IN0"].shape == (2, 2)
    assert list(batch.sizes) == [1]


def test_an_execute_message_names_its_blocks() -> None:
    body, _ = sent(schema_of([]), [InferRequest("m", ())])
    assert descriptors.read_blocks(body) == (5, 9)


@given(batches())
@few
def test_inputs_begin_at_aligned_places(made: tuple[Schema, list[InferRequest]]) -> None:
    schema, requests = made
    plan = descriptors.plan(requests, schema)
    assert all(offset % 64 == 0 for offset in plan.starts)
    assert [schema.inputs[i][0] for i in plan.indices] == [t.name for t in requests[0].inputs]


errors = st.builds(
    lambda kind, text: kind(text), st.sampled_from([Internal, NotFound, Unavailable]), st.text()
)


@st.composite
def responses(draw: st.DrawFn) -> InferResponse:
    tensors = []
    for name in draw(st.lists(st.sampled_from(OUTPUTS), unique=True)):
        kind = draw(st.sampled_from(TYPES))
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        data = data_of(draw, kind, element_count(shape))
        tensors.append(Tensor(name, DATA_TYPES[kind], shape, data))
    parameters = extras(draw).get("parameters", {})
    return InferResponse("m", 3, "", tuple(tensors), parameters)


outcomes_lists = st.lists(
    st.one_of(responses(), errors, st.just(RESCHEDULE)), min_size=1, max_size=4
)
MOMENTS = Execution(1, 2**40, 2**41, 2**63 - 1)


def answered(outcomes: Sequence[Outcome]) -> tuple[bytes, memoryview]:
    """The body of the RESULT message, and the output block."""
    offsets, total = descriptors.place(outcomes)
    block = memoryview(bytearray(total))
    descriptors.write(outcomes, offsets, block)
    message = descriptors.result_message(outcomes, offsets, schema_of([]), MOMENTS)
    assert message[HEADER_SIZE - 1] == Kind.RESULT
    return message[HEADER_SIZE:], block


@given(outcomes_lists)
@few
def test_outcomes_arrive_as_they_were_sent(outcomes: list[Outcome]) -> None:
    body, block = answered(outcomes)
    times, answers = descriptors.read_result(body, schema_of([]), block, 1)
    assert times == MOMENTS
    for answer, outcome in zip(answers, outcomes, strict=True):
        if isinstance(outcome, MicrokernelError):
            assert type(answer) is type(outcome)
            assert str(answer) == str(outcome)
            continue
        if isinstance(outcome, Reschedule):
            assert answer is RESCHEDULE
            continue
        assert isinstance(answer, Answer)
        assert plain(answer.outputs) == plain(outcome.outputs)
        assert dict(answer.parameters) == dict(outcome.parameters)


@given(outcomes_lists, st.data())
@few
def test_a_damaged_result_raises_what_the_reader_expects(
    outcomes: list[Outcome], data: st.DataObject
) -> None:
    body, block = answered(outcomes)
    damaged = damage(body, data)
    try:
        descriptors.read_result(damaged, schema_of([]), block, 1)
    except EXPECTED_ERRORS:
        return


@given(batches(), st.data())
@few
def test_a_damaged_batch_raises_what_the_reader_expects(
    made: tuple[Schema, list[InferRequest]], data: st.DataObject
) -> None:
    schema, requests = made
    body, block = sent(schema, requests)
    damaged = damage(body, data)
    try:
        descriptors.read_execute(damaged, schema, block, ("m", 3))
    except EXPECTED_ERRORS:
        return


@pytest.mark.parametrize("document", [b"[]", b'["INTERNAL"]', b"7", b"null", b'["A","B","C"]'])
def test_an_error_of_another_form_raises_what_the_reader_expects(document: bytes) -> None:
    words = (0, 0, 0, 1, 1, len(document), 0)
    body = struct.pack(f"<I{len(words)}q", len(words), *words) + document
    with pytest.raises(EXPECTED_ERRORS):
        descriptors.read_result(body, schema_of([]), memoryview(b""), 1)


def test_a_result_that_leads_back_is_noticed() -> None:
    words = (0, 0, 0, 1, 0, 0, 2**62, 0, 11, 0, 0, -5)
    body = struct.pack(f"<I{len(words)}q", len(words), *words)
    with pytest.raises(ValueError, match="descriptor"):
        descriptors.read_result(body, schema_of([]), memoryview(b""), 1)


@given(outcomes_lists, st.integers(0, 10_000))
@few
def test_a_truncated_result_is_noticed(outcomes: list[Outcome], cut: int) -> None:
    body, block = answered(outcomes)
    with pytest.raises(EXPECTED_ERRORS):
        descriptors.read_result(body[: cut % len(body)], schema_of([]), block, 1)


def damage(body: bytes, data: st.DataObject) -> bytes:
    """Cut the body short, or put other bytes into it."""
    place = data.draw(st.integers(0, len(body) - 1))
    if data.draw(st.booleans()):
        return body[:place]
    noise = data.draw(st.binary(min_size=1, max_size=4))
    return body[:place] + noise + body[place + len(noise) :]


messages = st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=40)), max_size=8)


@given(messages, st.lists(st.integers(1, 30)))
def test_messages_survive_any_chunking(
    sent_messages: list[tuple[Kind, bytes]], chunks: list[int]
) -> None:
    stream = b"".join(wire.frame(kind, body) for kind, body in sent_messages)
    buffer, got = bytearray(), []
    for chunk in [*chunks, len(stream)]:
        buffer += stream[:chunk]
        stream = stream[chunk:]
        got += list(wire.split_messages(buffer))
    buffer += stream
    got += list(wire.split_messages(buffer))
    assert got == sent_messages
    assert not buffer


@given(messages)
def test_exactly_one_message_is_told_from_parts_and_from_several(
    sent_messages: list[tuple[Kind, bytes]],
) -> None:
    stream = b"".join(wire.frame(kind, body) for kind, body in sent_messages)
    expected = sent_messages[0] if len(sent_messages) == 1 else None
    assert wire.whole_message(stream) == expected
    assert wire.whole_message(stream[:-1]) is None or len(sent_messages) != 1


def test_a_message_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="99"):
        list(wire.split_messages(bytearray(struct.pack("<IB", 0, 99))))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_messages_about_blocks(number: int, size: int) -> None:
    stream = bytearray(
        wire.map_message(number, size) + wire.unmap_message(number) + wire.need_message(size)
    )
    (_, mapped), (_, unmapped), (_, needed) = wire.split_messages(stream)
    assert wire.read_map(mapped) == (number, size)
    assert wire.read_unmap(unmapped) == number
    assert wire.read_need(needed) == size
