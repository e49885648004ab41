"""The settings of the log as messages; nothing here knows grpc."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from google.protobuf.message import Message

from microkernel import InvalidArgument, LogChanges, LogSettings, Unsupported
from microkernel_grpc.schema import message

_KINDS: Mapping[str, tuple[str, str]] = {
    "log_info": ("bool_param", "boolean"),
    "log_warning": ("bool_param", "boolean"),
    "log_error": ("bool_param", "boolean"),
    "log_verbose_level": ("uint32_param", "int32"),
    "log_format": ("string_param", "string"),
}
"""The field that carries a setting's value, and the word for it in messages."""
_FILE = "log_file"


def log_changes(settings: Mapping[str, Any]) -> LogChanges | None:
    """What a request changes, None where it only reads. Unknown keys are ignored, as Triton does.

    Raises Unsupported for the log's file, and InvalidArgument for a value of the wrong kind.
    """
    if _FILE in settings:
        raise Unsupported("log file location can not be updated through network protocol")
    given = {f.name: settings[f.name] for f in fields(LogChanges) if f.name in settings}
    if not given:
        return None
    return LogChanges(**{key: _value(key, value) for key, value in given.items()})


def _value(key: str, value: Any) -> Any:
    field, word = _KINDS[key]
    if value.WhichOneof("parameter_choice") != field:
        raise InvalidArgument(f"expect {word} for '{key}'")
    return getattr(value, field)


def log_settings(settings: LogSettings) -> Message:
    """The answer of LogSettings."""
    values = {
        key: {"string_param" if key == _FILE else _KINDS[key][0]: value}
        for key, value in asdict(settings).items()
    }
    return message("LogSettingsResponse")(settings=values)
