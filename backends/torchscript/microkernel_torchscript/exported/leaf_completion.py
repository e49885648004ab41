"""Filling in the inputs and outputs of a configuration from what a `.pt2` tells of its tensors."""

from collections.abc import Sequence
from dataclasses import replace

from microkernel import ModelConfig, ModelInput, ModelOutput, sequence_inputs, state_outputs
from microkernel_torchscript.batching import (
    Written,
    cannot_batch,
    shown_to_clients,
    suggest_batching,
)
from microkernel_torchscript.exported.leaf_checks import batch_limit, check_batch
from microkernel_torchscript.exported.leaf_names import alias_map, placed
from microkernel_torchscript.exported.leaves import Leaf, Leaves, Size
from microkernel_torchscript.naming import index_of


def complete_leaves(config: ModelConfig, inputs: Leaves, outputs: Leaves) -> ModelConfig:
    """The configuration with inputs and outputs; a side that it lists stays as it is.

    Inputs are called as the program calls them; outputs by the key where the result is a
    dictionary, else `OUTPUT__0`, `OUTPUT__1` and so on. Every leaf that is no constant has a type
    and sizes. Raises InvalidArgument where the program does not batch and `max_batch_size` says
    that it does.
    """
    batching = config.max_batch_size > 0
    if batching:
        _check_batching(config, inputs, outputs)
    elif batches(inputs, outputs):
        suggest_batching(config, batch_limit(inputs)[0])
    taken = _taken(sequence_inputs(config), alias_map(inputs, "INPUT"))
    given = _taken(state_outputs(config), alias_map(outputs, "OUTPUT"))
    return replace(
        config,
        input=config.input
        or tuple(
            ModelInput(name, leaf.data_type or "", dims=dims, reshape=reshape)
            for place, name, leaf in _named(inputs, input_labels(inputs))
            if place not in taken
            for dims, reshape in (_dims(leaf, batching),)
        ),
        output=config.output
        or tuple(
            ModelOutput(name, leaf.data_type or "", dims=dims, reshape=reshape)
            for place, name, leaf in _named(outputs, output_labels(outputs))
            if place not in given and leaf.sizes
            for dims, reshape in (_dims(leaf, batching),)
        ),
    )


def input_labels(leaves: Leaves) -> list[str]:
    """What each argument is called in a configuration made up for it."""
    known = alias_map(leaves, "INPUT")
    return [
        next((n for n in leaf.names if known.get(n) == place), f"INPUT__{place}")
        for place, leaf in enumerate(leaves)
    ]


def output_labels(leaves: Leaves) -> list[str]:
    """What each result is called in a configuration made up for it: by the keys that lead to
    it, if there are such for all and no two are the same."""
    keys = [leaf.names[0] if leaf.names else "" for leaf in leaves]
    plain = all(key and not key.startswith("RESULT") and index_of(key) is None for key in keys)
    apart = len(set(keys)) == len(keys)
    return keys if plain and apart else [f"OUTPUT__{place}" for place in range(len(leaves))]


def batches(inputs: Leaves, outputs: Leaves) -> bool:
    """Whether the first dimension of all tensors is one and the same size, which varies."""
    leaves = [leaf for leaf in (*inputs, *outputs) if leaf.kind != "constant"]
    first = [leaf.sizes[0] if leaf.sizes else Size(1, 1) for leaf in leaves]
    return bool(first and first[0].symbol) and all(
        size.form == (first[0].symbol, 1, 0) and size.admits(1) for size in first
    )


def _named(leaves: Leaves, names: Sequence[str]) -> list[tuple[int, str, Leaf]]:
    return [
        (place, name, leaf)
        for place, (name, leaf) in enumerate(zip(names, leaves, strict=True))
        if leaf.kind != "constant"
    ]


def _taken(entries: Sequence[ModelInput | ModelOutput], known: dict[str, int]) -> set[int | None]:
    """The places of the tensors that the sequence batcher makes or keeps."""
    return {placed(entry.name, known) for entry in entries}


def _check_batching(config: ModelConfig, inputs: Leaves, outputs: Leaves) -> None:
    if not batches(inputs, outputs):
        raise cannot_batch(config.name)
    for name, leaf in zip(input_labels(inputs), inputs, strict=True):
        if leaf.kind != "constant" and leaf.sizes:
            check_batch(config, name, leaf.sizes[0], "input")


def _dims(leaf: Leaf, batching: bool) -> Written:
    """A shape as the configuration writes it; what has none of its own is sent as one element."""
    if leaf.kind == "int":
        return (1,), None
    return shown_to_clients(tuple(size.dim for size in leaf.sizes or ())[1 if batching else 0 :])
