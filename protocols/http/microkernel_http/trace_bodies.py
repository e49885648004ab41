"""The bodies of the trace settings; nothing here knows aiohttp."""

from typing import Any

from microkernel import TraceChanges, TraceSettings, Unsupported
from microkernel_http.document import array, parse, text

_LEVEL = "trace_level"
_NUMBERS = ("trace_rate", "trace_count", "log_frequency")
_TRITON = "triton"


def trace_changes(body: bytes) -> TraceChanges | None:
    """What a request changes about tracing, None where it changes nothing. Null takes a setting
    back; unknown keys and the mode are ignored, as in Triton.

    Raises Unsupported for the file, and Internal for a value of the wrong kind: the level is an
    array of strings, a number a string.
    """
    document = parse(body)
    given = document if type(document) is dict else {}
    if "trace_file" in given:
        raise Unsupported("trace file location can not be updated through network protocol")
    values = {key: _values(key, given[key]) for key in (_LEVEL, *_NUMBERS) if key in given}
    return TraceChanges(values) if values else None


def _values(key: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if key == _LEVEL:
        return tuple(text(word, key) for word in array(value, key))
    return (text(value, key),)


def trace_settings(settings: TraceSettings) -> dict[str, Any]:
    """The answer of the trace routes; numbers are strings. The OpenTelemetry mode has no file and
    options of its own."""
    answer: dict[str, Any] = {
        _LEVEL: list(settings.trace_level),
        "trace_rate": str(settings.trace_rate),
        "trace_count": str(settings.trace_count),
    }
    if settings.trace_mode == _TRITON:
        answer["log_frequency"] = str(settings.log_frequency)
        answer["trace_file"] = settings.trace_file
    return {**answer, "trace_mode": settings.trace_mode, **settings.options}
