"""The configuration as JSON and as text, by walking the dataclasses; the standard library suffices.

The JSON form is the one of Triton's config endpoint: snake_case names, enumerations by name, every
scalar, list and map present even at its default, sub-messages only where set, 64-bit integers as
numbers.
"""

import functools
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from microkernel.config.model import ModelConfig
from microkernel.errors import InvalidArgument

_ENUMS: Mapping[str, tuple[str, ...]] = {
    "data_type": (
        *("TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64"),
        *("TYPE_INT8", "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32"),
        *("TYPE_FP64", "TYPE_STRING", "TYPE_BF16"),
    ),
    "format": ("FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"),
    "priority": ("PRIORITY_DEFAULT", "PRIORITY_MAX", "PRIORITY_MIN"),
    "timeout_action": ("REJECT", "DELAY"),
    "InstanceGroup.kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
    "SecondaryDevice.kind": ("KIND_NVDLA",),
    "Control.kind": tuple(f"CONTROL_SEQUENCE_{k}" for k in ("START", "READY", "END", "CORRID")),
    "BatchInput.kind": (
        *("BATCH_ELEMENT_COUNT", "BATCH_ACCUMULATED_ELEMENT_COUNT"),
        "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
        *("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", "BATCH_ITEM_SHAPE", "BATCH_ITEM_SHAPE_FLATTEN"),
    ),
    "BatchOutput.kind": ("BATCH_SCATTER_WITH_INPUT_SHAPE",),
}
"""The words of each enumeration, by field name or by class and field name; a number in a text is an
index."""


_INTEGER = re.compile(r"-?[0-9]{1,20}")
_INT32, _UINT32 = range(-(2**31), 2**31), range(2**32)
_INT64, _UINT64 = range(-(2**63), 2**63), range(2**64)
_WIDE: Mapping[str, range] = {
    **dict.fromkeys(("versions", "dims", "shape", "dim", "device_id", "model_version"), _INT64),
    **dict.fromkeys(
        (
            *("max_queue_delay_microseconds", "default_timeout_microseconds"),
            *("max_sequence_idle_microseconds", "priority_levels", "default_priority_level"),
            "priority_queue_policy",
        ),
        _UINT64,
    ),
    **dict.fromkeys(
        (
            *("num_versions", "max_queue_size", "max_inflight_requests", "ModelWarmup.count"),
            *("ModelWarmup.batch_size", "Resource.count", "RateLimiter.priority"),
            "gather_kernel_buffer_threshold",
        ),
        _UINT32,
    ),
}
"""The numbers that an integer may be, by field name or by class and field name; those of 32 bits
with a sign where it is not named. A map's are those of its keys."""
_FLOAT32 = float.fromhex("0x1.fffffep+127")
_LARGEST: Mapping[str, float] = {"fp32_false_true": _FLOAT32, "minimum_slot_utilization": _FLOAT32}
"""The largest number that a floating-point field may be, where it has 32 bits."""
_Allowed: typing.TypeAlias = tuple[str, ...] | range | float
_UNPRINTABLE = re.compile(r'[\x00-\x1f\x7f"\\]')


def enum_words(message: type[object], field: str) -> tuple[str, ...]:
    """The words a text field may hold, () where it is free text."""
    if (message.__name__, field) == ("RateLimiter", "priority"):
        return ()
    return _ENUMS.get(f"{message.__name__}.{field}", _ENUMS.get(field, ()))


def numbers(message: type[object], field: str) -> range | float:
    """The integers that a field may hold, or the largest floating-point number where it has 32
    bits; as in the protobuf message, for what is beyond could not be told to a client."""
    wide = _WIDE.get(f"{message.__name__}.{field}", _WIDE.get(field, _INT32))
    return _LARGEST.get(field, wide)


def wire_name(field: "Field[Any]") -> str:
    """The field's name in the file: Python keywords carry an underscore here only."""
    return str(field.metadata.get("name", field.name))


@functools.cache
def schema(message: Any) -> dict[str, tuple["Field[Any]", Any]]:
    """The fields of a message class by wire name, each with its resolved type."""
    hints = typing.get_type_hints(message)
    return {wire_name(f): (f, hints[f.name]) for f in fields(message)}


def config_from_json(document: str | Mapping[str, Any]) -> ModelConfig:
    """A configuration from its JSON form. Enumerations in any case, 64-bit integers as numbers or
    strings.

    Raises InvalidArgument naming the field for an unknown field, a wrong type or an unknown word.
    """
    if isinstance(document, str):
        try:
            document = json.loads(document)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"model configuration is not valid JSON: {error}") from None
    config: ModelConfig = _message(ModelConfig, document, "")
    return config


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """The JSON form as a dictionary."""
    document: dict[str, Any] = _to_json(config)
    return document


def config_to_text(config: ModelConfig) -> str:
    """The configuration as a `config.pbtxt`; what is at its default is left out."""
    return "\n".join(_text_lines(config, "")) + "\n"


def _message(message: type, value: object, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"'{path or 'model configuration'}' must be an object, got {value!r}")
    known = schema(message)
    members: dict[str, Any] = {}
    for name, entry in value.items():
        where = f"{path}.{name}" if path else name
        if name not in known:
            raise InvalidArgument(f"unknown field '{where}' in model configuration")
        field, kind = known[name]
        allowed = enum_words(message, field.name) or numbers(message, field.name)
        members[field.name] = _value(kind, entry, where, allowed)
    return message(**members)


def _value(kind: Any, value: object, path: str, allowed: _Allowed) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _value(arguments[0], value, path, allowed)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InvalidArgument(f"'{path}' must be an array, got {value!r}")
        return tuple(_value(arguments[0], v, f"{path}[{i}]", allowed) for i, v in enumerate(value))
    if origin is not None:
        if not isinstance(value, Mapping):
            raise InvalidArgument(f"'{path}' must be an object, got {value!r}")
        key, entry = arguments
        return {
            _value(key, k, path, allowed): _value(entry, v, f"{path}[{k}]", allowed)
            for k, v in value.items()
        }
    if is_dataclass(kind):
        return _message(typing.cast("type", kind), value, path)
    if isinstance(allowed, tuple):
        return _word(value, path, allowed)
    return _scalar(kind, value, path, allowed)


def _word(value: object, path: str, words: tuple[str, ...]) -> str:
    if isinstance(value, str) and value.upper() in words:
        return value.upper()
    if type(value) is int and 0 <= value < len(words):
        return words[value]
    raise InvalidArgument(f"'{path}' must be one of {', '.join(words)}, got {value!r}")


def _scalar(kind: type, value: object, path: str, allowed: range | float) -> Any:
    if kind is int and isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if kind is float and type(value) is int and (value in _INT64 or value in _UINT64):
        value = float(value)
    if type(value) is not kind:
        raise InvalidArgument(f"'{path}' must be of type {kind.__name__}, got {value!r}")
    if type(value) is int and isinstance(allowed, range) and value not in allowed:
        raise InvalidArgument(f"'{path}' must be from {allowed[0]} to {allowed[-1]}, got {value}")
    # A NaN is not below anything either.
    if isinstance(allowed, float) and isinstance(value, float) and not abs(value) <= allowed:
        raise InvalidArgument(f"'{path}' must be a number of 32 bits, got {value}")
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        raise InvalidArgument(f"'{path}' is not valid Unicode text: {value!r}")
    return value


def _to_json(value: Any) -> Any:
    if is_dataclass(value):
        members: dict[str, Any] = {}
        for name, (field, _) in schema(_class(value)).items():
            member = getattr(value, field.name)
            if member is not None:
                as_text = field.metadata.get("json") == "text"
                members[name] = _texts(member) if as_text else _to_json(member)
        return members
    if isinstance(value, tuple):
        return [_to_json(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _to_json(v) for k, v in value.items()}
    return value


def _texts(value: Any) -> Any:
    return [str(v) for v in value] if isinstance(value, tuple) else str(value)


def _text_lines(message: Any, indent: str) -> Iterator[str]:
    for name, (field, _) in schema(_class(message)).items():
        value = getattr(message, field.name)
        if value is None or value == _default(field):
            continue
        if isinstance(value, Mapping):
            for key, entry in value.items():
                yield f"{indent}{name} {{"
                yield from _text_field("key", key, indent + "  ", is_enum=False)
                yield from _text_field("value", entry, indent + "  ", is_enum=False)
                yield f"{indent}}}"
            continue
        is_enum = bool(enum_words(_class(message), field.name))
        if isinstance(value, tuple) and not is_dataclass(value[0]):
            yield f"{indent}{name}: [ {', '.join(_literal(v, is_enum=is_enum) for v in value)} ]"
            continue
        for entry in value if isinstance(value, tuple) else (value,):
            yield from _text_field(name, entry, indent, is_enum=is_enum)


def _text_field(name: str, value: Any, indent: str, *, is_enum: bool) -> Iterator[str]:
    if not is_dataclass(value):
        yield f"{indent}{name}: {_literal(value, is_enum=is_enum)}"
        return
    lines = list(_text_lines(value, indent + "  "))
    if not lines:
        yield f"{indent}{name} {{ }}"
        return
    yield f"{indent}{name} {{"
    yield from lines
    yield f"{indent}}}"


def _literal(value: object, *, is_enum: bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not is_enum:
        return f'"{_UNPRINTABLE.sub(_escaped, value)}"'
    return str(value)


def _escaped(character: re.Match[str]) -> str:
    return f"\\{ord(character.group()):03o}"


def _class(message: object) -> Any:
    """The message's class, typed loosely: the cache of `schema` cannot see that classes hash."""
    return type(message)


def _default(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
