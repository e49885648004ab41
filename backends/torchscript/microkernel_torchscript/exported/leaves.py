"""The tensors that a `.pt2` takes and gives, one by one, as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from microkernel_torchscript.signature import REQUIRED

LeafKind: TypeAlias = Literal["tensor", "int", "constant"]


@dataclass(frozen=True, slots=True)
class Size:
    """What one dimension may be: `low` to `high`, both included; without `high` there is no end.
    With a `symbol` it is `times` that and `plus` more, and a symbol has one value in every call."""

    low: int = 0
    high: int | None = None
    symbol: str = ""
    times: int = 1
    plus: int = 0

    @property
    def fixed(self) -> bool:
        """Whether there is only one such size."""
        return self.low == self.high

    @property
    def form(self) -> tuple[str, int, int]:
        """Sizes with a symbol that are of the same form are equal in every call."""
        return self.symbol, self.times, self.plus

    @property
    def dim(self) -> int:
        """As a configuration writes it: -1 where it varies."""
        return self.low if self.fixed else -1

    def admits(self, size: int) -> bool:
        """Whether a dimension may be that large."""
        return self.low <= size and (self.high is None or size <= self.high)

    def __str__(self) -> str:
        if self.fixed:
            return str(self.low)
        if self.high is None:
            return f"{self.low} or more" if self.low else "any"
        return f"{self.low} to {self.high}"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor or number in the nested arguments or results of a program.

    `names` are what a configuration may call it besides its ordinal, the best first. `data_type`
    and `sizes` are None where the file does not tell them. A `constant` was fixed when the program
    was made: as an argument `default` is its value.
    """

    names: tuple[str, ...] = ()
    data_type: str | None = None
    sizes: tuple[Size, ...] | None = None
    kind: LeafKind = "tensor"
    default: Any = REQUIRED


Leaves: TypeAlias = Sequence[Leaf]
"""Leaves in flattening order: positional arguments, then keyword arguments, depth first."""


def exact(*sizes: int) -> tuple[Size, ...]:
    """Dimensions that do not vary."""
    return tuple(Size(size, size) for size in sizes)


def shape_text(sizes: Sequence[Size]) -> str:
    """Dimensions as a message shows them: `[1 to 32, 4]`."""
    return f"[{', '.join(map(str, sizes))}]"


def shape_fault(sizes: Sequence[Size], shape: Sequence[int], bound: dict[str, int]) -> str:
    """What is wrong with a tensor's shape, "" where nothing is. `bound` holds the sizes of the
    symbols that tensors of the same call have already given, and gets those of this one."""
    if len(shape) != len(sizes):
        return f"has shape {list(shape)}, the model takes {shape_text(sizes)}"
    for size, given in zip(sizes, shape, strict=True):
        if not size.admits(given):
            return f"has shape {list(shape)}, the model takes {shape_text(sizes)}"
        if size.symbol:
            unit, rest = divmod(given - size.plus, size.times)
            if rest or unit < 0 or bound.setdefault(size.symbol, unit) != unit:
                return _unrelated(size, shape, given, bound)
    return ""


def _unrelated(size: Size, shape: Sequence[int], given: int, bound: Mapping[str, int]) -> str:
    text = f"has shape {list(shape)}"
    if size.symbol not in bound:
        more = f" and {size.plus} more" if size.plus else ""
        return f"{text}, where {given} is not a multiple of {size.times}{more}"
    wanted = bound[size.symbol] * size.times + size.plus
    if size.times == 1 and not size.plus:
        return (
            f"{text}, where another input has {wanted} in place of {given}: the model takes them "
            "in one size"
        )
    return f"{text}, where another input asks for {wanted} in place of {given}"
