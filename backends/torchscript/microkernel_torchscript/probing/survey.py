"""What a model gives, and which sizes are free, told by running it on small variations of one
example."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from microkernel import MicrokernelError
from microkernel_torchscript.conversion import CONFIG_NAMES, STRING, unreadable
from microkernel_torchscript.failures import first_line
from microkernel_torchscript.probing.examples import CannotTell, Example
from microkernel_torchscript.results import flatten, is_output

Examples: TypeAlias = tuple[Example, ...]
Call: TypeAlias = Callable[[Mapping[str, Any]], Any]
"""Runs the model on one value per input name."""

Found: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape by output name."""

Axis: TypeAlias = tuple[str, int]
"""A tensor's name and one of its axes."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The shapes of one run, -1 where a size varies. `batches` tells whether the first dimension of
    everything grows together, so that requests may be laid one after the other."""

    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]
    batches: bool


def survey(call: Call, examples: Examples) -> Survey:
    """Run the model on the examples and on variations of them.

    Outputs are called by the keys of a dictionary and by the fields of a NamedTuple, else
    `OUTPUT__0` and so on, in flattening order.

    Axes of the same place and size in several inputs grow together, since they usually stand for
    one thing. An axis that cannot grow by one may still double. Raises CannotTell where the
    examples themselves do not run, or the number of dimensions of an output is not constant.
    """
    try:
        base = _run(call, examples)
    except Exception as error:  # noqa: BLE001 - a model refuses an input by raising what it likes
        raise CannotTell(f"the outputs, because a trial run failed: {_said(error)}") from None
    free: set[Axis] = set()
    batches = False
    for axis, names in _groups(examples):
        size, grown = _grow(call, examples, axis, names)
        if grown is None:
            continue
        free |= {(name, axis) for name in names} | _varied(base, grown)
        if axis == 0 and len(names) == _tensors(examples):
            batches = all(shape[0] == size for _, shape in grown.values())
    free |= _varied(base, _attempt(call, examples, other=True) or base)
    free |= {(name, axis) for name, (_, s) in base.items() for axis, n in enumerate(s) if not n}
    return Survey(
        inputs={e.name: _open(e.name, e.shape, free) for e in examples},
        outputs={name: (kind, _open(name, s, free)) for name, (kind, s) in base.items()},
        batches=batches,
    )


def _tensors(examples: Examples) -> int:
    return sum(example.kind in ("tensor", "list") for example in examples)


def _groups(examples: Examples) -> Iterator[tuple[int, list[str]]]:
    """The axes that vary together: an axis and the inputs that have it in that size."""
    places = {(axis, e.shape[axis]) for e in examples for axis in e.axes}
    for axis, size in sorted(places):
        yield (
            axis,
            [e.name for e in examples if axis in e.axes and e.shape[axis] == size],
        )


def _grow(
    call: Call, examples: Examples, axis: int, names: Sequence[str]
) -> tuple[int, Found | None]:
    """What the model gives with an axis grown, and to which size; None where it refuses."""
    size = next(e.shape[axis] for e in examples if e.name in names)
    for larger in dict.fromkeys((size + 1, size * 2)):
        grown = tuple(e.grown(axis, larger) if e.name in names else e for e in examples)
        found = _attempt(call, grown)
        if found is not None:
            return larger, found
    return size, None


def _attempt(call: Call, examples: Examples, *, other: bool = False) -> Found | None:
    try:
        return _run(call, examples, other=other)
    except Exception:  # noqa: BLE001 - a model refuses an input by raising what it likes
        return None


def _run(call: Call, examples: Examples, *, other: bool = False) -> Found:
    result = call({example.name: example.value(other=other) for example in examples})
    return {name: _described(value) for name, value in _named(result) if _servable(value)}


def _named(result: Any) -> list[tuple[str, Any]]:
    found = flatten(result)
    if found.named:
        return list(zip(found.names, found.values, strict=True))
    return [(f"OUTPUT__{i}", value) for i, value in enumerate(found.values)]


def _servable(value: Any) -> bool:
    if not is_output(value):
        return False
    if not isinstance(value, torch.Tensor):
        return True
    return value.dtype in CONFIG_NAMES and not unreadable(value) and value.dim() > 0


def _described(value: Any) -> tuple[str, tuple[int, ...]]:
    if not isinstance(value, torch.Tensor):
        return STRING, (len(value),)
    return CONFIG_NAMES[value.dtype], tuple(value.shape)


def _varied(base: Found, changed: Found) -> set[Axis]:
    """The axes of outputs whose size differs between two runs."""
    varied: set[Axis] = set()
    for name, (kind, shape) in base.items():
        other_kind, other_shape = changed.get(name, ("", ()))
        if kind != other_kind or len(shape) != len(other_shape):
            raise CannotTell(f"the shape of '{name}', because it has no fixed number of dimensions")
        pairs = enumerate(zip(shape, other_shape, strict=True))
        varied |= {(name, axis) for axis, (size, other) in pairs if size != other}
    return varied


def _open(name: str, shape: Sequence[int], free: set[Axis]) -> tuple[int, ...]:
    return tuple(-1 if (name, axis) in free else size for axis, size in enumerate(shape))


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, MicrokernelError) else first_line(error)
