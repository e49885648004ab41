"""How the tensors of a configuration become those of a `.pt2`, checked against what its file
tells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from microkernel import (
    Internal,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Tensor,
    model_outputs,
    sequence_inputs,
    state_outputs,
)
from microkernel_torchscript.conversion import TORCH_TYPES, type_name
from microkernel_torchscript.exported.leaf_checks import check_input, check_output
from microkernel_torchscript.exported.leaf_names import (
    NotFound,
    alias_map,
    is_keyed,
    leaf_places,
    placed,
)
from microkernel_torchscript.exported.leaves import Leaf, Leaves, Size, shape_fault
from microkernel_torchscript.inputs import Feed, InputPlan, check_any, fed_twice, listed_names
from microkernel_torchscript.outputs import OutputPlan, Wanted
from microkernel_torchscript.sequences import misnamed, state_inputs


@dataclass(frozen=True, slots=True)
class Checked:
    """What a fed tensor has to be before a program may have it."""

    name: str
    dtype: torch.dtype | None
    sizes: tuple[Size, ...] | None


@dataclass(frozen=True, slots=True)
class LeafInputs(InputPlan):
    """Lays the inputs out in flattening order. Compiled programs do not look at what they are
    given, so every call is checked here."""

    checked: tuple[Checked, ...] = ()

    def lay_out(self, values: Mapping[str, Any]) -> Sequence[Any]:
        """See `InputPlan.lay_out`; InvalidArgument for a tensor that the program was not made
        for."""
        bound: dict[str, int] = {}
        for entry in self.checked:
            if entry.name in values:
                _check_value(entry, values[entry.name], bound)
        return InputPlan.lay_out(self, values)


@dataclass(frozen=True, slots=True)
class LeafOutputs(OutputPlan):
    """Reads results that lie in flattening order."""

    instance: str = ""

    def tensors(self, result: Any) -> list[Tensor]:
        """See `OutputPlan.tensors`; another type than configured is told in the words that Triton
        has for packages."""
        for wanted in self.wanted:
            value = result[wanted.position] if wanted.position < len(result) else None
            if isinstance(value, torch.Tensor) and type_name(value) != wanted.data_type:
                raise Internal(
                    f'Inductor model instance "{self.instance}" output tensor "{wanted.name}" has '
                    f"datatype {type_name(value)} but model configuration expects "
                    f"{wanted.data_type}."
                )
        return OutputPlan.tensors(self, result)


def plan_leaf_inputs(config: ModelConfig, leaves: Leaves, *, writes: bool = True) -> LeafInputs:
    """Match the configuration's inputs, controls and states with the arguments of a `.pt2`, which
    `writes` says that it may write to.

    Raises InvalidArgument or Internal, in Triton's words where it has any, where they do not fit.
    """
    places = input_places(config, leaves)
    _check_complete(config, places, leaves)
    for entry in (*config.input, *sequence_inputs(config)):
        check_input(config, entry, leaves[places[entry.name]])
    return LeafInputs(
        feeds=tuple(Feed(name, place, leaves[place].kind) for name, place in places.items()),
        template=tuple(leaf.default for leaf in leaves),
        as_dictionary=False,
        writes=writes,
        checked=tuple(_checked(name, leaves[place]) for name, place in places.items()),
    )


def plan_leaf_outputs(config: ModelConfig, leaves: Leaves) -> LeafOutputs:
    """Match the configuration's outputs, and those of its states, with the results of a `.pt2`.

    Raises InvalidArgument or Internal where they do not fit.
    """
    check_any(config.output, "output")
    places = output_places(config, leaves)
    entries = model_outputs(config)
    for entry in entries:
        check_output(config, entry, leaves[places[entry.name]])
    wanted = tuple(Wanted(e.name, e.data_type, places[e.name]) for e in entries)
    return LeafOutputs(wanted, instance=config.name)


def input_places(config: ModelConfig, leaves: Leaves) -> dict[str, int]:
    """The place of each listed input, batch input, control and state among the arguments."""
    known = alias_map(leaves, "INPUT")
    names = listed_names(config)
    try:
        found = dict(zip(names, leaf_places(names, known), strict=True))
    except NotFound as name:
        _check_count(config, names, leaves)
        raise Internal(
            f'Input "{name}" for model instance "{config.name}" is not found in model input map. '
            f"It has {', '.join(known) or 'none'}."
        ) from None
    return found | _sequence_places(config, sequence_inputs(config), known)


def output_places(config: ModelConfig, leaves: Leaves) -> dict[str, int]:
    """The place of each listed output and state among the results."""
    known = alias_map(leaves, "OUTPUT")
    names = [entry.name for entry in config.output]
    try:
        found = dict(zip(names, leaf_places(names, known, keyed=is_keyed(leaves)), strict=True))
    except NotFound as name:
        raise InvalidArgument(
            f"unable to load model '{config.name}': the output {name} in the model configuration "
            f"refers to an output which doesn't exist. This model has {len(leaves)} outputs: "
            f"{', '.join(known) or 'none'}"
        ) from None
    return found | _sequence_places(config, state_outputs(config), known)


def _sequence_places(
    config: ModelConfig, entries: Sequence[ModelInput | ModelOutput], known: dict[str, int]
) -> dict[str, int]:
    states = state_inputs(config)
    found: dict[str, int] = {}
    for entry in entries:
        place = placed(entry.name, known)
        if place is None:
            state = isinstance(entry, ModelOutput) or entry.name in states
            raise misnamed(config, entry.name, state=state)
        found[entry.name] = place
    return found


def _check_count(config: ModelConfig, names: Sequence[str], leaves: Leaves) -> None:
    given = len(names) + len(sequence_inputs(config))
    expected = sum(leaf.kind != "constant" for leaf in leaves)
    if given != expected:
        raise Internal(
            f'Failed to load model "{config.name}" configuration expects {given} inputs, but model '
            f"expects {expected} inputs."
        )


def _check_complete(config: ModelConfig, places: Mapping[str, int], leaves: Leaves) -> None:
    """Every argument has exactly one input."""
    listed = [name for name in places if name not in {e.name for e in sequence_inputs(config)}]
    _check_count(config, listed, leaves)
    check_any(places, "input")
    feeding: dict[int, str] = {}
    for name, place in places.items():
        if feeding.setdefault(place, name) != name:
            raise fed_twice(config, name, place, feeding[place])


def _checked(name: str, leaf: Leaf) -> Checked:
    dtype = TORCH_TYPES.get(leaf.data_type) if leaf.data_type else None
    return Checked(name, dtype, leaf.sizes)


def _check_value(entry: Checked, value: Any, bound: dict[str, int]) -> None:
    if not isinstance(value, torch.Tensor):
        return
    if entry.dtype is not None and value.dtype is not entry.dtype:
        raise InvalidArgument(
            f"input '{entry.name}' is of type {value.dtype}, the model takes {entry.dtype}"
        )
    fault = shape_fault(entry.sizes, value.shape, bound) if entry.sizes is not None else ""
    if fault:
        raise InvalidArgument(f"input '{entry.name}' {fault}")
