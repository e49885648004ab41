"""What a batch and its outcomes look like in a message: small descriptors; the tensors lie in
blocks.

A descriptor is a number of 64-bit words, packed and unpacked in one go, and after them what is
text. Inputs and outputs are named by their position in the model's configuration, which both sides
know. Pure: bytes in, plain data out.
"""

import functools
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from microkernel.batch import Batch
from microkernel.config.model import ModelConfig
from microkernel.errors import MicrokernelError, error_from
from microkernel.request import NO_PARAMETERS, InferRequest, Outcome, Parameters
from microkernel.request import Sequence as Seq
from microkernel.stats import Execution
from microkernel.tensor import BY_CONFIG_NAME, BY_NUMBER, DataType, Tensor
from microkernel.workers.arena import aligned
from microkernel.workers.wire import Kind, frame

_COUNT = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Schema:
    """The tensors of a model, in the order of its configuration."""

    inputs: Sequence[tuple[str, DataType]]
    outputs: Sequence[str]
    batches: bool

    @classmethod
    def of(cls, config: ModelConfig) -> "Schema":
        """The schema of a complete configuration."""
        return cls(
            tuple((i.name, BY_CONFIG_NAME[i.data_type]) for i in config.input),
            tuple(o.name for o in config.output),
            config.max_batch_size > 0,
        )


@dataclass(slots=True)
class Plan:
    """Where the inputs of a batch lie in the input block: per input its position in the
    configuration and its offset; `requests` with their inputs in configuration order."""

    requests: Sequence[InferRequest]
    inputs: Sequence[tuple[int, int]]
    total: int


def plan(requests: Sequence[InferRequest], schema: Schema) -> Plan:
    """Lay out a batch whose requests all have the same inputs in configuration order."""
    position, inputs = 0, []
    for column, index in enumerate(_columns(requests[0], schema)):
        inputs.append((index, position))
        for request in requests:
            position += len(request.inputs[column].data)
        position = aligned(position)
    return Plan(requests, inputs, position)


def _columns(request: InferRequest, schema: Schema) -> Sequence[int]:
    """The position in the configuration of each of the request's inputs."""
    if len(request.inputs) == len(schema.inputs):
        return range(len(schema.inputs))
    names = iter(enumerate(schema.inputs))
    return [next(i for i, (name, _) in names if name == t.name) for t in request.inputs]


def gather(plan: Plan, block: memoryview) -> None:
    """Copy every tensor of the batch to its place; the only copy on the way in."""
    for column, (_, position) in enumerate(plan.inputs):
        for request in plan.requests:
            data = request.inputs[column].data
            end = position + len(data)
            block[position:end] = data
            position = end


@functools.cache
def _words(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}q")


def _pack(kind: Kind, words: Sequence[int], texts: Sequence[bytes]) -> bytes:
    count = len(words)
    return frame(kind, _COUNT.pack(count), _words(count).pack(*words), *texts)


def _unpack(body: bytes) -> tuple[tuple[int, ...], int]:
    """The words of a descriptor and where its texts begin."""
    (count,) = _COUNT.unpack_from(body)
    if count > len(body) // 8:
        raise ValueError("a descriptor is shorter than it says")
    return _words(count).unpack_from(body, _COUNT.size), _COUNT.size + 8 * count


def execute_message(
    plan: Plan, sizes: Sequence[int], schema: Schema, blocks: tuple[int, int]
) -> bytes:
    """The descriptor of a batch; `blocks` are the numbers of the input and the output block."""
    words = [*blocks, len(plan.requests), len(plan.inputs)]
    texts: list[bytes] = []
    for place in plan.inputs:
        words += place
    for request, size in zip(plan.requests, sizes, strict=True):
        extras = _extras(request)
        words += (size, len(extras), len(request.outputs))
        if extras:
            texts.append(extras)
        for name in request.outputs:
            words.append(schema.outputs.index(name))
        for tensor in request.inputs:
            words += (len(tensor.data), len(tensor.shape), *tensor.shape)
    return _pack(Kind.EXECUTE, words, texts)


def _extras(request: InferRequest) -> bytes:
    """What most requests leave at its default, as JSON; nothing at all where they all do."""
    extras: dict[str, object] = {}
    if request.id:
        extras["id"] = request.id
    if request.parameters:
        extras["parameters"] = request.parameters
    if request.sequence.id:
        sequence = request.sequence
        extras["sequence"] = [sequence.id, sequence.start, sequence.end]
    if request.priority:
        extras["priority"] = request.priority
    if request.timeout_us:
        extras["timeout_us"] = request.timeout_us
    return json.dumps(extras).encode() if extras else b""


def read_blocks(body: bytes) -> tuple[int, int]:
    """The numbers of the input and the output block of an EXECUTE message."""
    number, output = _words(2).unpack_from(body, _COUNT.size)
    return number, output


def read_execute(body: bytes, schema: Schema, block: memoryview, model: tuple[str, int]) -> Batch:
    """The batch, its tensors views on the input block. `model` is the name and the version."""
    words, text = _unpack(body)
    _, _, count, columns = words[:4]
    indices, starts = words[4 : 4 + 2 * columns : 2], words[5 : 5 + 2 * columns : 2]
    ends, requests, sizes, i = list(starts), [], [], 4 + 2 * columns
    for _ in range(count):
        size, extras_length, wanted = words[i : i + 3]
        i += 3 + wanted
        outputs = tuple([schema.outputs[index] for index in words[i - wanted : i]])
        tensors = []
        for column in range(columns):
            nbytes, rank = words[i : i + 2]
            i += 2 + rank
            start = ends[column]
            ends[column] = end = start + nbytes
            name, datatype = schema.inputs[indices[column]]
            tensors.append(Tensor(name, datatype, words[i - rank : i], block[start:end]))
        extras = body[text : text + extras_length]
        text += extras_length
        requests.append(_request(model, tuple(tensors), outputs, extras))
        sizes.append(size)
    _check_end((i, text), words, body)
    return Batch(requests, _stacked(requests, sizes, block, (starts, ends), schema), sizes)


def _check_end(read: tuple[int, int], words: Sequence[int], body: bytes) -> None:
    """Raise ValueError unless all words and all text have been read."""
    if read != (len(words), len(body)):
        raise ValueError("a descriptor is not as long as it says")


def _request(
    model: tuple[str, int], inputs: tuple[Tensor, ...], outputs: tuple[str, ...], extras: bytes
) -> InferRequest:
    request = InferRequest(model[0], inputs, model[1], outputs=outputs)
    if extras:
        given = json.loads(extras)
        request.id = given.get("id", "")
        request.parameters = given.get("parameters", NO_PARAMETERS)
        request.priority = given.get("priority", 0)
        request.timeout_us = given.get("timeout_us", 0)
        if "sequence" in given:
            request.sequence = Seq(*given["sequence"])
    return request


def _stacked(
    requests: Sequence[InferRequest],
    sizes: Sequence[int],
    block: memoryview,
    regions: tuple[Sequence[int], Sequence[int]],
    schema: Schema,
) -> dict[str, Tensor]:
    """The batch per input, from where each input's region starts and ends."""
    if len(requests) == 1:
        return {t.name: t for t in requests[0].inputs}
    stacked = {}
    for tensor, start, end in zip(requests[0].inputs, *regions, strict=True):
        shape = (sum(sizes), *tensor.shape[1:]) if schema.batches else tensor.shape
        stacked[tensor.name] = Tensor(tensor.name, tensor.datatype, shape, block[start:end])
    return stacked


def lay_out(plan: Plan, sizes: Sequence[int], schema: Schema, block: memoryview) -> Batch:
    """The batch that was gathered into `block`, for a backend in the same process."""
    starts = [offset for _, offset in plan.inputs]
    ends = [
        start + sum(len(r.inputs[column].data) for r in plan.requests)
        for column, start in enumerate(starts)
    ]
    stacked = _stacked(plan.requests, sizes, block, (starts, ends), schema)
    return Batch(plan.requests, stacked, sizes)


def place(outcomes: Sequence[Outcome]) -> tuple[list[int], int]:
    """Where each output tensor of the outcomes goes in an output block, in order, and the total."""
    offsets, position = [], 0
    for tensor in _tensors(outcomes):
        offsets.append(position)
        position = aligned(position + len(tensor.data))
    return offsets, position


def write(outcomes: Sequence[Outcome], offsets: Sequence[int], block: memoryview) -> None:
    """Copy every output to its place; the only copy on the way out."""
    for tensor, start in zip(_tensors(outcomes), offsets, strict=True):
        if tensor.data:
            block[start : start + len(tensor.data)] = tensor.data


def _tensors(outcomes: Sequence[Outcome]) -> Iterator[Tensor]:
    for outcome in outcomes:
        if not isinstance(outcome, MicrokernelError):
            yield from outcome.outputs


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
            words += (1, len(texts[-1]), 0)
            continue
        extras = json.dumps(dict(outcome.parameters)).encode() if outcome.parameters else b""
        texts.append(extras)
        words += (0, len(extras), len(outcome.outputs))
        for tensor in outcome.outputs:
            index, shape = schema.outputs.index(tensor.name), tensor.shape
            words += (index, tensor.datatype.number, next(starts), len(tensor.data), len(shape))
            words += shape
    return _pack(Kind.RESULT, words, texts)


@dataclass(slots=True)
class Answer:
    """One request's outcome as the server reads it: outputs and parameters."""

    outputs: tuple[Tensor, ...]
    parameters: Parameters


def _error(text: bytes) -> MicrokernelError:
    document = json.loads(text)
    if not isinstance(document, list) or [type(entry) for entry in document] != [str, str]:
        raise ValueError("an error is not a code and a message")
    return error_from(*document)


def read_result(
    body: bytes, schema: Schema, block: memoryview, start: int
) -> tuple[Execution, list[Answer | MicrokernelError]]:
    """The moments of an execution that began at `start`, and the outcomes of its batch; output
    tensors are views on `block`."""
    words, text = _unpack(body)
    input_end, output_start, end, count = words[:4]
    answers: list[Answer | MicrokernelError] = []
    i = 4
    for _ in range(count):
        failed, extras_length, outputs = words[i : i + 3]
        i += 3
        extras = body[text : text + extras_length]
        text += extras_length
        if failed:
            answers.append(_error(extras))
            continue
        tensors = []
        for _ in range(outputs):
            index, number, at, nbytes, rank = words[i : i + 5]
            i += 5 + rank
            shape, data = words[i - rank : i], block[at : at + nbytes]
            tensors.append(Tensor(schema.outputs[index], BY_NUMBER[number], shape, data))
        answers.append(Answer(tuple(tensors), json.loads(extras) if extras else NO_PARAMETERS))
    _check_end((i, text), words, body)
    return Execution(start, input_end, output_start, end), answers
