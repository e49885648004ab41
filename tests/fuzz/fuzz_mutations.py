"""Small changes to inputs that are valid: of bytes, of JSON values, of protobuf messages.

All choices are those of the random numbers that are handed in, so that a fuzzer and hypothesis can
both drive them.
"""

import copy
import json
from collections.abc import MutableSequence
from random import Random
from typing import Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Path: TypeAlias = tuple[Any, Any]
"""A container and the key or the position of one of its values."""

LONGEST = 64 << 10
"""Inputs are cut to so many bytes: enough for what takes quadratic time to be felt."""

NUMBERS = (
    *(0, 1, -1, 2, 7, 8, 255, 256, 2**16, 2**31 - 1, 2**31, -(2**31), 2**32),
    *(
        2**53 + 1,
        2**62,
        2**63 - 1,
        2**63,
        -(2**63),
        -(2**63) - 1,
        2**64 - 1,
        2**64,
        10**30,
        10**400,
    ),
)
_REALS = (0.0, -0.0, 0.5, -1.5, 1e300, float("nan"), float("inf"), float("-inf"))
_TEXTS = (
    "",
    "\0",
    "a" * 300,
    "\u00e9",
    "\U0001f600",
    "\ud800",
    "../x",
    "/",
    "1",
    "-1",
    "TYPE_FP32",
)
_FRAGMENTS = (
    *(b"", b"\0", b"\xff", b"\xff" * 9, b"\n", b'"', b'\\"', b"\\", b"\\u", b"[", b"]", b"{", b"}"),
    *(b"[]", b"{}", b",", b":", b"-", b"NaN", b"Infinity", b"Inf", b"null", b"true", b"1e999"),
    *(b"9" * 5000, b"\xed\xa0\x80", b"\xef\xbb\xbf", b"#", b"<", b">", b"'", b"\x80" * 10),
)


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Bytes with a flipped, lost, new, moved or often repeated part, of LONGEST at most."""
    start = rng.randint(0, len(data))
    end = min(len(data), start + rng.choice((0, 1, 1, 4, 8, 64, len(data))))
    part = data[start:end]
    match rng.randrange(6):
        case 0:
            changed = bytes(byte ^ (1 << rng.randrange(8)) for byte in part)
        case 1:
            changed = b""
        case 2:
            changed = rng.choice(_FRAGMENTS)
        case 3:
            changed = part + rng.choice(_FRAGMENTS) * rng.choice((1, 2, 100, 5000, 20000))
        case 4:
            changed = part * rng.choice((2, 3, 200))
        case _:
            other = rng.randint(0, len(data))
            changed = data[other : other + rng.choice((1, 8, 100))]
    return (data[:start] + changed + data[end:])[:LONGEST]


def mutate_json(document: Any, rng: Random) -> Any:
    """A copy of a JSON value with one of its values changed, lost, doubled or renamed."""
    holder = [copy.deepcopy(document)]
    container, key = rng.choice(_paths(holder))
    match rng.randrange(6):
        case 0 | 1:
            container[key] = _value(rng)
        case 2:
            container[key] = _changed(container[key], rng)
        case 3 if container is not holder:
            del container[key]
        case 4 if isinstance(container, dict):
            container[_word(rng, container)] = container.pop(key)
        case _:
            _double(container, key, rng)
    return holder[0] if holder else None


def _paths(container: Any) -> list[Path]:
    """Every value below a container."""
    found: list[Path] = []
    remaining = [container]
    while remaining:
        here = remaining.pop()
        keys = list(here) if isinstance(here, dict) else range(min(len(here), 50))
        for key in keys:
            found.append((here, key))
            if isinstance(here[key], dict | list):
                remaining.append(here[key])
    return found


def _value(rng: Random) -> Any:
    """A value of any kind."""
    match rng.randrange(7):
        case 0:
            return rng.choice(NUMBERS)
        case 1:
            return rng.choice(_REALS)
        case 2:
            return rng.choice(_TEXTS)
        case 3:
            return rng.choice((None, True, False))
        case 4:
            return rng.choice(([], {}, [[]], [{}], {"": []}, [1, "a", True], [0] * 4))
        case 5:
            return _nested(rng.choice((3, 99, 100, 101, 500, 3000)))
        case _:
            return [rng.choice((0, 1.5, "a", True, [], {}))] * rng.choice((1, 10, 3000))


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _changed(value: Any, rng: Random) -> Any:
    """A value of the same kind that is not far off."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + rng.choice((-1, 1, 2**31))
        case str():
            return rng.choice((value + "x", value[:-1], value.upper(), value * 2))
        case list():
            return value * 2 if len(value) < 1000 else value[:3]
        case _:
            return [value]


def _word(rng: Random, container: dict[str, Any]) -> str:
    return rng.choice((*_TEXTS, *container, "parameters", "shared_memory_region", "triton_x"))


def _double(container: Any, key: Any, rng: Random) -> None:
    again = copy.deepcopy(container[key])
    if isinstance(container, dict):
        container[_word(rng, container)] = again
    else:
        container.insert(rng.randint(0, len(container)), again)


def json_bytes(document: Any, rng: Random) -> bytes:
    """A JSON text of a value in one of its spellings. Lone surrogates are escapes or bytes."""
    spaced = rng.choice((None, (",", ":"), (" ,\t", "\n: ")))
    text = json.dumps(document, ensure_ascii=rng.random() < 0.7, separators=spaced)
    return text.encode("utf-8", "surrogatepass")


def mutate_message(message: Message, rng: Random) -> None:
    """Change one field of a message, or of one of those within it."""
    every: list[Any] = list(message.DESCRIPTOR.fields)
    if not every:
        return
    present = [field for field, _ in message.ListFields()]
    field = rng.choice(present) if present and rng.random() < 0.7 else rng.choice(every)
    if not isinstance(getattr(message, field.name), Message | str | bytes | int | float):
        _mutate_repeated(message, field, rng)
    elif field.message_type is not None:
        if rng.random() < 0.2:
            message.ClearField(field.name)
        else:
            inner = getattr(message, field.name)
            inner.SetInParent()
            mutate_message(inner, rng)
    else:
        setattr(message, field.name, _scalar(field, rng))


def _mutate_repeated(message: Message, field: FieldDescriptor, rng: Random) -> None:
    values: Any = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _mutate_map(values, field.message_type, rng)
        return
    position = rng.randrange(len(values)) if values else 0
    match rng.randrange(4):
        case 0 if values:
            del values[position]
        case 1 if values and field.message_type is not None:
            mutate_message(values[position], rng)
        case 1 if values:
            values[position] = _scalar(field, rng)
        case _:
            _grow(values, field, position, rng)


def _grow(values: Any, field: FieldDescriptor, position: int, rng: Random) -> None:
    """Add a value, some of them many times."""
    count = rng.choice((1, 1, 1, 3, 500)) if len(values) < 500 else 1
    if field.message_type is None:
        value = _scalar(field, rng)
        values.extend([value] * (1 if isinstance(value, bytes | str) and len(value) > 9 else count))
    elif values:
        again = copy.deepcopy(values[position])
        values.extend([again] * min(count, 5))
    else:
        mutate_message(values.add(), rng)


def _mutate_map(values: Any, entry: Any, rng: Random) -> None:
    value_field = entry.fields_by_name["value"]
    keys: MutableSequence[Any] = list(values)
    if keys and rng.random() < 0.25:
        del values[rng.choice(keys)]
        return
    known = ("sequence_id", "priority", "timeout", "shared_memory_region", "config", "file:1/a\0b")
    if entry.fields_by_name["key"].cpp_type in _RANGES:
        key: Any = _scalar(entry.fields_by_name["key"], rng)
    else:
        key = rng.choice((*keys, *known)) if rng.random() < 0.8 else rng.choice(_TEXTS[:5])
    if value_field.message_type is not None:
        mutate_message(values[key], rng)
    else:
        values[key] = _scalar(value_field, rng)


_RANGES: dict[int, tuple[int, int]] = {
    **dict.fromkeys(
        (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_ENUM), (-(2**31), 2**31)
    ),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64),
}


def _scalar(field: FieldDescriptor, rng: Random) -> Any:
    """A value that the field can hold."""
    if field.cpp_type in _RANGES:
        low, high = _RANGES[field.cpp_type]
        return rng.choice([number for number in NUMBERS if low <= number < high])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return (rng.choice(_FRAGMENTS) * rng.choice((1, 1, 4, 4000)))[: LONGEST // 2]
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return rng.choice([text for text in (*_TEXTS, "FP32", "BYTES", "X") if text != "\ud800"])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    return rng.choice(_REALS)
