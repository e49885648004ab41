"""What a backend executes: the requests of one batch, and their inputs laid end to end.

The kernel gathers every request's data for an input into one contiguous region, so the batch as one
tensor and the request's own part of it are both views on the same bytes.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from microkernel.errors import Internal
from microkernel.ragged import Composition
from microkernel.request import InferRequest, InferResponse
from microkernel.tensor import Tensor


@dataclass(slots=True)
class Batch(Sequence[InferRequest]):
    """The requests that run together.

    `requests` are in arrival order, their tensors views that are valid until `execute` returns.
    `stacked` holds the whole batch per input name: the first request's shape with the first
    dimensions summed; for a model that does not batch, the only request's own tensors. An input
    that allows ragged batches is there as one dimension, and beside the inputs stands what the
    configuration's `batch_input` makes of the batch, as `composition` says. `sizes` is each
    request's first dimension, 1 where the model does not batch. `first` is the number of the first
    request, which the others follow, and `gone` the numbers of those that nobody waits for, kept up
    to date while the batch runs; see `cancelled`.
    """

    requests: Sequence[InferRequest]
    stacked: Mapping[str, Tensor]
    sizes: Sequence[int]
    first: int = 0
    gone: Container[int] = ()
    composition: Composition | None = None

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[InferRequest]:
        return iter(self.requests)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # typed by Sequence's overloads
        return self.requests[index]

    @property
    def size(self) -> int:
        """The sum of `sizes`."""
        return sum(self.sizes)

    def cancelled(self, index: int) -> bool:
        """Whether nobody waits any more for the answer to the request at that place. It may be
        asked from any thread at any time until `execute` returns."""
        return self.first + index in self.gone

    def split(self, outputs: Sequence[Tensor]) -> list[InferResponse]:
        """One response per request from outputs that cover the whole batch, cut along their first
        dimension, or as the configuration's `batch_output` says.

        A batch of one gets the outputs as they are. Raises Internal when an output has fewer rows
        than the batch, or fewer elements; what it has beyond that is dropped.
        """
        if self.composition is not None:
            parts = [self._pieces(output, self.composition) for output in outputs]
        elif len(self.requests) == 1:
            return [_response(self.requests[0], outputs)]
        else:
            parts = [_split(output, self.sizes) for output in outputs]
        return [
            _response(request, [part[i] for part in parts])
            for i, request in enumerate(self.requests)
        ]

    def _pieces(self, output: Tensor, composition: Composition) -> list[Tensor]:
        pieces = composition.pieces(output, self.requests)
        if pieces is not None:
            return pieces
        return [output] if len(self.requests) == 1 else _split(output, self.sizes)


def _response(request: InferRequest, outputs: Sequence[Tensor]) -> InferResponse:
    return InferResponse(request.model_name, request.version, request.id, tuple(outputs))


def _split(output: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    rows = output.shape[0] if output.shape else 0
    if rows < sum(sizes):
        raise Internal(
            f"failed to split the output tensor '{output.name}' of shape {list(output.shape)} "
            f"over a batch of {sum(sizes)}"
        )
    if output.datatype.size == 0:
        return _split_bytes(output, sizes)
    per_row = output.nbytes // rows if rows else 0
    data, position, parts = memoryview(output.data), 0, []
    for size in sizes:
        end = position + size * per_row
        parts.append(replace(output, shape=(size, *output.shape[1:]), data=data[position:end]))
        position = end
    return parts


def _split_bytes(output: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    array, position, parts = output.as_numpy(), 0, []
    for size in sizes:
        parts.append(Tensor.from_numpy(output.name, array[position : position + size]))
        position += size
    return parts
