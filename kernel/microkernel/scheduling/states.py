"""Tensors that a sequence carries from one request to the next, which clients do not see. Pure.

They are kept here and not where the model runs, so every backend has them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from microkernel.config.model import ModelConfig, State
from microkernel.config.tensors import states_of
from microkernel.errors import Internal
from microkernel.request import Answer
from microkernel.tensor import BY_CONFIG_NAME, DataType, Shape, Tensor, element_count


def blank(name: str, datatype: DataType, shape: Shape) -> Tensor:
    """A tensor of zeros, or of empty strings."""
    return Tensor(name, datatype, shape, bytes(element_count(shape) * (datatype.size or 4)))


@dataclass(frozen=True, slots=True)
class _Carried:
    """One state: what it goes in and comes out as, and what it may look like."""

    source: str
    target: str
    datatype: DataType
    dims: Shape


class States:
    """The states of a model, in the order in which a request carries them; see `model_inputs`."""

    def __init__(self, config: ModelConfig, initial: Mapping[str, Tensor]) -> None:
        """`initial` holds the states that do not begin as zeros, by the name of their input."""
        lead = (1,) if config.max_batch_size > 0 else ()
        states = states_of(config)
        self._carried = tuple(_carried(state, lead) for state in states)
        self._outputs = frozenset(state.output_name for state in states)
        self._public = frozenset(output.name for output in config.output)
        self.first = tuple(initial.get(c.source) or _zeros(c) for c in self._carried)
        """The states before the first request of a sequence."""
        self.varies = any(-1 in state.dims for state in states)
        """Whether their shapes may change from request to request."""

    def __bool__(self) -> bool:
        return bool(self._carried)

    def asked(self, outputs: tuple[str, ...]) -> tuple[str, ...]:
        """What to ask the model for where a client asks for these, empty for all."""
        if not outputs:
            return ()
        return (*outputs, *(c.target for c in self._carried if c.target not in outputs))

    def after(self, before: tuple[Tensor, ...], answer: Answer) -> tuple[Tensor, ...]:
        """The states for the next request; one that the model did not give stays as it was. They
        are copies, so that they hold no memory of the answer. Raises Internal for one that is not
        as the configuration says."""
        given = {t.name: t for t in answer.outputs if t.name in self._outputs}
        return tuple(
            [
                old if (new := given.get(c.target)) is None else _carried_on(c, new)
                for c, old in zip(self._carried, before, strict=True)
            ]
        )

    def without(self, answer: Answer, outputs: Collection[str]) -> Answer:
        """The answer for a client who asked for these, empty for all."""
        wanted = outputs or self._public
        if all(tensor.name in wanted for tensor in answer.outputs):
            return answer
        return replace(answer, outputs=tuple([t for t in answer.outputs if t.name in wanted]))


def _carried(state: State, lead: Shape) -> _Carried:
    datatype = BY_CONFIG_NAME[state.data_type]
    return _Carried(state.input_name, state.output_name, datatype, (*lead, *state.dims))


def _zeros(carried: _Carried) -> Tensor:
    # Triton leaves the memory as it is; zeros are what models turn out to expect of it.
    shape = tuple(1 if dim == -1 else dim for dim in carried.dims)
    return blank(carried.source, carried.datatype, shape)


def _carried_on(carried: _Carried, tensor: Tensor) -> Tensor:
    fits = len(tensor.shape) == len(carried.dims) and all(
        dim in (-1, size) for size, dim in zip(tensor.shape, carried.dims, strict=True)
    )
    if tensor.datatype is not carried.datatype or not fits:
        raise Internal(
            f"state '{carried.target}' should be {carried.datatype.name} of shape "
            f"{list(carried.dims)}, the model gave {tensor.datatype.name} of shape "
            f"{list(tensor.shape)}"
        )
    return Tensor(carried.source, carried.datatype, tuple(tensor.shape), bytes(tensor.data))
