"""Batches that are more than their inputs laid end to end: requests of different shapes, tensors
that say what a batch is made of, outputs that are taken apart by the shape of an input. Pure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from microkernel.config.model import ModelConfig
from microkernel.config.tensors import inner_dims
from microkernel.errors import Internal
from microkernel.request import InferRequest
from microkernel.tensor import BY_CONFIG_NAME, DataType, Shape, Tensor, element_count

Shapes: TypeAlias = Sequence[Shape]
"""The shape of an input in each request of a batch."""
Numbers: TypeAlias = npt.NDArray[np.int64]


def _counts(shapes: Shapes) -> list[int]:
    return [element_count(shape) for shape in shapes]


def _items(shapes: Shapes, batches: bool) -> Numbers:
    """The shape of every item of a batch, a row each."""
    rows = [shape[1:] for shape in shapes for _ in range(shape[0])] if batches else list(shapes)
    rank = len(shapes[0]) - batches
    return np.array(rows, np.int64).reshape(len(rows), rank)


_KINDS: Mapping[str, Callable[[Shapes, bool], Any]] = {
    "BATCH_ELEMENT_COUNT": lambda shapes, _: _counts(shapes),
    "BATCH_ACCUMULATED_ELEMENT_COUNT": lambda shapes, _: list(accumulate(_counts(shapes))),
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO": lambda shapes, _: [
        0,
        *accumulate(_counts(shapes)),
    ],
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE": lambda shapes, _: np.zeros(max(_counts(shapes)), np.int8),
    "BATCH_ITEM_SHAPE": _items,
    "BATCH_ITEM_SHAPE_FLATTEN": lambda shapes, batches: _items(shapes, batches).reshape(-1),
}


def composed(kind: str, shapes: Shapes, *, batches: bool) -> Numbers:
    """What a batch input of a kind says of a batch whose source input has these shapes, the first
    dimension of each being the request's batch size where the model `batches`. The largest count as
    a shape holds zeros."""
    return np.asarray(_KINDS[kind](shapes, batches))


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor that is made of a batch: of which kind, of which input, and what it is called."""

    kind: str
    source: str
    targets: tuple[str, ...]
    datatype: DataType

    def tensors(self, requests: Sequence[InferRequest], *, batches: bool) -> list[Tensor]:
        """One per target, all with the same values; none where the requests lack the source."""
        sources = [request.input(self.source) for request in requests]
        shapes = [source.shape for source in sources if source is not None]
        if len(shapes) != len(requests):
            return []
        numbers = composed(self.kind, shapes, batches=batches)
        assert self.datatype.numpy is not None
        tensor = Tensor.from_numpy("", numbers.astype(self.datatype.numpy))
        return [replace(tensor, name=target) for target in self.targets]


@dataclass(frozen=True, slots=True)
class Scatter:
    """An output that holds the pieces of all requests, one after the other. The shape of a piece is
    `dims`, in which -1 stands for the size of that dimension in the request's own `source`."""

    source: str
    dims: Shape

    def pieces(self, output: Tensor, requests: Sequence[InferRequest]) -> list[Tensor]:
        """Each request's piece. Raises Internal where the output holds too few elements; what it
        holds beyond that is dropped."""
        shapes = [self._shape(request) for request in requests]
        counts = [element_count(shape) for shape in shapes]
        if element_count(output.shape) < sum(counts):
            raise Internal(
                f"failed to split the output tensor '{output.name}' of shape "
                f"{list(output.shape)} over requests that want {counts} elements"
            )
        if output.datatype.size == 0:
            return _cut_objects(output, shapes)
        data, position, parts = memoryview(output.data), 0, []
        for shape, count in zip(shapes, counts, strict=True):
            end = position + count * output.datatype.size
            parts.append(replace(output, shape=shape, data=data[position:end]))
            position = end
        return parts

    def _shape(self, request: InferRequest) -> Shape:
        source = request.input(self.source)
        own = source.shape if source is not None else ()
        return tuple(
            (own[axis] if axis < len(own) else 0) if dim == -1 else dim
            for axis, dim in enumerate(self.dims)
        )


def _cut_objects(output: Tensor, shapes: Shapes) -> list[Tensor]:
    elements, position, parts = output.as_numpy().reshape(-1), 0, []
    for shape in shapes:
        end = position + element_count(shape)
        parts.append(Tensor.from_numpy(output.name, elements[position:end].reshape(shape)))
        position = end
    return parts


@dataclass(frozen=True, slots=True)
class Composition:
    """What is special about the batches of a model. `ragged` inputs are laid end to end as one
    dimension; `shared` ones and outputs that are `whole` are the same for all requests; see `Made`
    and `Scatter` for the others."""

    batches: bool
    ragged: frozenset[str]
    shared: frozenset[str]
    whole: frozenset[str]
    made: tuple[Made, ...]
    scattered: Mapping[str, Scatter]

    @classmethod
    def of(cls, config: ModelConfig) -> "Composition | None":
        """That of a complete and valid configuration; None for a plain model."""
        ragged = frozenset(entry.name for entry in config.input if entry.allow_ragged_batch)
        shared = frozenset(entry.name for entry in config.input if entry.is_shape_tensor)
        whole = frozenset(entry.name for entry in config.output if entry.is_shape_tensor)
        if not (ragged or shared or whole or config.batch_input or config.batch_output):
            return None
        made = tuple(
            Made(b.kind, b.source_input[0], b.target_name, BY_CONFIG_NAME[b.data_type])
            for b in config.batch_input
        )
        return cls(config.max_batch_size > 0, ragged, shared, whole, made, _scattered(config))

    def stacked(
        self, requests: Sequence[InferRequest], stacked: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The whole batch per input name, from the inputs laid end to end."""
        result = {name: self._laid(tensor, requests) for name, tensor in stacked.items()}
        for made in self.made:
            result.update((t.name, t) for t in made.tensors(requests, batches=self.batches))
        return result

    def _laid(self, tensor: Tensor, requests: Sequence[InferRequest]) -> Tensor:
        if tensor.name in self.shared:
            return requests[0].input(tensor.name) or tensor
        if tensor.name not in self.ragged:
            return tensor
        own = (request.input(tensor.name) for request in requests)
        count = sum(element_count(t.shape) for t in own if t is not None)
        return replace(tensor, shape=(count,))

    def pieces(self, output: Tensor, requests: Sequence[InferRequest]) -> list[Tensor] | None:
        """Each request's piece of an output that is not cut along its first dimension; None for
        one that is."""
        if output.name in self.whole:
            return [output] * len(requests)
        scatter = self.scattered.get(output.name)
        return None if scatter is None else scatter.pieces(output, requests)


def _scattered(config: ModelConfig) -> Mapping[str, Scatter]:
    outputs = {entry.name: entry for entry in config.output}
    batch = (-1,) if config.max_batch_size > 0 else ()
    return {
        name: Scatter(entry.source_input[0], (*batch, *inner_dims(outputs[name])))
        for entry in config.batch_output
        for name in entry.target_name
    }
