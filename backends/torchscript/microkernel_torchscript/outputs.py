"""How the result of `forward` becomes the outputs of a configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from microkernel import Internal, InvalidArgument, ModelConfig, Tensor, model_outputs
from microkernel_torchscript.conversion import (
    STRING,
    from_torch,
    type_name,
    unreadable,
)
from microkernel_torchscript.failures import FAILURE
from microkernel_torchscript.inputs import check_any, check_entry
from microkernel_torchscript.naming import index_of, output_positions
from microkernel_torchscript.results import Results, flatten, is_output, kind_name


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output of the configuration and its position among the results. Where the model returns a
    dictionary or a NamedTuple the name may be the key or the field."""

    name: str
    data_type: str
    position: int


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Which results become outputs. `strings` are the positions and the names at which an empty
    list is one of strings."""

    wanted: tuple[Wanted, ...]
    strings: frozenset[int | str] = field(init=False)

    def __post_init__(self) -> None:
        lists = [wanted for wanted in self.wanted if wanted.data_type == STRING]
        strings = frozenset(place for entry in lists for place in (entry.name, entry.position))
        object.__setattr__(self, "strings", strings)  # once, for it is asked of every result

    def tensors(self, result: Any) -> list[Tensor]:
        """The configured outputs, in the configuration's order, from what `forward` returned.

        Results inside one another count in flattening order, depth first. Raises Internal for a
        result of the wrong kind; InvalidArgument where an output is not there, has another type
        than configured or is a scalar.
        """
        found = flatten(result, self.strings)
        if found.single:
            _check_single(found.values[0])
        values = self._by_name(found) if found.named else None
        if values is None:
            values = self._by_index(found.values)
        return [
            _output(wanted, value, keyed=found.keyed)
            for wanted, value in zip(self.wanted, values, strict=True)
        ]

    def _by_name(self, found: Results) -> list[Any] | None:
        """The outputs by key or field; None where they are meant by position."""
        values = dict(zip(found.names, found.values, strict=True))
        missing = [wanted.name for wanted in self.wanted if wanted.name not in values]
        if not missing:
            return [values[wanted.name] for wanted in self.wanted]
        if found.fields or all(index_of(wanted.name) is not None for wanted in self.wanted):
            return None
        raise InvalidArgument(
            f"The output {missing[0]} in the model configuration refers to a key which doesn't "
            f"exist. This model has outputs {', '.join(sorted(values))}"
        )

    def _by_index(self, values: Sequence[Any]) -> list[Any]:
        for wanted in self.wanted:
            if wanted.position >= len(values):
                raise InvalidArgument(
                    f"The output {wanted.name} in the model configuration refers to an output "
                    f"index which doesn't exist. This model has {len(values)} outputs"
                )
        return [values[wanted.position] for wanted in self.wanted]


def plan_outputs(config: ModelConfig) -> OutputPlan:
    """Match the configuration's outputs, and those of its states, with the results of `forward`.

    Raises Internal, in Triton's words, for no outputs and for types that the backend cannot read.
    """
    check_any(config.output, "output")
    entries = model_outputs(config)
    for entry in entries:
        check_entry(config, entry)
    positions = output_positions([entry.name for entry in entries])
    return OutputPlan(
        tuple(
            Wanted(entry.name, entry.data_type, position)
            for entry, position in zip(entries, positions, strict=True)
        )
    )


def _check_single(value: Any) -> None:
    """Internal, in Triton's words, for a whole result that cannot be an output."""
    if is_output(value):
        return
    if isinstance(value, list):
        raise Internal(
            f"{FAILURE}output must be of type Tensor or List[str], received {kind_name(value)}"
        )
    raise Internal(
        f"{FAILURE}output must be of type Tensor, List[str] or Tuple containing one of these two "
        "types. It should not be a List / Dictionary of Tensors or a Scalar"
    )


def _output(wanted: Wanted, value: Any, *, keyed: bool) -> Tensor:
    if not is_output(value):
        place = f"'{wanted.name}'" if keyed else f"at index {wanted.position}"
        raise Internal(
            f"{FAILURE}output {place} must be of type Tensor or List[str], received "
            f"{kind_name(value)}"
        )
    provided = type_name(value)
    if provided != wanted.data_type:
        _check_readable(wanted, value)
        raise InvalidArgument(
            f"configuration expects datatype {wanted.data_type} for output '{wanted.name}', model "
            f"provides {provided}"
        )
    try:
        tensor = from_torch(wanted.name, value)
    except (RuntimeError, TypeError):
        _check_readable(wanted, value)
        raise
    if not tensor.shape:
        raise InvalidArgument(f"output '{wanted.name}' is a scalar which is not supported.")
    return tensor


def _check_readable(wanted: Wanted, value: Any) -> None:
    if isinstance(value, torch.Tensor) and (reason := unreadable(value)):
        raise Internal(f"{FAILURE}output '{wanted.name}' {reason}")
