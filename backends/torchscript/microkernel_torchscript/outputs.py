"""How the result of `forward` becomes the outputs of a configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from microkernel import Internal, InvalidArgument, ModelConfig, Tensor, model_outputs
from microkernel_torchscript.conversion import STRING, from_torch, is_supported, type_name
from microkernel_torchscript.inputs import check_strings
from microkernel_torchscript.naming import output_positions

_FAILURE = "PyTorch execute failure: "


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output of the configuration and its position among the results. Where the model returns a
    dictionary the name is the key."""

    name: str
    data_type: str
    position: int


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Which results become outputs."""

    wanted: tuple[Wanted, ...]

    def tensors(self, result: Any) -> list[Tensor]:
        """The configured outputs, in the configuration's order, from what `forward` returned.

        Raises Internal for a result of the wrong kind; InvalidArgument where an output is not
        there, has another type than configured or is a scalar.
        """
        if isinstance(result, dict):
            return list(map(_output, self.wanted, _by_key(result, self.wanted)))
        return list(map(_output, self.wanted, self._by_index(result)))

    def _by_index(self, result: Any) -> list[Any]:
        values = results_of(result, strings=self.wanted[0].data_type == STRING)
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
    if not config.output:
        raise Internal("model configuration must contain at least one output, none were specified.")
    entries = model_outputs(config)
    for entry in entries:
        if not is_supported(entry.data_type):
            raise Internal(
                f"unsupported datatype {entry.data_type} for output '{entry.name}' for model "
                f"'{config.name}'"
            )
        if entry.data_type == STRING and entry in config.output:
            seen = entry.dims if entry.reshape is None else entry.reshape.shape
            check_strings(entry.name, seen, config, "output")
    positions = output_positions([entry.name for entry in entries])
    return OutputPlan(
        tuple(
            Wanted(entry.name, entry.data_type, position)
            for entry, position in zip(entries, positions, strict=True)
        )
    )


def results_of(result: Any, *, strings: bool) -> Sequence[Any]:
    """The single results in what `forward` returned: one tensor or list of strings, or the members
    of a tuple or of a list of tensors.

    `strings` tells what an empty list is. Raises Internal, in Triton's words, for anything else.
    """
    if isinstance(result, torch.Tensor):
        return (result,)
    if isinstance(result, tuple):
        return result
    if isinstance(result, list) and all(isinstance(member, torch.Tensor) for member in result):
        return [result] if strings and not result else result
    if is_output(result):
        return (result,)
    if isinstance(result, list):
        raise Internal(
            f"{_FAILURE}output must be of type Tensor or List[str], received {_kind_of(result)}"
        )
    raise Internal(
        f"{_FAILURE}output must be of type Tensor, List[str] or Tuple containing one of these two "
        "types. It should not be a List / Dictionary of Tensors or a Scalar"
    )


def is_output(value: Any) -> bool:
    """Whether a single result can be an output: a tensor or a list of strings."""
    if isinstance(value, torch.Tensor):
        return True
    return isinstance(value, list) and all(isinstance(member, str) for member in value)


def _by_key(result: Mapping[Any, Any], wanted: Sequence[Wanted]) -> list[Any]:
    for entry in wanted:
        if entry.name not in result:
            raise InvalidArgument(
                f"The output {entry.name} in the model configuration refers to a key which doesn't "
                f"exist. This model has outputs {', '.join(sorted(map(str, result)))}"
            )
        if not is_output(result[entry.name]):
            raise Internal(
                f"{_FAILURE}output '{entry.name}' must be of type Tensor or List[str], received "
                f"{_kind_of(result[entry.name])}"
            )
    return [result[entry.name] for entry in wanted]


def _output(wanted: Wanted, value: Any) -> Tensor:
    if not is_output(value):
        raise Internal(
            f"{_FAILURE}output at index {wanted.position} must be of type Tensor or List[str], "
            f"received {_kind_of(value)}"
        )
    provided = type_name(value)
    if provided != wanted.data_type:
        raise InvalidArgument(
            f"configuration expects datatype {wanted.data_type} for output '{wanted.name}', model "
            f"provides {provided}"
        )
    tensor = from_torch(wanted.name, value)
    if not tensor.shape:
        raise InvalidArgument(f"output '{wanted.name}' is a scalar which is not supported.")
    return tensor


def _kind_of(value: Any) -> str:
    if isinstance(value, list) and value:
        return f"List[{type(value[0]).__name__}]"
    return type(value).__name__
