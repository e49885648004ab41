"""What an exported program takes and gives, from its graph."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    SymIntArgument,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from microkernel_torchscript.conversion import type_name
from microkernel_torchscript.exported.call_spec import Malformed, input_names, output_names
from microkernel_torchscript.exported.leaves import Leaf, Size

# torch writes 2 for sizes that may as well be 0 or 1, because it compiles those apart.
_GENERAL = 2


def program_inputs(program: ExportedProgram) -> tuple[Leaf, ...]:
    """The arguments, each called as `forward` calls it, or by its path."""
    values = _values(program)
    specs = program.graph_signature.input_specs
    arguments = [spec.arg for spec in specs if spec.kind is InputKind.USER_INPUT]
    paths = _paths(input_names, program.call_spec.in_spec, len(arguments))
    own = _forward_names(program)
    return tuple(
        _leaf(argument, (*_own(names, own), *names, *_told(argument)), values, program)
        for argument, names in zip(arguments, paths, strict=True)
    )


def program_outputs(program: ExportedProgram) -> tuple[Leaf, ...]:
    """The results, each called by its key or its path."""
    values = _values(program)
    specs = program.graph_signature.output_specs
    results = [spec.arg for spec in specs if spec.kind is OutputKind.USER_OUTPUT]
    paths = _paths(output_names, program.call_spec.out_spec, len(results))
    return tuple(
        _leaf(result, names, values, program) for result, names in zip(results, paths, strict=True)
    )


def program_devices(program: ExportedProgram) -> list[torch.device | None]:
    """The device on which each argument is expected, None for what is no tensor."""
    values = _values(program)
    specs = program.graph_signature.input_specs
    found = [values.get(s.arg.name) for s in specs if s.kind is InputKind.USER_INPUT]
    return [value.device if isinstance(value, torch.Tensor) else None for value in found]


def place_weights(program: ExportedProgram) -> None:
    """Put parameters, buffers and constants where the program expects them."""
    values = _values(program)
    for spec in program.graph_signature.input_specs:
        expected = values.get(spec.arg.name)
        for held in (program.state_dict, program.constants):
            own = held.get(spec.target or "")
            if isinstance(expected, torch.Tensor) and isinstance(own, torch.Tensor):
                held[spec.target or ""] = _on(own, expected.device)


def _on(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if tensor.device == device:
        return tensor
    moved = tensor.to(device)
    return torch.nn.Parameter(moved, False) if isinstance(tensor, torch.nn.Parameter) else moved


def _values(program: ExportedProgram) -> dict[str, Any]:
    return {node.name: node.meta.get("val") for node in program.graph.nodes}


def _paths(read: Any, spec: Any, count: int) -> list[tuple[str, ...]]:
    """The names by place; none where the nesting has types of the exporter's own."""
    try:
        found: list[tuple[str, ...]] = read(pytree.treespec_dumps(spec))
    except (Malformed, NotImplementedError, ValueError, TypeError):
        return [()] * count
    return found if len(found) == count else [()] * count


def _forward_names(program: ExportedProgram) -> dict[str, str]:
    """The names of positional arguments by path; the graph spells some of them otherwise."""
    signature = program.module_call_graph[0].signature
    names = getattr(signature, "forward_arg_names", None) or ()
    return {f"ARGS[{place}]": name for place, name in enumerate(names)}


def _own(names: tuple[str, ...], own: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(own[name] for name in names if name in own)


def _told(argument: Any) -> tuple[str, ...]:
    return () if isinstance(argument, ConstantArgument) else (argument.name,)


def _leaf(
    argument: Any, names: tuple[str, ...], values: Mapping[str, Any], program: ExportedProgram
) -> Leaf:
    names = tuple(dict.fromkeys(names))
    if isinstance(argument, SymIntArgument):
        return Leaf(names, "TYPE_INT64", (), kind="int")
    value = values.get(argument.name) if isinstance(argument, TensorArgument) else None
    if not isinstance(value, torch.Tensor):
        return Leaf(names, kind="constant", default=getattr(argument, "value", None))
    return Leaf(names, type_name(value), tuple(_sizes(value, program)))


def _sizes(value: torch.Tensor, program: ExportedProgram) -> Iterator[Size]:
    for size in cast("tuple[Any, ...]", value.shape):  # symbols among them
        if isinstance(size, int):
            yield Size(size, size)
        else:
            yield _size(size.node.expr, program.range_constraints)


def _size(expression: Any, ranges: Mapping[Any, Any]) -> Size:
    """The range of a symbol, or of a formula with symbols in it."""
    from torch.utils._sympy.value_ranges import bound_sympy  # noqa: PLC0415 - comes with sympy

    known = bound_sympy(expression, dict(ranges))
    low = int(known.lower) if known.lower.is_Integer else 0
    high = int(known.upper) if known.upper.is_Integer else None
    return Size(0 if low <= _GENERAL else low, high, *_form(expression))


def _form(expression: Any) -> tuple[str, int, int]:
    """A size as a symbol, how many times that and what is added; no symbol for other formulas."""
    symbols = list(expression.free_symbols)
    if len(symbols) != 1:
        return "", 1, 0
    times = expression.coeff(symbols[0])
    plus = expression - times * symbols[0]
    if not (times.is_Integer and plus.is_Integer and times > 0):
        return "", 1, 0
    return str(symbols[0]), int(times), int(plus)
