"""The messages between the server and an instance: small descriptors; the tensors lie in blocks.

Every message is a header (length of the rest, kind) and a body, all little-endian. Inputs and
outputs are named by their position in the model's configuration, which both sides know. Pure: bytes
in, plain data out, and no pickle.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from microkernel.batch import Batch
from microkernel.config.model import ModelConfig
from microkernel.errors import MicrokernelError, error_from
from microkernel.request import NO_PARAMETERS, InferRequest, Outcome, Parameters
from microkernel.request import Sequence as Seq
from microkernel.stats import Execution
from microkernel.tensor import BY_CONFIG_NAME, BY_NUMBER, DataType, Shape, Tensor
from microkernel.workers.arena import aligned

_HEADER = struct.Struct("<IB")
_MAP = struct.Struct("<IQ")
_UNMAP = struct.Struct("<I")
_SIZE = struct.Struct("<Q")
_BATCH = struct.Struct("<IIHH")
_INPUT = struct.Struct("<HQ")
_REQUEST = struct.Struct("<QIH")
_TENSOR = struct.Struct("<QB")
_RESULT = struct.Struct("<QQQH")
_OUTCOME = struct.Struct("<BIH")
_OUTPUT = struct.Struct("<HBBQQ")
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
    position, inputs, first = 0, [], requests[0]
    for column, index in enumerate(_columns(first, schema)):
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


def execute_message(
    plan: Plan, sizes: Sequence[int], schema: Schema, blocks: tuple[int, int]
) -> bytes:
    """The descriptor of a batch; `blocks` are the numbers of the input and the output block."""
    parts = [_BATCH.pack(*blocks, len(plan.requests), len(plan.inputs))]
    parts += [_INPUT.pack(index, offset) for index, offset in plan.inputs]
    for request, size in zip(plan.requests, sizes, strict=True):
        extras = _extras(request)
        parts += (_REQUEST.pack(size, len(extras), len(request.outputs)), extras)
        parts += [schema.outputs.index(o).to_bytes(2, "little") for o in request.outputs]
        for tensor in request.inputs:
            parts += (_TENSOR.pack(len(tensor.data), len(tensor.shape)), _dims(tensor.shape))
    return frame(Kind.EXECUTE, *parts)


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


def _dims(shape: Shape) -> bytes:
    return struct.pack(f"<{len(shape)}q", *shape)


class _Reader:
    """A position in a message body."""

    __slots__ = ("body", "position")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.position = 0

    def take(self, form: struct.Struct) -> tuple[int, ...]:
        values = form.unpack_from(self.body, self.position)
        self.position += form.size
        return values

    def take_bytes(self, length: int) -> bytes:
        start, self.position = self.position, self.position + length
        return self.body[start : self.position]

    def take_dims(self, rank: int) -> Shape:
        dims = struct.unpack_from(f"<{rank}q", self.body, self.position)
        self.position += 8 * rank
        return dims


def read_blocks(body: bytes) -> tuple[int, int]:
    """The numbers of the input and the output block of an EXECUTE message."""
    number, output, _, _ = _BATCH.unpack_from(body)
    return number, output


def read_execute(body: bytes, schema: Schema, block: memoryview, model: tuple[str, int]) -> Batch:
    """The batch, its tensors views on the input block. `model` is the name and the version."""
    reader = _Reader(body)
    _, _, count, columns = reader.take(_BATCH)
    inputs = [reader.take(_INPUT) for _ in range(columns)]
    offsets = [offset for _, offset in inputs]
    requests, sizes = [], []
    for _ in range(count):
        size, extras_length, wanted = reader.take(_REQUEST)
        extras = reader.take_bytes(extras_length)
        names = reader.take_bytes(2 * wanted)
        outputs = tuple(
            schema.outputs[int.from_bytes(names[i : i + 2], "little")]
            for i in range(0, len(names), 2)
        )
        tensors = []
        for column, (index, _) in enumerate(inputs):
            nbytes, rank = reader.take(_TENSOR)
            start, offsets[column] = offsets[column], offsets[column] + nbytes
            name, datatype = schema.inputs[index]
            data = block[start : start + nbytes]
            tensors.append(Tensor(name, datatype, reader.take_dims(rank), data))
        requests.append(_request(model, tuple(tensors), outputs, extras))
        sizes.append(size)
    starts = [offset for _, offset in inputs]
    return Batch(requests, _stacked(requests, sizes, block, (starts, offsets), schema), sizes)


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
    head = _RESULT.pack(times.input_end, times.output_start, times.end, len(outcomes))
    parts = [head]
    starts = iter(offsets)
    for outcome in outcomes:
        if isinstance(outcome, MicrokernelError):
            text = json.dumps([outcome.code, str(outcome)]).encode()
            parts += (_OUTCOME.pack(1, len(text), 0), text)
            continue
        extras = json.dumps(dict(outcome.parameters)).encode() if outcome.parameters else b""
        parts += (_OUTCOME.pack(0, len(extras), len(outcome.outputs)), extras)
        for tensor in outcome.outputs:
            index, rank = schema.outputs.index(tensor.name), len(tensor.shape)
            number, nbytes = tensor.datatype.number, len(tensor.data)
            parts += (_OUTPUT.pack(index, number, rank, next(starts), nbytes), _dims(tensor.shape))
    return frame(Kind.RESULT, *parts)


@dataclass(slots=True)
class Answer:
    """One request's outcome as the server reads it: outputs and parameters."""

    outputs: tuple[Tensor, ...]
    parameters: Parameters


def read_times(body: bytes, start: int) -> Execution:
    """The moments of an execution that began at `start`, from its RESULT message."""
    input_end, output_start, end, _ = _RESULT.unpack_from(body)
    return Execution(start, input_end, output_start, end)


def read_result(body: bytes, schema: Schema, block: memoryview) -> list[Answer | MicrokernelError]:
    """The outcomes of a batch; output tensors are views on `block`."""
    reader = _Reader(body)
    *_, count = reader.take(_RESULT)
    answers: list[Answer | MicrokernelError] = []
    for _ in range(count):
        failed, extras_length, outputs = reader.take(_OUTCOME)
        extras = reader.take_bytes(extras_length)
        if failed:
            answers.append(error_from(*json.loads(extras)))
            continue
        tensors = []
        for _ in range(outputs):
            index, number, rank, start, nbytes = reader.take(_OUTPUT)
            shape, data = reader.take_dims(rank), block[start : start + nbytes]
            tensors.append(Tensor(schema.outputs[index], BY_NUMBER[number], shape, data))
        answers.append(Answer(tuple(tensors), json.loads(extras) if extras else NO_PARAMETERS))
    return answers
