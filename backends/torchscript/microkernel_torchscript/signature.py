"""What `forward` takes and gives, as plain data."""

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import torch

Kind: TypeAlias = Literal["tensor", "list", "dict", "int", "float", "bool", "other"]

REQUIRED: Final = object()
"""The default of an argument that has none."""

SCALARS: Final = frozenset(("int", "float", "bool"))

_KINDS: dict[str, Kind] = {
    "TensorType": "tensor",
    "ListType": "list",
    "DictType": "dict",
    "IntType": "int",
    "FloatType": "float",
    "BoolType": "bool",
}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of `forward`; `type_name` is spelled as TorchScript prints it: `int`,
    `str[]`, `Dict(str, Tensor)`. An `optional` one may be None, which is its default where it has
    no other; its kind is that of its other values."""

    name: str
    kind: Kind
    type_name: str
    default: Any = REQUIRED
    optional: bool = False

    @property
    def may_be_left_out(self) -> bool:
        """Whether a configuration need not list it. Triton counts tensor arguments even where they
        have a default, and refuses scalar and optional ones, so only scalars with a default and
        optional arguments qualify."""
        return self.optional or (self.kind in SCALARS and self.default is not REQUIRED)


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of `forward` without `self`, and what it returns: a dictionary, or `returned`
    values by position. `writes` says that the model may write to the memory of its inputs."""

    arguments: tuple[Argument, ...]
    returns_dictionary: bool = False
    returned: int = 1
    writes: bool = True

    @property
    def takes_dictionary(self) -> bool:
        """Whether all inputs go into one dictionary."""
        return [argument.kind for argument in self.arguments] == ["dict"]


def signature_of(module: torch.jit.ScriptModule) -> Signature:
    """The signature of a loaded module's `forward`."""
    forward: Any = module.forward
    arguments = list(forward.schema.arguments)
    if arguments and arguments[0].type.kind() == "ClassType":
        del arguments[0]
    result = forward.schema.returns[0].type
    return Signature(
        arguments=tuple(_argument(argument) for argument in arguments),
        returns_dictionary=result.kind() == "DictType",
        returned=_count(result),
        writes=_writes(forward.inlined_graph),
    )


def _argument(argument: Any) -> Argument:
    held, optional = argument.type, argument.type.kind() == "OptionalType"
    if optional:
        held = held.getElementType()
    default = argument.default_value if argument.has_default_value() else REQUIRED
    return Argument(
        name=argument.name,
        kind=_KINDS.get(held.kind(), "other"),
        type_name=argument.type.str(),
        default=None if optional and default is REQUIRED else default,
        optional=optional,
    )


def _count(result: Any) -> int:
    """How many results a type holds, as far as it tells: a list or a dictionary is one."""
    return sum(map(_count, result.elements())) if result.kind() == "TupleType" else 1


def _writes(graph: Any) -> bool:
    """Whether any operation of a graph or of the blocks in it works in place, on an input or on
    something else; a call that the graph does not show is taken to."""
    for node in graph.nodes():
        if "!)" in node.schema() or node.kind() in ("prim::CallMethod", "prim::CallFunction"):
            return True
        if any(_writes(block) for block in node.blocks()):
            return True
    return False
