"""What a batch and its outcomes look like in a message: small descriptors; the tensors lie in
blocks.

A descriptor is a number of 64-bit words, packed and unpacked in one go, and after them what is
text. Inputs and outputs are named by their position in the model's configuration, which both sides
know. Pure: bytes in, plain data out.
"""

import functools
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from microkernel.batch import Batch
from microkernel.config.model import ModelConfig
from microkernel.config.tensors import model_inputs, model_outputs
from microkernel.errors import MicrokernelError, error_from
from microkernel.ragged import Composition
from microkernel.request import (
    NO_PARAMETERS,
    RESCHEDULE,
    Answer,
    Answered,
    InferRequest,
    InferResponse,
    Outcome,
    Parameters,
    Reschedule,
)
from microkernel.request import Sequence as Seq
from microkernel.stats import Execution
from microkernel.tensor import BY_CONFIG_NAME, BY_NUMBER, DataType, Tensor, element_count
from microkernel.trace import Trace
from microkernel.workers.arena import aligned
from microkernel.workers.wire import EXECUTE, HEADER, RESULT, Kind

_COUNT = struct.Struct("<I")
_ANSWER, _ERROR, _AGAIN = range(3)
_WRONG_LENGTH = "a descriptor is not as long as it says"


@dataclass(frozen=True, slots=True)
class Schema:
    """The tensors of a model, in the order of its configuration; whether it batches, and whether it
    is decoupled; what is special about its batches, None for a plain model."""

    inputs: Sequence[tuple[str, DataType]]
    outputs: Sequence[str]
    batches: bool
    decoupled: bool = False
    composition: Composition | None = None

    @classmethod
    def of(cls, config: ModelConfig) -> "Schema":
        """The schema of a complete configuration."""
        return cls(
            tuple((i.name, BY_CONFIG_NAME[i.data_type]) for i in model_inputs(config)),
            tuple(o.name for o in model_outputs(config)),
            config.max_batch_size > 0,
            config.decoupled,
            Composition.of(config),
        )


@dataclass(slots=True)
class Plan:
    """Where the inputs of a batch lie in the input block: per input its position in the
    configuration (`indices`) and its offset (`starts`); `requests` with their inputs in
    configuration order."""

    requests: Sequence[InferRequest]
    indices: Sequence[int]
    starts: Sequence[int]
    total: int


def plan(requests: Sequence[InferRequest], schema: Schema) -> Plan:
    """Lay out a batch whose requests all have the same inputs in configuration order."""
    indices = _indices(requests[0], schema)
    position, starts = 0, []
    for column in range(len(indices)):
        starts.append(position)
        for request in requests:
            position += len(request.inputs[column].data)
        position = aligned(position)
    return Plan(requests, indices, starts, position)


def _indices(request: InferRequest, schema: Schema) -> Sequence[int]:
    """The position in the configuration of each of the request's inputs."""
    if len(request.inputs) == len(schema.inputs):
        return range(len(schema.inputs))
    names = iter(enumerate(schema.inputs))
    return [next(i for i, (name, _) in names if name == t.name) for t in request.inputs]


def gather(plan: Plan, block: memoryview) -> None:
    """Copy every tensor of the batch to its place; the only copy on the way in."""
    for column, position in enumerate(plan.starts):
        for request in plan.requests:
            data = request.inputs[column].data
            end = position + len(data)
            block[position:end] = data
            position = end


@functools.cache
def _words(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}q")


@functools.cache
def _start(count: int) -> struct.Struct:
    """A message up to its texts: the header, the number of words, the words."""
    return struct.Struct(f"{HEADER.format}I{count}q")


def pack(kind: Kind, words: Sequence[int], texts: Sequence[bytes]) -> bytes:
    """A message of words and, after them, texts."""
    count, text = len(words), b"".join(texts) if texts else b""
    length = _COUNT.size + 8 * count + len(text)
    return _start(count).pack(length, kind, count, *words) + text


def unpack(body: bytes) -> tuple[tuple[int, ...], int]:
    """The words of a descriptor and where its texts begin."""
    (count,) = _COUNT.unpack_from(body)
    text = _COUNT.size + 8 * count
    if text > len(body):
        raise ValueError(_WRONG_LENGTH)
    return _words(count).unpack_from(body, _COUNT.size), text


def execute_message(
    plan: Plan, sizes: Sequence[int], schema: Schema, numbers: tuple[int, int, int]
) -> bytes:
    """The descriptor of a batch; `numbers` are those of the input block, the output block and the
    first request."""
    count = len(plan.requests)
    words = [*numbers, plan.total, count, len(plan.starts), *plan.indices, *plan.starts, *sizes]
    texts: list[bytes] = []
    for request in plan.requests:
        extras, outputs = _extras(request), request.outputs
        words += (len(extras), len(outputs))
        if extras:
            texts.append(extras)
        if outputs:
            words += map(schema.outputs.index, outputs)
        for tensor in request.inputs:
            shape = tensor.shape
            words += (len(tensor.data), len(shape))
            words += shape
    return pack(EXECUTE, words, texts)


def _extras(request: InferRequest) -> bytes:
    """What most requests leave at its default, as JSON; nothing at all where they all do."""
    sequence, trace = request.sequence, request.trace
    if trace is None and not (
        request.id or request.parameters or sequence.id or request.priority or request.timeout_us
    ):
        return b""
    extras: dict[str, object] = {}
    if request.id:
        extras["id"] = request.id
    if request.parameters:
        extras["parameters"] = request.parameters
    if sequence.id:
        extras["sequence"] = [sequence.id, sequence.start, sequence.end]
    if request.priority:
        extras["priority"] = request.priority
    if request.timeout_us:
        extras["timeout_us"] = request.timeout_us
    if trace is not None:
        extras["trace"] = [trace.id, trace.context]
    return json.dumps(extras).encode()


def read_blocks(body: bytes) -> tuple[int, int]:
    """The numbers of the input and the output block of an EXECUTE message."""
    number, output = _words(2).unpack_from(body, _COUNT.size)
    return number, output


def read_execute(body: bytes, schema: Schema, block: memoryview, model: tuple[str, int]) -> Batch:
    """The batch, its tensors views on the input block, or on a copy of it where the model is
    decoupled. `model` is the name and the version."""
    words, text = unpack(body)
    first, total, count, columns = words[2:6]
    if schema.decoupled:  # the block belongs to the next batch before the responses are sent
        block = memoryview(bytearray(block[:total]))
    places, i = 6 + columns, 6 + 2 * columns
    indices, starts, sizes = words[6:places], words[places:i], words[i : i + count]
    i += count
    ends, requests = list(starts), []
    for _ in range(count):
        extras_length, wanted = words[i : i + 2]
        i += 2
        outputs: tuple[str, ...] = ()
        if wanted:
            outputs = tuple([schema.outputs[index] for index in words[i : i + wanted]])
            i += wanted
        tensors = []
        for column, index in enumerate(indices):
            nbytes, rank = words[i : i + 2]
            i += 2 + rank
            start = ends[column]
            ends[column] = end = start + nbytes
            name, datatype = schema.inputs[index]
            tensors.append(Tensor(name, datatype, words[i - rank : i], block[start:end]))
        request = InferRequest(model[0], tuple(tensors), model[1], "", outputs)
        if extras_length:
            _fill_in(request, body[text : text + extras_length])
            text += extras_length
        requests.append(request)
    if i != len(words) or text != len(body):
        raise ValueError(_WRONG_LENGTH)
    stacked = _stacked(requests, sizes, block, (starts, ends), schema)
    return Batch(requests, stacked, sizes, first, composition=schema.composition)


def _fill_in(request: InferRequest, extras: bytes) -> None:
    """Give a request that was just made what `_extras` wrote."""
    given = json.loads(extras)
    request.id = given.get("id", "")
    request.parameters = given.get("parameters", NO_PARAMETERS)
    request.priority = given.get("priority", 0)
    request.timeout_us = given.get("timeout_us", 0)
    if "sequence" in given:
        request.sequence = Seq(*given["sequence"])
    if "trace" in given:
        number, context = given["trace"]
        request.trace = Trace(number, request.model_name, request.version, context=context)


def _stacked(
    requests: Sequence[InferRequest],
    sizes: Sequence[int],
    block: memoryview,
    regions: tuple[Sequence[int], Sequence[int]],
    schema: Schema,
) -> dict[str, Tensor]:
    """The batch per input, from where each input's region starts and ends."""
    if len(requests) == 1:
        return _stacked_alone(requests, schema)
    stacked = {}
    for tensor, start, end in zip(requests[0].inputs, *regions, strict=True):
        shape = (sum(sizes), *tensor.shape[1:]) if schema.batches else tensor.shape
        stacked[tensor.name] = Tensor(tensor.name, tensor.datatype, shape, block[start:end])
    if schema.composition is not None:
        return schema.composition.stacked(requests, stacked)
    return stacked


def _stacked_alone(requests: Sequence[InferRequest], schema: Schema) -> dict[str, Tensor]:
    # Read-only: it is the client's memory, or that of a tensor which others are given too.
    stacked = {
        t.name: Tensor(t.name, t.datatype, t.shape, memoryview(t.data).toreadonly())
        for t in requests[0].inputs
    }
    if schema.composition is not None:
        return schema.composition.stacked(requests, stacked)
    return stacked


def alone(
    requests: Sequence[InferRequest], sizes: Sequence[int], schema: Schema, first: int
) -> Batch:
    """The batch of a single request, on its own data, for a backend in the same process."""
    stacked = _stacked_alone(requests, schema)
    return Batch(requests, stacked, sizes, first, composition=schema.composition)


def lay_out(plan: Plan, sizes: Sequence[int], schema: Schema, block: memoryview) -> Batch:
    """The batch that was gathered into `block`, for a backend in the same process."""
    ends = [
        start + sum(len(r.inputs[column].data) for r in plan.requests)
        for column, start in enumerate(plan.starts)
    ]
    stacked = _stacked(plan.requests, sizes, block, (plan.starts, ends), schema)
    return Batch(plan.requests, stacked, sizes, composition=schema.composition)


def place(outcomes: Sequence[Outcome]) -> tuple[list[int], int]:
    """Where each output tensor of the outcomes goes in an output block, in order, and the total."""
    offsets, position = [], 0
    for tensor in _tensors(outcomes):
        offsets.append(position)
        position = aligned(position + len(tensor.data))
    return offsets, position


def write(outcomes: Sequence[Outcome], offsets: Sequence[int], block: memoryview) -> None:
    """Copy every output to its place; the only copy on the way out."""
    starts = iter(offsets)
    for tensor in _tensors(outcomes):
        start, data = next(starts), tensor.data
        if data:
            block[start : start + len(data)] = data


def _tensors(outcomes: Sequence[Outcome]) -> Sequence[Tensor]:
    if len(outcomes) == 1 and isinstance(outcomes[0], InferResponse):
        return outcomes[0].outputs
    return [
        t for outcome in outcomes if isinstance(outcome, InferResponse) for t in outcome.outputs
    ]


def result_message(
    outcomes: Sequence[Outcome], offsets: Sequence[int], schema: Schema, times: Execution
) -> bytes:
    """The descriptor of outcomes whose outputs have been written to `offsets`."""
    words = [times.input_end, times.output_start, times.end, len(outcomes)]
    texts: list[bytes] = []
    starts = iter(offsets)
    for outcome in outcomes:
        if isinstance(outcome, MicrokernelError):
            texts.append(json.dumps([outcome.code, str(outcome)]).encode())
            words += (_ERROR, len(texts[-1]), 0)
            continue
        if isinstance(outcome, Reschedule):
            words += (_AGAIN, 0, 0)
            continue
        parameters = outcome.parameters
        extras = json.dumps(dict(parameters)).encode() if parameters else b""
        words += (_ANSWER, len(extras), len(outcome.outputs))
        if extras:
            texts.append(extras)
        for tensor in outcome.outputs:
            index, shape = schema.outputs.index(tensor.name), tensor.shape
            words += (index, tensor.datatype.number, next(starts), len(tensor.data), len(shape))
            words += shape
    return pack(RESULT, words, texts)


def read_error(text: bytes) -> MicrokernelError:
    """An error that a worker sent. Raises ValueError for what is none."""
    document = json.loads(text)
    if not isinstance(document, list) or [type(entry) for entry in document] != [str, str]:
        raise ValueError("an error is not a code and a message")
    return error_from(*document)


def read_result(
    body: bytes, schema: Schema, block: memoryview, start: int
) -> tuple[Execution, list[Answered]]:
    """The moments of an execution that began at `start`, and the outcomes of its batch; output
    tensors are views on `block`."""
    words, text = unpack(body)
    input_end, output_start, end, count = words[:4]
    answers: list[Answered] = []
    i = 4
    for _ in range(count):
        kind, extras_length, outputs = words[i : i + 3]
        i += 3
        extras = b""
        if extras_length:
            extras = body[text : text + extras_length]
            text += extras_length
        if kind != _ANSWER:
            answers.append(_unanswered(kind, extras))
            continue
        tensors = []
        for _ in range(outputs):
            index, number, at, nbytes, rank = words[i : i + 5]
            if rank < 0:  # the position must only grow
                raise ValueError(_WRONG_LENGTH)
            i += 5 + rank
            datatype, shape = BY_NUMBER[number], words[i - rank : i]
            data = _cut_out(block, (at, nbytes), datatype, shape)
            tensors.append(Tensor(schema.outputs[index], datatype, shape, data))
        answers.append(Answer(tuple(tensors), read_parameters(extras)))
    if i != len(words) or text != len(body):
        raise ValueError(_WRONG_LENGTH)
    return Execution(start, input_end, output_start, end), answers


def _unanswered(kind: int, text: bytes) -> MicrokernelError | Reschedule:
    """What came in place of an answer. Raises ValueError for what cannot."""
    if kind == _ERROR:
        return read_error(text)
    if kind != _AGAIN or text:
        raise ValueError(f"{kind} is no kind of outcome")
    return RESCHEDULE


def _cut_out(
    block: memoryview, place: tuple[int, int], datatype: DataType, shape: Sequence[int]
) -> memoryview:
    """The data of an output. Raises ValueError where it is not within the block or not what the
    shape wants: what a worker says of its memory must not make up a tensor."""
    at, nbytes = place
    data, size = block[at : at + nbytes], datatype.size
    wrong = size and element_count(shape) * size != nbytes
    if wrong or at < 0 or len(data) != nbytes or min(shape, default=0) < 0:
        raise ValueError(_WRONG_LENGTH)
    return data


def read_parameters(text: bytes) -> Parameters:
    """The parameters of a response, none for an empty text. Raises ValueError for what are none."""
    if not text:
        return NO_PARAMETERS
    document: Any = json.loads(text)
    if not isinstance(document, dict) or not all(
        isinstance(value, bool | int | float | str) for value in document.values()
    ):
        raise ValueError("the parameters of a response are none")
    return document
