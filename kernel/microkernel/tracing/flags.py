"""`--trace-config` and the deprecated flags of tracing. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from microkernel.errors import InvalidArgument
from microkernel.port import TraceSettings
from microkernel.settings import ServerSettings
from microkernel.tracing.options import OTLP_KEYS, OtlpOptions, number, otlp_options
from microkernel.tracing.sampler import (
    OFF,
    OPENTELEMETRY,
    TENSORS,
    TIMESTAMPS,
    TRITON,
    objection,
)

FLAG = "--trace-config"
_KEYS = {
    "": ("mode", "level", "rate", "count"),
    TRITON: ("file", "log-frequency"),
    OPENTELEMETRY: OTLP_KEYS,
}
_LEVELS = {
    **dict.fromkeys(("off", "false"), OFF),
    **dict.fromkeys(("timestamps", "on", "true", "min", "max"), TIMESTAMPS),
    "tensors": TENSORS,
}
_REPLACED = {
    "trace_file": (TRITON, "file"),
    "trace_level": ("", "level"),
    "trace_rate": ("", "rate"),
    "trace_count": ("", "count"),
    "trace_log_frequency": (TRITON, "log-frequency"),
}
"""What takes the place of each deprecated flag, by the name of its field."""

Given = dict[tuple[str, str], tuple[str, ...]]
"""The values that were given, by mode ("" for all) and key, in order."""


@dataclass(frozen=True, slots=True)
class TraceStart:
    """How tracing starts: its settings, the options of the OpenTelemetry mode (None in the other),
    and what the operator should be told."""

    settings: TraceSettings
    otlp: OtlpOptions | None
    warnings: tuple[str, ...]


def trace_start(settings: ServerSettings, environment: Mapping[str, str]) -> TraceStart:
    """What the flags say. Raises InvalidArgument naming flag and key for what cannot be right."""
    given = _given(settings.trace_config)
    warnings = _add_deprecated(given, settings)
    mode = _mode(given)
    warnings += [
        f"{FLAG} {other},{key} has no effect: the trace mode is {mode}; --trace-config "
        f"mode={other} would change it"
        for other, key in given
        if other not in ("", mode)
    ]
    otlp = None
    if mode == OPENTELEMETRY:
        own = {key: values for (owner, key), values in given.items() if owner == mode}
        otlp = otlp_options(own, environment)
    made = TraceSettings(
        trace_file=_last(given, TRITON, "file", "") if otlp is None else "",
        trace_level=_level(given),
        trace_rate=number(_last(given, "", "rate", "1000"), f"{FLAG} rate", 0, 2**32 - 1),
        trace_count=number(_last(given, "", "count", "-1"), f"{FLAG} count", -1),
        log_frequency=number(
            _last(given, TRITON, "log-frequency", "0"), f"{FLAG} triton,log-frequency", 0
        ),
        trace_mode=mode,
        options=otlp.shown() if otlp else {},
    )
    return TraceStart(made, otlp, (*warnings, *_doubts(made)))


def _given(entries: Sequence[str]) -> Given:
    given: Given = {}
    for entry in entries:
        head, equals, value = entry.partition("=")
        mode, comma, key = head.rpartition(",")
        mode = mode.lower()
        if not (key and equals and value) or (comma and not mode):
            raise InvalidArgument(
                f"{FLAG} must be <mode>,<key>=<value> or <key>=<value>, got '{entry}'"
            )
        if mode not in _KEYS:
            raise InvalidArgument(
                f"{FLAG}: unknown trace mode '{mode}' in '{entry}'; there are {TRITON} and "
                f"{OPENTELEMETRY}"
            )
        if key not in _KEYS[mode]:
            raise InvalidArgument(_unknown(mode, key))
        given[mode, key] = (*given.get((mode, key), ()), value)
    return given


def _unknown(mode: str, key: str) -> str:
    """What to say of a key that its mode does not know."""
    where = f"in mode '{mode}'" if mode else "without a mode"
    right = next((other for other in _KEYS if key in _KEYS[other]), None)
    if right is not None:
        spelled = f"{right},{key}" if right else key
        return f"{FLAG}: unknown key '{key}' {where}; write {spelled}=<value>"
    return f"{FLAG}: unknown key '{key}' {where}; it knows {', '.join(_KEYS[mode])}"


def _add_deprecated(given: Given, settings: ServerSettings) -> list[str]:
    """Take over the deprecated flags that `--trace-config` does not beat; a warning for each."""
    defaults = {f.name: f.default for f in fields(settings)}
    warnings = []
    for name, (mode, key) in _REPLACED.items():
        value = getattr(settings, name)
        if value == defaults[name]:
            continue
        flag, new = "--" + name.replace("_", "-"), f"{mode},{key}" if mode else key
        if (mode, key) in given:
            warnings.append(f"{flag} is ignored: {FLAG} {new} is given")
            continue
        warnings.append(f"{flag} is deprecated; write {FLAG} {new}=<value>")
        given[mode, key] = value if isinstance(value, tuple) else (str(value),)
    return warnings


def _last(given: Given, mode: str, key: str, default: str) -> str:
    return given.get((mode, key), (default,))[-1]


def _mode(given: Given) -> str:
    mode = _last(given, "", "mode", TRITON).lower()
    if mode not in (TRITON, OPENTELEMETRY):
        raise InvalidArgument(f"{FLAG} mode must be {TRITON} or {OPENTELEMETRY}, got '{mode}'")
    return mode


def _level(given: Given) -> tuple[str, ...]:
    """The levels together; OFF anywhere switches all of them off, as in Triton."""
    found = set()
    for word in given.get(("", "level"), ("off",)):
        if word.lower() not in _LEVELS:
            raise InvalidArgument(
                f"{FLAG} level must be {OFF}, {TIMESTAMPS} or {TENSORS}, got '{word}'"
            )
        found.add(_LEVELS[word.lower()])
    return (OFF,) if OFF in found else tuple(sorted(found, reverse=True))


def _doubts(settings: TraceSettings) -> list[str]:
    """What is allowed and will hardly be meant."""
    doubts = []
    if settings.trace_mode == TRITON and (reason := objection(settings)):
        doubts.append(f"nothing is traced: {reason}; see {FLAG} rate and {FLAG} triton,file")
    if settings.trace_mode == OPENTELEMETRY and TENSORS in settings.trace_level:
        doubts.append(f"{FLAG} level={TENSORS} has no effect: spans carry no tensors")
    return doubts
