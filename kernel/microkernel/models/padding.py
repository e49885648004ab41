"""Filling up the inputs of a batch to its longest, so that sequences of different lengths can share
it, and cutting outputs back. Pure.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np

from microkernel.config.model import ModelConfig
from microkernel.config.padding import element, pad_limit, pad_names
from microkernel.config.tensors import inner_dims
from microkernel.errors import InvalidArgument
from microkernel.request import InferRequest
from microkernel.scheduling.pending import Pending
from microkernel.scheduling.policy import Joins, Waiting
from microkernel.tensor import BY_CONFIG_NAME, DataType, Shape, Tensor

SHORT = 512
"""Sequences up to this length may share a batch whatever their lengths, longer ones where those are
within the same power of two times it. So a client that sends one very long sequence cannot have
every other request of its batch blown up to that."""


@dataclass(frozen=True, slots=True)
class _Padded:
    """The dimension of a tensor that is filled up, the batch's counted, and one element to fill it
    with."""

    axis: int
    fill: bytes


@dataclass(frozen=True, slots=True)
class _Mask:
    """The input that says which elements are real: its shape without the batch dimension, -1 where
    the length goes, and one element that says so."""

    name: str
    datatype: DataType
    dims: Shape
    one: bytes


@dataclass(frozen=True, slots=True)
class Padding:
    """How the requests of a model are made equal in length. All named inputs of a request have one
    length; shapes are those that the backend sees."""

    _padded: Mapping[str, _Padded]
    _cut: Mapping[str, int]
    _mask: _Mask | None
    _order: Sequence[str]
    _batches: bool
    _limit: float

    @classmethod
    def of(cls, config: ModelConfig) -> "Padding | None":
        """That of a complete and valid configuration; None where nothing is padded."""
        names = pad_names(config)
        if names is None:
            return None
        lead = int(config.max_batch_size > 0)
        padded, mask = {}, None
        for entry in config.input:
            datatype, dims = BY_CONFIG_NAME[entry.data_type], inner_dims(entry)
            if entry.name == names.mask:
                mask = _Mask(entry.name, datatype, dims, element("1", datatype))
                padded[entry.name] = _Padded(lead + dims.index(-1), element("0", datatype))
            elif entry.name in names.inputs:
                fill = element(names.value(entry.name), datatype)
                padded[entry.name] = _Padded(lead + dims.index(-1), fill)
        cut = {o.name: lead + inner_dims(o).index(-1) for o in config.output if o.name in names.cut}
        order = [entry.name for entry in config.input]
        return cls(padded, cut, mask, order, lead > 0, pad_limit(config))

    def pads(self, name: str) -> bool:
        """Whether an input may differ in shape between the requests of a batch."""
        return name in self._padded

    def makes(self, name: str) -> bool:
        """Whether an input is made where a request leaves it out."""
        return self._mask is not None and name == self._mask.name

    def completed(self, inputs: tuple[Tensor, ...], tag: str) -> tuple[Tensor, ...]:
        """The inputs of a request that is otherwise right, with the mask. Raises InvalidArgument,
        beginning with `tag`, where their lengths differ."""
        lengths = {t.name: self._length(t) for t in inputs if t.name in self._padded}
        if len(set(lengths.values())) > 1:
            text = ", ".join(f"'{name}' is {length}" for name, length in lengths.items())
            raise InvalidArgument(f"{tag}inputs that are padded must be equally long, but {text}")
        mask = self._mask
        if mask is None or mask.name in lengths or not lengths:
            return inputs
        (length,) = set(lengths.values())
        dims = tuple(length if dim == -1 else dim for dim in mask.dims)
        shape = (*inputs[0].shape[:1], *dims) if self._batches else dims
        made = Tensor(mask.name, mask.datatype, shape, mask.one * math.prod(shape))
        return tuple(sorted((*inputs, made), key=lambda tensor: self._order.index(tensor.name)))

    def length_class(self, inputs: Sequence[Tensor]) -> int:
        """What requests must agree in to share a batch; see `SHORT`."""
        return (max(self._own(inputs) - 1, 0) // SHORT).bit_length()

    def limited(self, open_batch: Callable[[], Joins] | None) -> Callable[[], Joins] | None:
        """What the dynamic batcher asks: besides what it would ask anyway, whether a batch is not
        filled up too much."""
        if self._limit == math.inf:
            return open_batch
        return partial(self._joins, open_batch)

    def _joins(self, open_batch: Callable[[], Joins] | None) -> Joins:
        asked = None if open_batch is None else open_batch()
        longest = rows = real = 0

        def joins(waiting: Waiting) -> bool:
            nonlocal longest, rows, real
            own = self._own(cast("Pending", waiting).request.inputs)
            longest, rows = max(longest, own), rows + waiting.size
            real += own * waiting.size
            fits = longest * rows <= self._limit * real
            return fits and (asked is None or asked(waiting))

        return joins

    def pad(self, requests: Sequence[InferRequest]) -> Sequence[InferRequest]:
        """The requests of a batch, all as long as the longest."""
        lengths = [self._own(request.inputs) for request in requests]
        longest = max(lengths)
        return [
            request if length == longest else self._lengthened(request, longest)
            for request, length in zip(requests, lengths, strict=True)
        ]

    def cut(self, request: InferRequest, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The outputs for a request, which is the one that was not padded, cut to its length."""
        if not self._cut:
            return outputs
        own = self._own(request.inputs)
        return tuple(
            _shortened(t, self._cut[t.name], own) if t.name in self._cut else t for t in outputs
        )

    def _length(self, tensor: Tensor) -> int:
        return tensor.shape[self._padded[tensor.name].axis]

    def _own(self, inputs: Sequence[Tensor]) -> int:
        """The length of a request; 0 where it leaves out all that is padded."""
        return next((self._length(t) for t in inputs if t.name in self._padded), 0)

    def _lengthened(self, request: InferRequest, length: int) -> InferRequest:
        inputs = tuple(
            _lengthened(t, self._padded[t.name], length) if t.name in self._padded else t
            for t in request.inputs
        )
        return replace(request, inputs=inputs)


def _lengthened(tensor: Tensor, padded: _Padded, length: int) -> Tensor:
    shape, axis = tensor.shape, padded.axis
    rows, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    more = padded.fill * ((length - shape[axis]) * inner)
    grown = (*shape[:axis], length, *shape[axis + 1 :])
    if rows == 1:
        return replace(tensor, shape=grown, data=b"".join((tensor.data, more)))
    size = len(tensor.data) // rows if rows else 0
    block = np.empty((rows, size + len(more)), np.uint8)
    block[:, :size] = np.frombuffer(tensor.data, np.uint8).reshape(rows, size)
    block[:, size:] = np.frombuffer(more, np.uint8)
    return replace(tensor, shape=grown, data=block.reshape(-1).data)


def _shortened(tensor: Tensor, axis: int, length: int) -> Tensor:
    """The tensor with no more than `length` along an axis; left alone where it lacks the axis."""
    shape = tensor.shape
    if len(shape) <= axis or shape[axis] <= length:
        return tensor
    cut = (*shape[:axis], length, *shape[axis + 1 :])
    if tensor.datatype.size == 0:
        return Tensor.from_numpy(
            tensor.name, tensor.as_numpy()[(slice(None),) * axis + (slice(length),)]
        )
    rows = math.prod(shape[:axis])
    size = len(tensor.data) // rows if rows else 0
    kept = size // shape[axis] * length
    if rows == 1:  # a view, which nearly all are
        return replace(tensor, shape=cut, data=memoryview(tensor.data)[:kept])
    block = np.frombuffer(tensor.data, np.uint8).reshape(rows, size)[:, :kept]
    return replace(tensor, shape=cut, data=np.ascontiguousarray(block).reshape(-1).data)
