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
    `str[]`, `Dict(str, Tensor)`."""

    name: str
    kind: Kind
    type_name: str
    default: Any = REQUIRED

    @property
    def may_be_left_out(self) -> bool:
        """Whether a configuration need not list it. Triton counts tensor arguments even where they
        have a default, and refuses scalar ones, so only scalars with a default qualify."""
        return self.kind in SCALARS and self.default is not REQUIRED


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of `forward` without `self`, and what it returns: a dictionary, or `returned`
    values by position."""

    arguments: tuple[Argument, ...]
    returns_dictionary: bool = False
    returned: int = 1

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
        returned=len(result.elements()) if result.kind() == "TupleType" else 1,
    )


def _argument(argument: Any) -> Argument:
    return Argument(
        name=argument.name,
        kind=_KINDS.get(argument.type.kind(), "other"),
        type_name=argument.type.str(),
        default=argument.default_value if argument.has_default_value() else REQUIRED,
    )
