"""Settings declared once: a frozen dataclass whose fields become flags of the command line and keys
of `plugins.toml`.

A flag beats the file, the file beats the default.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from microkernel.errors import InvalidArgument

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Option:
    """What the command line shows of one field: `flag` with its dashes, several spellings apart by
    blanks, "" for none; `many` where it may be repeated; `choices` where only some words are
    allowed."""

    flag: str
    about: str
    many: bool = False
    choices: tuple[str, ...] = ()


def option(
    default: T, *, about: str, flag: str = "", many: bool = False, choices: tuple[str, ...] = ()
) -> T:
    """A field of a settings dataclass: bool, int, float or str, or a tuple of str where `many`.

    Without `flag` the field can be set in `plugins.toml` only.
    """
    field: T = dataclasses.field(
        default=default, metadata={"option": Option(flag, about, many, choices)}
    )
    return field


def options_of(settings: type[object]) -> dict[str, tuple[type[object], Option, object]]:
    """The fields of a settings class by name: type, option and default."""
    assert dataclasses.is_dataclass(settings)
    return {
        f.name: (type(f.default), f.metadata["option"], f.default)
        for f in dataclasses.fields(settings)
    }


def build(settings: type[S], values: Mapping[str, Any], source: str) -> S:
    """An object of a settings class from a mapping of keys to values.

    `source` says where the values come from. Raises InvalidArgument naming source and key for an
    unknown key, a value of the wrong type, and a word that is no choice.
    """
    known = options_of(settings)
    checked: dict[str, object] = {}
    for key, value in values.items():
        if key not in known:
            raise InvalidArgument(
                f"{source}: unknown key '{key}'; it knows {', '.join(sorted(known)) or 'no keys'}"
            )
        kind, spec, _ = known[key]
        checked[key] = _checked(value, kind, spec, f"{source}: '{key}'")
    return settings(**checked)


def _checked(value: object, kind: type[object], spec: Option, where: str) -> object:
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InvalidArgument(f"{where} must be of type {kind.__name__}, got {value!r}")
    if spec.choices and value not in spec.choices:
        raise InvalidArgument(f"{where} must be one of {', '.join(spec.choices)}, got {value!r}")
    return value
