"""Whether a request fits a model's configuration; what it looks like to the backend if it does."""

import asyncio
import itertools
import struct
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from microkernel.config.model import ModelConfig, ModelInput
from microkernel.errors import InvalidArgument
from microkernel.models.padding import Padding
from microkernel.models.reshape import Reshaper, reshapers
from microkernel.request import InferRequest
from microkernel.tensor import BY_CONFIG_NAME, BYTES, DataType, Shape, Tensor, element_count

_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be "
    "prepended to each input shape. If you want to specify the full shape including the batch dim "
    "in your input dims config, try setting max_batch_size to zero. See the model configuration "
    "docs for more info on max_batch_size."
)

_LENGTH = struct.Struct("<I")
_MAX_EXTENT = (1 << 63) - 1
_REFERENCE = 8
"""The bytes that an element of BYTES takes in an array of numpy's."""
TURN = 8 << 10
"""How many elements of BYTES tensors are read at once, in a millisecond or two."""


@dataclass(slots=True)
class Checked:
    """A request ready to run: its inputs in configuration order and in the backend's shapes, its
    batch size, and the key that requests must share to run together."""

    request: InferRequest
    size: int
    key: Hashable


@dataclass(frozen=True, slots=True)
class _Input:
    name: str
    datatype: DataType
    dims: Shape
    optional: bool
    shared: bool
    varies: bool
    reshaper: Reshaper | None


class RequestChecker:
    """Checks requests against one complete configuration. Messages are Triton's."""

    def __init__(self, config: ModelConfig) -> None:
        self._model = config.name
        self._largest = config.max_batch_size
        batch_dims = (-1,) if config.max_batch_size > 0 else ()
        reshape = reshapers(config.input, batches=config.max_batch_size > 0)
        self._padding = padding = Padding.of(config)
        self._inputs = [_input(entry, batch_dims, reshape, padding) for entry in config.input]
        self._by_name: Mapping[str, _Input] = {entry.name: entry for entry in self._inputs}
        self._order = {entry.name: i for i, entry in enumerate(self._inputs)}
        self._required = sum(not entry.optional for entry in self._inputs)
        self._outputs = frozenset(output.name for output in config.output)
        self._varying = frozenset(entry.name for entry in self._inputs if entry.varies)
        self._shared = frozenset(entry.name for entry in self._inputs if entry.shared)
        self._plain = not self._shared and not any(entry.reshaper for entry in self._inputs)
        self._reads = any(entry.datatype is BYTES for entry in self._inputs)

    def check(self, request: InferRequest) -> Checked:
        """The request made ready. Raises InvalidArgument, in the order of Triton's checks."""
        usual = self._plain and self._outputs.issuperset(request.outputs)
        if usual and (size := self._glance(request.inputs)):
            if self._padding is not None:
                self._padding.completed(request.inputs, request.tag())
            return Checked(request, size, self._key(request.inputs))
        *_, checked = self._look(request)
        assert checked is not None
        return checked

    async def check_in_turns(self, request: InferRequest) -> Checked:
        """As `check`, letting others run in between; for requests that take long."""
        for checked in self._look(request):
            if checked is not None:
                return checked
            await asyncio.sleep(0)
        raise AssertionError("a check ends with what it found")

    def takes_long(self, request: InferRequest) -> bool:
        """Whether there may be more than `TURN` elements to read, which others should not have to
        wait for."""
        return self._reads and TURN * _LENGTH.size < sum(
            len(tensor.data) for tensor in request.inputs if tensor.datatype is BYTES
        )

    def check_ahead(self, request: InferRequest) -> None:
        """As `check`, as far as that needs no data: before inputs in shared memory are read, which
        may be large. Raises InvalidArgument."""
        tag = request.tag()
        self._check_outline(request, tag)
        for tensor in request.inputs:
            part = request.shared_inputs.get(tensor.name)
            size = len(tensor.data) if part is None else part.byte_size
            self._check_tensor(tensor, size, tag)

    def _glance(self, inputs: Sequence[Tensor]) -> int:
        """The batch size of inputs that are right, all there and in order, as nearly all are; 0
        where a closer look is needed. This is the hot path: one pass over the inputs."""
        if len(inputs) != len(self._inputs):
            return 0
        batches = self._largest > 0
        batch = inputs[0].shape[0] if batches and inputs and inputs[0].shape else 1
        if batch > self._largest > 0:
            return 0
        for tensor, entry in zip(inputs, self._inputs):  # noqa: B905 - as long as each other
            shape, datatype = tensor.shape, tensor.datatype
            if (
                tensor.name != entry.name
                or datatype is not entry.datatype
                or len(shape) != len(entry.dims)
                or (batches and shape[0] != batch)
            ):
                return 0
            expected = datatype.size  # 0 for BYTES, whose elements must be read
            for size, dim in zip(shape, entry.dims):  # noqa: B905 - as long as each other
                if size != dim and (dim != -1 or size < 0):
                    return 0
                expected *= size
            if not expected or expected != len(tensor.data):
                return 0
        return batch

    def _look(self, request: InferRequest) -> Iterator[Checked | None]:
        """What `check` does, with pauses for others to run; what was found comes last."""
        tag = request.tag()
        size = self._check_outline(request, tag)
        for tensor in request.inputs:
            self._check_tensor(tensor, len(tensor.data), tag)
            if tensor.datatype is BYTES:
                yield from self._check_elements(tensor, tag)
        inputs = self._ordered(request.inputs)
        if not self._plain:
            inputs = tuple(self._reshaped(tensor) for tensor in inputs)
        if self._padding is not None:
            inputs = self._padding.completed(inputs, tag)
        if inputs is not request.inputs:
            request = replace(request, inputs=inputs)
        yield Checked(request, size, self._key(inputs))

    def _check_outline(self, request: InferRequest, tag: str) -> int:
        """Check what concerns no tensor alone; the batch size."""
        self._check_repeated(request.inputs, tag)
        for name in request.outputs:
            if name not in self._outputs:
                raise InvalidArgument(
                    f"unexpected inference output '{name}' for model '{self._model}'"
                )
        self._check_names(request.inputs, tag)
        return self._batch_size(request.inputs, tag)

    def _check_names(self, inputs: Sequence[Tensor], tag: str) -> None:
        if not self._required <= len(inputs) <= len(self._inputs):
            raise InvalidArgument(tag + self._wrong_count(inputs))
        for tensor in inputs:
            if tensor.name not in self._by_name:
                raise InvalidArgument(
                    f"unexpected inference input '{tensor.name}' for model '{self._model}'"
                )
        given = {tensor.name for tensor in inputs}
        if self._required < len(self._inputs) and any(
            not entry.optional and entry.name not in given for entry in self._inputs
        ):
            raise InvalidArgument(tag + self._wrong_count(inputs))

    def _check_repeated(self, inputs: Sequence[Tensor], tag: str) -> None:
        seen: set[str] = set()
        for tensor in inputs:
            if tensor.name in seen:
                raise InvalidArgument(f"{tag}input '{tensor.name}' already exists in request")
            seen.add(tensor.name)

    def _wrong_count(self, inputs: Sequence[Tensor]) -> str:
        got, most = len(inputs), len(self._inputs)
        given = [tensor.name for tensor in inputs]
        missing = [e.name for e in self._inputs if not e.optional and e.name not in given]
        expected = (
            f"expected {most} inputs but got {got}"
            if self._required == most
            else f"expected number of inputs between {self._required} and {most} but got {got}"
        )
        return (
            f"{expected} inputs for model '{self._model}'. Got input(s) {_quoted(given)}, but "
            f"missing required input(s) {_quoted(missing)}. Please provide all required input(s)."
        )

    def _batch_size(self, inputs: Sequence[Tensor], tag: str) -> int:
        if self._shared:
            inputs = [tensor for tensor in inputs if tensor.name not in self._shared]
        if self._largest <= 0 or not inputs:
            return 1
        for tensor in inputs:
            if not tensor.shape:
                raise InvalidArgument(
                    f"{tag}input '{tensor.name}' has no shape but model requires batch dimension "
                    f"for '{self._model}'"
                )
            if tensor.shape[0] != inputs[0].shape[0]:
                raise InvalidArgument(
                    f"{tag}input '{tensor.name}' batch size does not match other inputs for "
                    f"'{self._model}'"
                )
        size = inputs[0].shape[0]
        if size > self._largest:
            raise InvalidArgument(
                f"{tag}inference request batch-size must be <= {self._largest} for '{self._model}'"
            )
        return max(size, 1)

    def _check_tensor(self, tensor: Tensor, size: int, tag: str) -> None:
        """Check an input that has so many bytes, but not its elements."""
        entry = self._by_name[tensor.name]
        if tensor.datatype is not entry.datatype:
            given = tensor.datatype
            raise InvalidArgument(
                f"{tag}inference input '{tensor.name}' data-type is '{given.shown}', but "
                f"model '{self._model}' expects '{entry.datatype.name}'"
                + ("" if given.number else f"; '{given.name:.100}' is no data type")
            )
        if tensor.shape and min(tensor.shape) < 0:
            raise InvalidArgument(
                f"{tag}All input dimensions should be specified for input '{tensor.name}' for "
                f"model '{self._model}', got {_dims(tensor.shape)}"
            )
        if not _fits(tensor.shape, entry.dims):
            note = _NOTE if self._largest > 0 else ""
            raise InvalidArgument(
                f"{tag}unexpected shape for input '{tensor.name}' for model '{self._model}'. "
                f"Expected {_dims(entry.dims)}, got {_dims(tensor.shape)}. {note}"
            )
        if not size and 0 in tensor.shape:
            self._check_extent(tensor, tag)
        if tensor.datatype is BYTES:
            return
        expected = self._expected(tensor, size // entry.datatype.size)
        expected *= entry.datatype.size
        if expected != size:
            raise InvalidArgument(
                f"{tag}input byte size mismatch for input '{tensor.name}' for model "
                f"'{self._model}'. Expected {expected}, got {size}"
            )

    def _check_extent(self, tensor: Tensor, tag: str) -> None:
        """Refuse dims of nothing that are too large to say how far apart its elements would lie,
        which the libraries of backends work out, for a whole batch, also where there is none."""
        extent = (tensor.datatype.size or _REFERENCE) * max(self._largest, 1)
        if extent * element_count(filter(None, tensor.shape)) > _MAX_EXTENT:
            raise InvalidArgument(
                f"{tag}byte size overflow for input '{tensor.name}' for model '{self._model}': "
                f"the dims of {_dims(tensor.shape)} other than 0 are too large together"
            )

    def _expected(self, tensor: Tensor, count: int) -> int:
        """How many elements a tensor that holds `count` should hold. Triton counts a batch of none
        as one, so its data never suffices."""
        expected = element_count(tensor.shape)
        if expected == count and self._largest > 0 and tensor.shape[0] == 0:
            return element_count(tensor.shape[1:])
        return expected

    def _check_elements(self, tensor: Tensor, tag: str) -> Iterator[None]:
        # Millions of elements may be sent for a shape of few, so no more of them are looked at.
        most, count, position = element_count(tensor.shape) + 1, 0, 0
        while position < len(tensor.data) and count < most:
            if count:
                yield
            read, position = self._read(tensor, position, min(TURN, most - count), tag)
            count += read
        expected = self._expected(tensor, count)
        if count < expected:
            raise InvalidArgument(
                f"{tag}expected {expected} string elements for inference input '{tensor.name}' "
                f"for model '{self._model}', got {count}"
            )
        if count > expected:
            raise InvalidArgument(
                f"{tag}unexpected number of string elements {count} for inference input "
                f"'{tensor.name}' for model '{self._model}', expecting {expected}"
            )

    def _read(self, tensor: Tensor, position: int, most: int, tag: str) -> tuple[int, int]:
        """How many elements there are from a position on, `most` at the most, and where they
        end."""
        data, count, end = tensor.data, 0, len(tensor.data)
        while position < end and count < most:
            if end - position < 4:
                raise InvalidArgument(
                    f"{tag}incomplete string length indicator for inference input "
                    f"'{tensor.name}' for model '{self._model}', expecting 4 bytes but only "
                    f"{end - position} bytes available"
                )
            (length,) = _LENGTH.unpack_from(data, position)
            position += 4 + length
            count += 1
            if position > end:
                raise InvalidArgument(
                    f"incomplete string data for inference input '{tensor.name}', expecting string "
                    f"of length {length} but only {end - position + length} bytes available"
                )
        return count, position

    def _ordered(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        order = [self._order[tensor.name] for tensor in inputs]
        if all(a < b for a, b in itertools.pairwise(order)):
            return inputs
        return tuple(sorted(inputs, key=lambda tensor: self._order[tensor.name]))

    def _reshaped(self, tensor: Tensor) -> Tensor:
        reshaper = self._by_name[tensor.name].reshaper
        if reshaper is None:
            return tensor
        return replace(tensor, shape=reshaper.inward(tensor.shape))

    def _key(self, inputs: Sequence[Tensor]) -> Hashable:
        """Variable inputs must agree in shape, shape tensors in shape and contents, padded inputs
        roughly in length, and optional inputs in presence."""
        shapes: tuple[Hashable, ...] = ()
        if self._varying:
            skip = 1 if self._largest > 0 else 0
            shapes = tuple([t.shape[skip:] for t in inputs if t.name in self._varying])
        if self._shared:
            shapes += tuple([(t.shape, bytes(t.data)) for t in inputs if t.name in self._shared])
        if self._padding is not None:
            shapes += (self._padding.length_class(inputs),)
        if self._required == len(self._inputs):
            return shapes
        return (tuple([t.name for t in inputs]), shapes)


def _input(
    entry: ModelInput,
    batch_dims: Shape,
    reshape: Mapping[str, Reshaper],
    padding: Padding | None,
) -> _Input:
    shared, ragged = entry.is_shape_tensor, entry.allow_ragged_batch
    padded = padding is not None and padding.pads(entry.name)
    return _Input(
        entry.name,
        BY_CONFIG_NAME[entry.data_type],
        entry.dims if shared else (*batch_dims, *entry.dims),
        entry.optional or (padding is not None and padding.makes(entry.name)),
        shared,
        -1 in entry.dims and not (ragged or padded or shared),
        reshape.get(entry.name),
    )


def _fits(shape: Shape, dims: Shape) -> bool:
    return len(shape) == len(dims) and all(
        expected in (-1, size) for size, expected in zip(shape, dims, strict=True)
    )


def _dims(dims: Sequence[int]) -> str:
    return "[" + ",".join(map(str, dims)) + "]"


def _quoted(names: Sequence[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"
