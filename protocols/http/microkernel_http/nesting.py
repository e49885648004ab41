"""Arrays in arrays."""

from itertools import chain
from typing import Any

from microkernel import InvalidArgument

MAX_DEPTH = 100
STEP = 16 << 10
"""So many elements are looked at in one go: a call into C keeps every other thread waiting."""


def flatten(data: list[Any], depth: int = MAX_DEPTH) -> list[Any]:
    """The elements of an array that may be nested, in row-major order.

    Raises InvalidArgument where it is nested deeper than `depth`.
    """
    flat = data
    for _ in range(depth):
        kinds = kinds_of(flat)
        if list not in kinds:
            return flat
        if kinds != {list}:
            break
        rows, flat = flat, []
        for start in range(0, len(rows), STEP):
            flat += chain.from_iterable(rows[start : start + STEP])
    mixed: list[Any] = []
    _collect(data, mixed, depth)
    return mixed


def kinds_of(values: list[Any]) -> set[type]:
    """The types that are found among values."""
    if len(values) <= STEP:
        return set(map(type, values))
    kinds: set[type] = set()
    for start in range(0, len(values), STEP):
        kinds.update(map(type, values[start : start + STEP]))
    return kinds


def _collect(data: list[Any], into: list[Any], depth: int) -> None:
    if depth == 0:
        raise InvalidArgument(
            f"Unable to parse 'data': it is nested deeper than {MAX_DEPTH} levels"
        )
    for entry in data:
        if type(entry) is list:
            _collect(entry, into, depth - 1)
        else:
            into.append(entry)
