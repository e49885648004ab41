"""What an AOTInductor package tells of its inputs.

Its call spec has neither types nor shapes, and its machine code looks at neither. But the compiler
writes a check of every input, which is off by default, and the source of it lies in the package:
the messages in it say what was expected.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod

from microkernel_torchscript.exported.leaves import Size

_TYPES = {
    "Bool": "BOOL",
    "Byte": "UINT8",
    "Char": "INT8",
    "Short": "INT16",
    "Int": "INT32",
    "Long": "INT64",
    "UInt16": "UINT16",
    "UInt32": "UINT32",
    "UInt64": "UINT64",
    "Half": "FP16",
    "BFloat16": "BF16",
    "Float": "FP32",
    "Double": "FP64",
}
_INPUT = r"input_handles\[(?P<place>\d+)\]: "
_TYPE = re.compile(
    _INPUT + r'unmatched dtype, "\s*<< "expected: " << \w+ << "\(at::k(?P<type>\w+)\)'
)
_FACT = re.compile(
    _INPUT
    + r"(?P<what>unmatched dim value|dim value is too small|dim value is too large|"
    + r'unmatched stride value) at (?P<axis>\d+), "\s*'
    + r'<< "expected(?: it)?(?: to be)?:? ?(?:>=|<=)? ?(?P<value>\d+)'
)

_ARGUMENT = re.compile(r"auto (?P<argument>\w+) = std::move\(inputs\[(?P<place>\d+)\]\);")
_SYMBOL = re.compile(r"int64_t (?P<symbol>\w+) = (?P<argument>\w+)_size\[(?P<axis>\d+)\];")

# The compiler treats sizes of 1 apart and says 2 where it means any. None at all is another thing.
_GENERAL = 2


@dataclass(slots=True)
class _Facts:
    """What the checks of one input say, by axis."""

    data_type: str | None = None
    exact: dict[int, int] = field(default_factory=dict)
    low: dict[int, int] = field(default_factory=dict)
    high: dict[int, int] = field(default_factory=dict)
    stride: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Expected:
    """One input as the package was compiled for it. `strides` are those that do not vary, by
    axis."""

    data_type: str | None
    sizes: tuple[Size, ...]
    strides: tuple[tuple[int, int], ...] = ()


def expected_inputs(source: str) -> tuple[Expected, ...]:
    """The inputs that the source of a package checks; none where it has no such checks, or one has
    a gap."""
    facts: dict[int, _Facts] = {}
    for match in _TYPE.finditer(source):
        kind = _TYPES.get(match["type"])
        facts[int(match["place"])] = _Facts(f"TYPE_{kind}" if kind else None)
    for match in _FACT.finditer(source):
        entry = facts.get(int(match["place"]))
        if entry is not None:
            _note(entry, match["what"], int(match["axis"]), int(match["value"]))
    if sorted(facts) != list(range(len(facts))):
        return ()
    found = [_expected(facts[place]) for place in range(len(facts))]
    return _related(found, _defining(source))


def strange_layout(expected: Expected) -> bool:
    """Whether an input was compiled for another order in memory than that in which tensors come
    here, row after row."""
    strides, sizes = dict(expected.strides), expected.sizes
    for axis, size in enumerate(sizes):
        inner = sizes[axis + 1 :]
        if axis not in strides or size.low == size.high == 1:
            continue
        whole = prod(entry.low for entry in inner)
        if strides[axis] != whole if all(e.fixed for e in inner) else strides[axis] < whole:
            return True
    return False


def _defining(source: str) -> dict[tuple[int, int], str]:
    """The symbols that stand for sizes which vary, by the argument and the axis that each is read
    from."""
    places = {match["argument"]: int(match["place"]) for match in _ARGUMENT.finditer(source)}
    return {
        (places[match["argument"]], int(match["axis"])): match["symbol"]
        for match in _SYMBOL.finditer(source)
        if match["argument"] in places
    }


def _related(found: list[Expected], defining: dict[tuple[int, int], str]) -> tuple[Expected, ...]:
    """The inputs with the symbols of their sizes. A size that varies and from which none is read is
    equal to another: to that of the same range, if only one has it."""
    ranges: dict[tuple[int, int | None], set[str]] = {}
    for (place, axis), symbol in defining.items():
        if place < len(found) and axis < len(found[place].sizes):
            size = found[place].sizes[axis]
            ranges.setdefault((size.low, size.high), set()).add(symbol)

    def named(place: int, axis: int, size: Size) -> Size:
        same = ranges.get((size.low, size.high), set())
        symbol = defining.get((place, axis)) or (next(iter(same)) if len(same) == 1 else "")
        return size if size.fixed else replace(size, symbol=symbol)

    return tuple(
        replace(entry, sizes=tuple(named(place, a, size) for a, size in enumerate(entry.sizes)))
        for place, entry in enumerate(found)
    )


def _note(facts: _Facts, what: str, axis: int, value: int) -> None:
    by_text = {
        "unmatched dim value": facts.exact,
        "dim value is too small": facts.low,
        "dim value is too large": facts.high,
        "unmatched stride value": facts.stride,
    }
    by_text[what][axis] = value


def _expected(facts: _Facts) -> Expected:
    axes = {*facts.exact, *facts.low, *facts.high, *facts.stride}
    sizes = tuple(_sizes(facts, max(axes) + 1 if axes else 0))
    return Expected(facts.data_type, sizes, tuple(sorted(facts.stride.items())))


def _sizes(facts: _Facts, rank: int) -> Iterator[Size]:
    for axis in range(rank):
        if axis in facts.exact:
            yield Size(facts.exact[axis], facts.exact[axis])
            continue
        low = facts.low.get(axis, 0)
        yield Size(min(low, 1) if low <= _GENERAL else low, facts.high.get(axis))
