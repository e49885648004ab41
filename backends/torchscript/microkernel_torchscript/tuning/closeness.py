"""Whether two results of a model are the same but for rounding."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_TOLERANCES: Mapping[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-9, 1e-10),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (1e-2, 1e-3),
    torch.bfloat16: (2e-2, 1e-2),
}
"""Relative and absolute tolerance by data type; values of other types must be equal."""

TOLERANCE = "; ".join(
    f"{str(dtype).removeprefix('torch.')}: rtol {rtol:g}, atol {atol:g}"
    for dtype, (rtol, atol) in _TOLERANCES.items()
)
"""The tolerances as a person reads them."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two results differ: `fault` is "" where they are close, else what is wrong; the largest
    difference of two numbers in them."""

    fault: str = ""
    difference: float = 0.0


def compare(expected: Any, actual: Any) -> Comparison:
    """Hold a result against the one that is right: the same structure, data types and shapes, and
    values within the tolerance of their type."""
    before, after = list(_leaves(expected)), list(_leaves(actual))
    if [where for where, _ in before] != [where for where, _ in after]:
        return Comparison("results of another structure")
    found = [_leaf(where, a, b) for (where, a), (_, b) in zip(before, after, strict=True)]
    fault = next((one.fault for one in found if one.fault), "")
    return Comparison(fault, max((one.difference for one in found), default=0.0))


def rows_of(result: Any, index: int) -> Any:
    """The part of a batch's result that belongs to one item, as a batch of one: a row of every
    tensor, an element of a list of strings."""
    if isinstance(result, torch.Tensor):
        return result[index : index + 1]
    if isinstance(result, dict):
        return {name: rows_of(value, index) for name, value in result.items()}
    if isinstance(result, list) and result and isinstance(result[0], str):
        return result[index : index + 1]
    if isinstance(result, list | tuple):
        return tuple(rows_of(value, index) for value in result)
    return result


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name in value:
            yield from _leaves(value[name], f"{where}[{name!r}]")
    elif isinstance(value, list | tuple):
        for index, element in enumerate(value):
            yield from _leaves(element, f"{where}[{index}]")
    else:
        yield where, value


def _leaf(where: str, expected: Any, actual: Any) -> Comparison:
    if not isinstance(expected, torch.Tensor) or not isinstance(actual, torch.Tensor):
        return Comparison("" if expected == actual else f"another value{_at(where)}")
    if (expected.dtype, expected.shape) != (actual.dtype, actual.shape):
        return Comparison(
            f"{actual.dtype} of shape {list(actual.shape)} instead of {expected.dtype} of shape "
            f"{list(expected.shape)}{_at(where)}"
        )
    return _tensor(where, expected, actual)


def _tensor(where: str, expected: torch.Tensor, actual: torch.Tensor) -> Comparison:
    if expected.dtype not in _TOLERANCES:
        same = torch.equal(expected, actual)
        return Comparison("" if same else f"other values of {expected.dtype}{_at(where)}")
    rtol, atol = _TOLERANCES[expected.dtype]
    close = torch.allclose(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
    # Where both are not a number, or the same infinity, they do not differ.
    gaps = (actual.double() - expected.double()).abs().nan_to_num(0.0)
    largest = float(gaps.max()) if gaps.numel() else 0.0
    return Comparison("" if close else f"differs by up to {largest:.3g}{_at(where)}", largest)


def _at(where: str) -> str:
    return f" at {where}" if where else ""
