"""What clients write to change the settings of tracing. Pure."""

import re
from collections.abc import Mapping
from typing import TypeAlias

from microkernel.errors import InvalidArgument, Unsupported
from microkernel.port import TraceChanges
from microkernel.tracing.sampler import OFF, TENSORS, TIMESTAMPS

Values: TypeAlias = Mapping[str, tuple[str, ...] | int]
"""Settings by the names of their fields in `TraceSettings`."""

_UNSIGNED = (0, 2**32 - 1)
_RANGES = {
    "trace_rate": _UNSIGNED,
    "trace_count": (-1, 2**31 - 1),
    "log_frequency": _UNSIGNED,
}
_NUMBER = re.compile(r"[+-]?[0-9]{1,60}")
_SHOWN = 64
"""How many characters of what a client wrote an error repeats."""


def read(changes: TraceChanges) -> tuple[Values, frozenset[str]]:
    """The values to set, and the names of those to take back.

    Unknown names are ignored, and so is the mode, as Triton does. Raises Unsupported for the file
    and InvalidArgument for a value that cannot be.
    """
    given = changes.values
    if "trace_file" in given:
        raise Unsupported("trace file location can not be updated through network protocol")
    values: dict[str, tuple[str, ...] | int] = {}
    levels = given.get("trace_level")
    if levels and (level := _level(levels)):
        values["trace_level"] = level
    for name in _RANGES:
        words = given.get(name)
        if words is not None:
            values[name] = _number(name, words)
    known = ("trace_level", *_RANGES)
    return values, frozenset(name for name in known if name in given and given[name] is None)


def _level(words: tuple[str, ...]) -> tuple[str, ...]:
    """The levels in the order in which they are shown; () where no word is known."""
    if OFF in words:
        if len(words) > 1:
            raise InvalidArgument("Expect only one trace level 'OFF' is specified")
        return (OFF,)
    return tuple(level for level in (TIMESTAMPS, TENSORS) if level in words)


def _number(name: str, words: tuple[str, ...]) -> int:
    if len(words) != 1:
        raise InvalidArgument(f"expect only 1 value for '{name}'")
    text = words[0][:_SHOWN]
    if not _NUMBER.fullmatch(text):
        raise InvalidArgument(f"Unable to parse '{name}', got: {text}")
    number, (least, most) = int(text), _RANGES[name]
    if number < least == -1:
        raise InvalidArgument(f"Unable to parse '{name}'. Expecting value >= -1, got:{text}")
    if not least <= number <= most:
        raise InvalidArgument(
            f"Unable to parse '{name}', value is out of range [ {least}, {most} ], got: {text}"
        )
    return number
