"""`reshape` of the configuration: the shape clients see and the shape the backend sees. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from microkernel.config.model import ModelInput, ModelOutput
from microkernel.tensor import Shape


@dataclass(frozen=True, slots=True)
class Reshaper:
    """Turns a tensor's shape into the other one; both hold the same elements in the same order.

    `outer` is what clients see and `inner` what the backend sees, without the batch dimension. The
    k-th variable dimension of one takes the value of the k-th of the other.
    """

    outer: Shape
    inner: Shape
    batches: bool

    def inward(self, shape: Shape) -> Shape:
        """The backend's shape for a client's."""
        return self._turn(shape, self.outer, self.inner)

    def outward(self, shape: Shape) -> Shape:
        """The client's shape for a backend's; left alone where it is not of the inner form."""
        expected = len(self.inner) + self.batches
        return self._turn(shape, self.inner, self.outer) if len(shape) == expected else shape

    def _turn(self, shape: Shape, source: Shape, target: Shape) -> Shape:
        lead = shape[:1] if self.batches else ()
        own = shape[1:] if self.batches else shape
        variable = iter([size for size, dim in zip(own, source, strict=True) if dim == -1])
        return (*lead, *(next(variable) if dim == -1 else dim for dim in target))


def reshapers(
    tensors: Sequence[ModelInput] | Sequence[ModelOutput], *, batches: bool
) -> Mapping[str, Reshaper]:
    """The reshapers of the tensors that have a `reshape`, by name."""
    return {
        tensor.name: Reshaper(tensor.dims, tensor.reshape.shape, batches)
        for tensor in tensors
        if tensor.reshape is not None
    }
