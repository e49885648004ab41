"""Inputs to try a model with: from its configuration, from a traced file, from its first layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from microkernel import ModelConfig, ModelInput, element_count, inner_dims, model_inputs
from microkernel_torchscript.conversion import CONFIG_NAMES, STRING, TORCH_TYPES, is_supported
from microkernel_torchscript.signature import SCALARS, Argument, Signature

_FREE_SIZES = (16, 32, 64, 224, 1, 24, 48, 128)
"""Sizes to try where a configuration says -1."""

_MOST_ELEMENTS = 1 << 22
"""What is made up is smaller than this: a call cannot be ended before its time."""

_IMAGE_SIZES = (224, 64, 256, 32, 28, 24, 48, 96, 112, 128, 160, 299, 384)
"""Sides to try where the layer in front takes pictures; the usual ones first."""


class CannotTell(Exception):
    """The files do not tell what completing needs; the text says what, in the form `the type of
    'x', because ...`."""


@dataclass(frozen=True, slots=True)
class Example:
    """One input to try: its whole shape, batch dimension included, and the axes whose size may be
    varied. `kind` is that of the argument it feeds."""

    name: str
    data_type: str
    shape: tuple[int, ...]
    axes: frozenset[int] = frozenset()
    kind: str = "tensor"

    @property
    def nbytes(self) -> int:
        """About how much memory a value takes."""
        count = torch.Size(self.shape).numel()
        return count * (64 if self.data_type == STRING else TORCH_TYPES[self.data_type].itemsize)

    def grown(self, axis: int, size: int) -> "Example":
        """The same with another size of one axis."""
        return replace(self, shape=(*self.shape[:axis], size, *self.shape[axis + 1 :]))

    def value(self, *, other: bool) -> Any:
        """A value of this type and shape: zeros, or with `other` values that are not all equal to
        zero."""
        if self.kind in SCALARS:
            return {"int": int, "float": float, "bool": bool}[self.kind](1)
        if self.data_type == STRING:
            return ["other" if other else ""] * self.shape[0]
        dtype = TORCH_TYPES[self.data_type]
        if not other:
            return torch.zeros(self.shape, dtype=dtype)
        if not dtype.is_floating_point:
            return torch.ones(self.shape, dtype=dtype)
        count = torch.Size(self.shape).numel()
        return torch.linspace(-1, 1, count).to(dtype).view(self.shape)


def free_example(name: str, data_type: str, shape: tuple[int, ...]) -> Example:
    """A tensor each of whose sizes may be varied."""
    return Example(name, data_type, shape, frozenset(range(len(shape))))


def words_example(name: str) -> Example:
    """A list of strings of any length."""
    return Example(name, STRING, (1,), frozenset((0,)), "list")


def needed_arguments(signature: Signature) -> list[Argument]:
    """The arguments that inputs must feed. Raises CannotTell where there are none."""
    needed = [argument for argument in signature.arguments if not argument.may_be_left_out]
    if not needed:
        raise CannotTell("the inputs, because 'forward' has no argument that needs one")
    return needed


def is_ragged(config: ModelConfig) -> bool:
    """Whether requests are laid into batches in a way that cannot be made up."""
    return bool(config.batch_input) or any(entry.allow_ragged_batch for entry in config.input)


def configured_examples(
    config: ModelConfig, kinds: Mapping[str, str]
) -> Iterator[tuple[Example, ...]]:
    """Sets of examples for the inputs that a configuration lists, and for its controls and states,
    one per size to try for its -1s. `kinds` are the kinds of the arguments by input name."""
    entries = model_inputs(config)
    shapes = [inner_dims(entry) for entry in entries]
    free = any(-1 in shape for shape in shapes)
    # Before several free sizes stands the number of rows: 224 rows of 224 by 224 are no example.
    rows = not config.max_batch_size and any(s.count(-1) > 1 and s[0] == -1 for s in shapes)
    for first in (1, 0) if rows else (0,):
        for size in _FREE_SIZES if free else (1,):
            made = tuple(
                _configured(config, e, kinds[e.name], (first or size, size)) for e in entries
            )
            if first or not rows or all(element_count(e.shape) < _MOST_ELEMENTS for e in made):
                yield made


def _configured(
    config: ModelConfig, entry: ModelInput, kind: str, sizes: tuple[int, int]
) -> Example:
    """An example for an input; `sizes` are those of a free first dimension and of the others."""
    batch = (1,) if config.max_batch_size > 0 else ()
    shape = batch + inner_dims(entry)
    free = {axis for axis, dim in enumerate(shape) if dim < 0} | set(range(len(batch)))
    return Example(
        name=entry.name,
        data_type=entry.data_type,
        shape=tuple(sizes[axis > 0] if dim < 0 else dim for axis, dim in enumerate(shape)),
        axes=frozenset() if kind in SCALARS else frozenset(free),
        kind=kind,
    )


def discovered_examples(
    module: torch.jit.ScriptModule, signature: Signature
) -> Iterator[tuple[Example, ...]]:
    """Sets of examples for a model whose configuration lists no inputs, the likeliest first.

    A traced file loaded with its shapes remembers the inputs it was traced with. Without them the
    first layer with weights hints at the shape of a single tensor. Raises CannotTell.
    """
    needed = needed_arguments(signature)
    forward: Any = module.forward
    types = [value.type() for value in forward.graph.inputs()][-len(signature.arguments) :]
    traced = [
        _traced(argument, graph_type)
        for argument, graph_type in zip(signature.arguments, types, strict=True)
        if argument in needed
    ]
    known = tuple(example for example in traced if example is not None)
    if len(known) == len(needed):
        yield known
    elif [argument.kind for argument in needed] == ["tensor"]:
        yield from _hinted(module, needed[0].name)
    else:
        raise CannotTell(_why_not(needed))


def _traced(argument: Argument, graph_type: Any) -> Example | None:
    if argument.kind == "list" and argument.type_name == "str[]":
        return words_example(argument.name)
    if argument.kind != "tensor" or not graph_type.sizes() or graph_type.dtype() is None:
        return None
    data_type = CONFIG_NAMES.get(graph_type.dtype(), str(graph_type.dtype()))
    if not is_supported(data_type):
        raise CannotTell(f"a type for '{argument.name}', because {data_type} cannot be served")
    return free_example(argument.name, data_type, tuple(graph_type.sizes()))


def _why_not(needed: Sequence[Argument]) -> str:
    if any(argument.kind == "dict" for argument in needed):
        return "the names of the inputs, because the model takes them as a dictionary"
    names = ", ".join(f"'{argument.name}'" for argument in needed)
    return (
        f"the types and shapes of {names}, because a scripted model carries neither (a traced one "
        "does)"
    )


def _hinted(module: torch.jit.ScriptModule, name: str) -> Iterator[tuple[Example, ...]]:
    for data_type, shape in first_layer(module):
        yield (free_example(name, data_type, shape),)


def first_layer(module: torch.nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Types and shapes that the first layer with weights could take, batch dimension first."""
    for _, layer in module.named_modules():
        weight = dict(layer.named_parameters(recurse=False)).get("weight")
        if weight is None or weight.dtype not in CONFIG_NAMES:
            continue
        return _shapes_for(_class_of(layer), CONFIG_NAMES[weight.dtype], weight.shape)
    return []


def _class_of(layer: torch.nn.Module) -> str:
    """The class of torch that a layer is of, or is derived from."""
    if isinstance(layer, torch.jit.ScriptModule):
        return str(layer.original_name)
    known = (kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn."))
    return next((kind.__name__ for kind in known), "")


def _shapes_for(
    layer: str, data_type: str, weight: Sequence[int]
) -> list[tuple[str, tuple[int, ...]]]:
    """What a layer takes, told by its class, and the type and shape of its weight."""
    if layer == "Linear":
        return [(data_type, (1, weight[-1]))]
    if layer == "Conv2d":
        return [(data_type, (1, weight[1], side, side)) for side in _IMAGE_SIZES]
    if layer == "Embedding":
        return [("TYPE_INT64", (1, 16))]
    return []
