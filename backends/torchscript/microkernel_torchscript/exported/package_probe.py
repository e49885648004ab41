"""Running a package on inputs that it was compiled for, to see what it gives.

Its machine code does not look at what it is given, so nothing is tried that it may not take: all
sizes that vary get the same value, which holds whatever relation of equality there is among them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from microkernel_torchscript.conversion import CONFIG_NAMES, TORCH_TYPES
from microkernel_torchscript.exported.leaves import Leaf, Leaves, Size

Pair: TypeAlias = tuple[tuple[Leaf, ...], tuple[Leaf, ...]]

_SYMBOL = "n"


class CannotProbe(Exception):
    """The package does not tell enough to be run; the text says what is missing, in the form `the
    inputs, because ...`."""


def probed(run: Callable[..., Sequence[Any]], inputs: Leaves, outputs: Leaves) -> Pair:
    """Arguments and results with types and sizes. Raises CannotProbe."""
    varying = _varying(inputs)
    smaller = _run(run, inputs, varying.low)
    larger = smaller if varying.fixed else _run(run, inputs, varying.low + 1)
    if len(smaller) != len(outputs):
        raise CannotProbe(f"the outputs, because it gave {len(smaller)} of {len(outputs)}")
    named = tuple(replace(leaf, sizes=_renamed(leaf.sizes or (), varying)) for leaf in inputs)
    pairs = zip(outputs, smaller, larger, strict=True)
    return named, tuple(_told(leaf, one, other, varying) for leaf, one, other in pairs)


def check_on_host(device: str) -> None:
    """Raises CannotProbe for machine code that takes its inputs on another device than the CPU."""
    if device not in ("", "cpu"):
        raise CannotProbe(f"the outputs, because it was compiled for {device}")


def _varying(inputs: Leaves) -> Size:
    """The range of the sizes that vary, two of which will be tried; a fixed size where none does.

    With several ranges one size may be a multiple of another, so that nothing is safe to try.
    """
    for place, leaf in enumerate(inputs):
        if leaf.sizes is None or leaf.data_type not in TORCH_TYPES:
            raise CannotProbe(
                f"the type and the shape of argument {place}, because the source of its code is "
                "not in it"
            )
    sizes = {size for leaf in inputs for size in leaf.sizes or () if not size.fixed}
    if not sizes:
        return Size(1, 1)
    lows = {size.low for size in sizes}
    highs = [size.high for size in sizes if size.high is not None]
    # 1 is a size that compilers treat apart, so that it may tell less.
    low = max(2, *lows)
    if len(lows) > 1 or (highs and min(highs) <= low):
        raise CannotProbe(
            "the outputs, because its sizes vary in different ways and it cannot be tried safely"
        )
    return Size(low, min(highs) if highs else None, _SYMBOL)


def _run(run: Callable[..., Sequence[Any]], inputs: Leaves, size: int) -> list[torch.Tensor]:
    made = [
        torch.zeros(
            [entry.low if entry.fixed else size for entry in leaf.sizes or ()],
            dtype=TORCH_TYPES[leaf.data_type or ""],
        )
        for leaf in inputs
    ]
    try:
        return list(run(*made))
    except Exception as error:  # noqa: BLE001 - a model refuses an input by raising what it likes
        raise CannotProbe(f"the outputs, because a trial run failed: {error}") from None


def _renamed(sizes: Sequence[Size], varying: Size) -> tuple[Size, ...]:
    return tuple(s if s.fixed else Size(s.low, s.high, varying.symbol) for s in sizes)


def _told(leaf: Leaf, one: torch.Tensor, other: torch.Tensor, varying: Size) -> Leaf:
    if one.dim() != other.dim():
        raise CannotProbe("the outputs, because the number of their dimensions varies")
    sizes = tuple(
        Size(a, a) if a == b else Size(0, None, varying.symbol if a == varying.low else "")
        for a, b in zip(one.shape, other.shape, strict=True)
    )
    return replace(leaf, data_type=CONFIG_NAMES.get(one.dtype, str(one.dtype)), sizes=sizes)
