"""Filling in the inputs and outputs of a configuration from a Python module.

The arguments of `forward` tell the names, annotations tell strings and numbers, and the first layer
hints at the type and shape of tensors. Trial runs tell the rest, as for TorchScript.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from microkernel import ModelConfig
from microkernel_torchscript.kinds import module_file
from microkernel_torchscript.module.inputs import plan_module_inputs
from microkernel_torchscript.module.signature import module_signature
from microkernel_torchscript.module.source import ModuleFiles, check_keywords
from microkernel_torchscript.probing.completion import Subject, completed
from microkernel_torchscript.probing.examples import (
    CannotTell,
    Example,
    first_layer,
    free_example,
    needed_arguments,
    words_example,
)
from microkernel_torchscript.probing.skeleton import NUMBER_TYPES
from microkernel_torchscript.signature import SCALARS, Argument, Signature

_TOKENS = "TYPE_INT64"


def complete_module(config: ModelConfig, files: Path) -> ModelConfig:
    """The configuration with inputs and outputs; a side that it lists stays as it is.

    Raises InvalidArgument, with a configuration to fill in, for what the file does not tell, and
    the errors of loading.
    """
    with torch.inference_mode():
        found = ModuleFiles(config, files, mapped=True)
        try:
            return _completed(config, module_file(config, files), found.module())
        finally:
            found.close()


def module_examples(module: nn.Module, signature: Signature) -> Iterator[tuple[Example, ...]]:
    """Sets of inputs to try, the likeliest first, one for every argument that needs one.

    Raises CannotTell where the arguments do not tell what they are.
    """
    needed = needed_arguments(signature)
    if any(argument.kind == "dict" for argument in needed):
        raise CannotTell(
            "the names of the inputs, because the model takes them as a dictionary"
            if len(needed) == 1
            else "the inputs, because one of several arguments is a dictionary"
        )
    tensors = [argument for argument in needed if argument.kind == "tensor"]
    for data_type, shape in _guesses(module, tensors):
        yield tuple(_example(argument, data_type, shape) for argument in needed)


def _completed(config: ModelConfig, path: Path, module: nn.Module) -> ModelConfig:
    check_keywords(config.name, module.forward)
    signature = module_signature(module.forward)
    subject = Subject(
        forward=module,
        signature=signature or Signature(()),
        plan=lambda listed: plan_module_inputs(listed, signature),
        guesses=lambda: module_examples(module, signature or Signature(())),
    )
    return completed(config, path, subject)


def _guesses(
    module: nn.Module, tensors: Sequence[Argument]
) -> Sequence[tuple[str, tuple[int, ...]]]:
    """Types and shapes that all tensors may have. Several have the same only where they are tokens
    and what goes with each."""
    if not tensors:
        return [("", ())]
    shapes = first_layer(module)
    if len(tensors) > 1 and any(data_type != _TOKENS for data_type, _ in shapes):
        names = ", ".join(f"'{argument.name}'" for argument in tensors)
        raise CannotTell(f"the types and shapes of {names}, because 'forward' names neither")
    return shapes


def _example(argument: Argument, data_type: str, shape: tuple[int, ...]) -> Example:
    if argument.kind in SCALARS:
        return Example(argument.name, NUMBER_TYPES[argument.kind], (1,), kind=argument.kind)
    if argument.kind == "list":
        return words_example(argument.name)
    return free_example(argument.name, data_type, shape)
