"""Settings declared once: a frozen dataclass whose fields become flags of the command line and keys
of `plugins.toml`.

A flag beats the file, the file beats the default.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from microkernel.errors import InvalidArgument

T = TypeVar("T")
S = TypeVar("S")

NO_EFFECT = "Accepted without effect"
"""The group of the flags that are there so that start scripts written for Triton run."""


class Check(Protocol):
    """What a value must be beyond its type."""

    def fault(self, value: Any) -> str:
        """What it must be, as `must be ...`, where it is not; else ""."""
        ...


@dataclass(frozen=True, slots=True)
class Between:
    """A number within bounds, which belong to it; without `most` any from `least` on."""

    least: float
    most: float | None = None

    def fault(self, value: Any) -> str:
        """See `Check.fault`."""
        if value >= self.least and (self.most is None or value <= self.most):
            return ""
        if self.most is None:
            return f"must be at least {self.least:g}"
        return f"must be from {self.least:g} to {self.most:g}"


@dataclass(frozen=True, slots=True)
class Shaped:
    """A text of a form, given for people and as the regular expression that all of it matches."""

    form: str
    pattern: str

    def fault(self, value: Any) -> str:
        """See `Check.fault`."""
        matches = re.fullmatch(self.pattern, value, re.DOTALL)
        return "" if matches else f"must have the form {self.form}"


@dataclass(frozen=True, slots=True)
class Option:
    """What the command line shows of one field: `flag` with its dashes, several spellings apart by
    blanks, "" for none; `many` where it may be repeated; `choices` where only some words are
    allowed, and `check` where not every value is; the `group` of flags it is shown in, "" for that
    of its settings class. `no_effect` says why the field changes nothing, `deprecated` what to
    write in its place."""

    flag: str
    about: str
    many: bool = False
    choices: tuple[str, ...] = ()
    check: Check | None = None
    group: str = ""
    no_effect: str = ""
    deprecated: str = ""

    @property
    def first(self) -> str:
        """The spelling that counts where a flag has several."""
        return self.flag.partition(" ")[0]

    def meant(self, value: Any) -> Any:
        """The value with every choice spelled as it is declared: like Triton's, they may be given
        in any case."""
        if self.many:
            return tuple(map(self._choice, value))
        return self._choice(value)

    def _choice(self, text: Any) -> Any:
        return next((c for c in self.choices if c.lower() == text.lower()), text)

    def fault(self, value: Any) -> str:
        """What the value, or one of those of a repeated field, must be; "" where it is right."""
        for one in value if self.many else (value,):
            if self.choices and one not in self.choices:
                return f"must be one of {', '.join(self.choices)}"
            if self.check is not None and (fault := self.check.fault(one)):
                return fault
        return ""


def option(  # noqa: PLR0913 - keywords, of which most fields leave out most
    default: T,
    *,
    about: str = "",
    flag: str = "",
    many: bool = False,
    choices: tuple[str, ...] = (),
    check: Check | None = None,
    group: str = "",
    no_effect: str = "",
    deprecated: str = "",
) -> T:
    """A field of a settings dataclass: bool, int, float or str, or a tuple of str where `many`.

    Without `flag` the field can be set in `plugins.toml` only. One with `no_effect`, the reason, is
    taken with a warning, and so is one with `deprecated`, which says what to write instead; they
    need no `about`.
    """
    if no_effect:
        group, about = NO_EFFECT, about or f"{no_effect[0].upper()}{no_effect[1:]}."
    elif deprecated:
        about = about or f"Deprecated: {deprecated}."
    told = Option(flag, about, many, choices, check, group, no_effect, deprecated)
    field: T = dataclasses.field(default=default, metadata={"option": told})
    return field


def options_of(settings: type[object]) -> dict[str, tuple[type[object], Option, object]]:
    """The fields of a settings class by name: type, option and default. A field without a group of
    its own has that of the class, its attribute `flag_group`."""
    assert dataclasses.is_dataclass(settings)
    usual = getattr(settings, "flag_group", "")
    return {
        f.name: (type(f.default), _grouped(f.metadata["option"], usual), f.default)
        for f in dataclasses.fields(settings)
    }


def _grouped(spec: Option, usual: str) -> Option:
    return spec if spec.group or not usual else dataclasses.replace(spec, group=usual)


def remarks(settings: object) -> list[str]:
    """What to tell the operator of the values that differ from their defaults: those that have no
    effect, and why, and those that are deprecated. `settings` may be None."""
    if settings is None:
        return []
    found = []
    for name, (_, spec, default) in options_of(type(settings)).items():
        if getattr(settings, name) == default:
            continue
        said = spec.first or f"'{name}'"
        if spec.no_effect:
            found.append(f"{said} has no effect: {spec.no_effect}")
        elif spec.deprecated:
            found.append(f"{said} is deprecated; write {spec.deprecated}")
    return found


def build(settings: type[S], values: Mapping[str, Any], source: str) -> S:
    """An object of a settings class from a mapping of keys to values.

    `source` says where the values come from. Raises InvalidArgument naming source and key for an
    unknown key, a value of the wrong type, and one that is not allowed.
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
    if kind is tuple and not all(isinstance(one, str) for one in cast("Any", value)):
        raise InvalidArgument(f"{where} must be a list of texts, got {value!r}")
    if spec.choices:
        value = spec.meant(value)
    if fault := spec.fault(value):
        raise InvalidArgument(f"{where} {fault}, got {value!r}")
    return value


_SWITCHES = {
    **dict.fromkeys(("true", "on", "1"), True),
    **dict.fromkeys(("false", "off", "0"), False),
}
_READERS: Mapping[type[object], Callable[[str], Any]] = {
    bool: lambda text: _SWITCHES[text.lower()],
    int: int,
    float: float,
    str: str,
    tuple: lambda text: (text,),
}


def from_text(text: str, kind: type[object]) -> Any:
    """The value of a field of that type which a flag gives as `KEY=TEXT`; a tuple of one text for
    a field that may be repeated. Raises ValueError."""
    try:
        return _READERS[kind](text)
    except KeyError:
        raise ValueError(text) from None
