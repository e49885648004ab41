"""Traces: their settings as messages, and where a request's trace comes from; nothing here knows
grpc."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from microkernel import (
    NO_CONTEXT,
    InvalidArgument,
    Port,
    TraceChanges,
    TraceContext,
    TraceSettings,
    Unsupported,
)
from microkernel_grpc.restricted import Metadata
from microkernel_grpc.schema import message

WAITREAD_START, WAITREAD_END = "GRPC_WAITREAD_START", "GRPC_WAITREAD_END"
SEND_START, SEND_END = "GRPC_SEND_START", "GRPC_SEND_END"

_FILE, _LEVEL = "trace_file", "trace_level"
_SCALARS = ("trace_rate", "trace_count", "log_frequency")
_TRITON, _OPENTELEMETRY = "triton", "opentelemetry"


async def continues_traces(server: Port) -> bool:
    """Whether requests may continue a trace of their caller, which only the OpenTelemetry mode
    does; the mode is chosen when the server starts."""
    try:
        return (await server.trace_settings()).trace_mode == _OPENTELEMETRY
    except Unsupported:
        return False


def context_of(metadata: Metadata) -> TraceContext:
    """What metadata says of the trace that a call belongs to."""
    given = {key: value for key, value in metadata if isinstance(value, str)}
    parent = given.get("traceparent")
    return TraceContext(parent, given.get("tracestate", "")) if parent else NO_CONTEXT


def trace_changes(settings: Mapping[str, Any]) -> TraceChanges | None:
    """What a request changes, None where it only reads. An empty list takes a setting back; unknown
    keys are ignored, as Triton does.

    Raises Unsupported for the file, and InvalidArgument for several values where one is wanted.
    """
    if _FILE in settings:
        raise Unsupported("trace file location can not be updated through network protocol")
    given = {key: tuple(settings[key].value) for key in (_LEVEL, *_SCALARS) if key in settings}
    for key in _SCALARS:
        if len(given.get(key, ())) > 1:
            raise InvalidArgument(f"expect only 1 value for '{key}'")
    return TraceChanges({key: value or None for key, value in given.items()}) if given else None


def trace_settings(settings: TraceSettings) -> Message:
    """The answer of TraceSetting. The OpenTelemetry mode has no file, and options of its own."""
    values: dict[str, list[str]] = {
        _LEVEL: list(settings.trace_level),
        "trace_rate": [str(settings.trace_rate)],
        "trace_count": [str(settings.trace_count)],
        "trace_mode": [settings.trace_mode],
        **{key: [value] for key, value in settings.options.items()},
    }
    if settings.trace_mode == _TRITON:
        values[_FILE] = [settings.trace_file]
        values["log_frequency"] = [str(settings.log_frequency)]
    return message("TraceSettingResponse")(
        settings={key: {"value": value} for key, value in values.items()}
    )
