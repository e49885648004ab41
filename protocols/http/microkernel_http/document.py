"""JSON bodies: parsing, and typed access to members, with the messages that clients know.

Triton reads JSON with RapidJSON; reasons and offsets are put in its words.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from microkernel import Internal, InvalidArgument, MicrokernelError
from microkernel_http.pieces import Malformed, Reader, utf8_fault

LARGE = 256 << 10
"""Longer texts are read piece by piece, so that other threads have their turns meanwhile."""

_REASONS = {
    "Expecting value": "Invalid value.",
    "Unexpected UTF-8 BOM (decode using utf-8-sig)": "Invalid value.",
    "Illegal trailing comma before end of array": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
    "Invalid control character at": "Invalid encoding in string.",
    "Extra data": "The document root must not be followed by other values.",
}
# A string that does not end goes to the end of the text: to begin again behind each of its escaped
# quotes would take a time that is quadratic in its length.
_STRING = r'"(?:[^"\\]++|\\.?)*+"?'
_STRING_OR_BRACKET = re.compile(_STRING + r"|[\[\]{}]", re.DOTALL)
_STRING_OR_INF = re.compile(_STRING + r"|\bInf\b", re.DOTALL)
_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

MISSING = object()
"""What `member` answers where there is no such member: None is a JSON value."""


def parse(raw: bytes | memoryview, *, pairs: bool = False) -> Any:
    """The value of a JSON text in UTF-8. `NaN`, `Infinity`, `-Infinity` and `Inf` are numbers. An
    object becomes a dictionary, or, where `pairs`, the tuple of its members.

    Raises Internal for malformed text, as Triton does, and InvalidArgument for text nested too
    deeply and for a large one of more objects, arrays and members than a request can need.
    """
    return _in_pieces(memoryview(raw), pairs)[0] if len(raw) > LARGE else _whole(raw, pairs)


def _whole(raw: bytes | memoryview, pairs: bool) -> Any:
    text = _decoded(raw)
    try:
        document = _load(text, pairs)
        if "\\u" in text and _SURROGATE.search(raw):
            json.dumps(document, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        if not text.strip():
            raise _malformed("The document is empty.", len(raw)) from None
        offset = len(text[: error.pos].encode())
        raise _malformed(_reason(error.msg, text[: error.pos]), offset) from None
    except UnicodeEncodeError:
        raise _lone_surrogate(len(raw)) from None
    except ValueError:  # an integer of more digits than Python converts
        raise _too_many_digits(len(raw)) from None
    except RecursionError:
        raise _too_deep() from None
    return document


def _decoded(raw: bytes | memoryview) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise _malformed("Invalid encoding in string.", error.start) from None


@contextmanager
def parsed(raw: memoryview) -> Iterator[Any]:
    """The value of a large text, as that of `parse`; arrays in arrays called `data` have no
    brackets. Its large arrays are empty afterwards."""
    document, reader = _in_pieces(raw, pairs=False)
    try:
        yield document
    finally:
        reader.release()


def _in_pieces(raw: memoryview, pairs: bool) -> tuple[Any, Reader]:
    fault = utf8_fault(raw)
    if fault is not None:
        raise _malformed("Invalid encoding in string.", fault)
    reader = Reader(raw, lambda text: _load(text, pairs), pairs=pairs)
    try:
        document = reader.read()
        if reader.lone:
            raise _lone_surrogate(len(raw))
    except Malformed as error:
        reader.release()
        if reader.empty:
            raise _malformed("The document is empty.", len(raw)) from None
        raise _malformed(_reason(error.message, error.before), error.offset) from None
    except ValueError:
        reader.release()
        raise _too_many_digits(len(raw)) from None
    except RecursionError:
        reader.release()
        raise _too_deep() from None
    except MicrokernelError:
        reader.release()
        raise
    return document, reader


def _load(text: str, pairs: bool) -> Any:
    if not pairs:
        try:  # `loads` takes half as long again; it is left to tell what is wrong
            document, end = _DECODER.raw_decode(text)
        except json.JSONDecodeError:
            document, end = None, -1
        if end == len(text) or (end > 0 and not text[end:].strip(_SPACE)):
            return document
    try:
        return _loads(text, pairs)
    except json.JSONDecodeError:
        if "Inf" not in text:
            raise
        return _load_spelled(text, pairs)


def _loads(text: str, pairs: bool) -> Any:
    return json.loads(text, object_pairs_hook=tuple if pairs else None)


def _load_spelled(text: str, pairs: bool) -> Any:
    """The value of a text that may have `Inf` for a number. The position of an error is that in the
    text as it was given."""
    found = [m.start() for m in _STRING_OR_INF.finditer(text) if m[0] == "Inf"]
    spelled = _STRING_OR_INF.sub(lambda m: "Infinity" if m[0] == "Inf" else m[0], text)
    try:
        return _loads(spelled, pairs)
    except json.JSONDecodeError as error:
        longer = len("Infinity") - len("Inf")
        before = sum(at + longer * index < error.pos for index, at in enumerate(found))
        raise json.JSONDecodeError(error.msg, text, error.pos - longer * before) from None


def _malformed(reason: str, offset: int) -> Internal:
    return Internal(f"failed to parse the request JSON buffer: {reason} at {offset}")


def _lone_surrogate(size: int) -> Internal:
    return _malformed("The surrogate pair in string is invalid.", size)


def _too_many_digits(size: int) -> Internal:
    return _malformed("Number too big to be stored in double.", size)


def _too_deep() -> InvalidArgument:
    return InvalidArgument("the request JSON is nested too deeply")


def _reason(message: str, before: str) -> str:
    """What `json` says is wrong behind a text, in other words."""
    if message != "Expecting ',' delimiter":
        return _REASONS.get(message, message)
    if _innermost(before) == "{":
        return "Missing a comma or } after an object member."
    return "Missing a comma or ] after an array element."


def _innermost(text: str) -> str:
    """The bracket that is open at the end of a text."""
    opened: list[str] = []
    for found in _STRING_OR_BRACKET.finditer(text):
        if found[0] in "[{":
            opened.append(found[0])
        elif found[0] in "]}" and opened:
            opened.pop()
    return opened[-1] if opened else ""


def refuse(key: str, kind: str, wanted: str = "") -> NoReturn:
    """Raise the Internal that says that the value of `key` is of another kind."""
    raise Internal(
        f"Unable to parse '{key}': attempt to access JSON non-{kind} as {wanted or kind}"
    )


def member(value: Any, key: str) -> Any:
    """The member of an object, MISSING where it has none or `value` is no object."""
    return value.get(key, MISSING) if type(value) is dict else MISSING


def required(value: Any, key: str) -> Any:
    """The member of an object; raises Internal where it has none."""
    found = member(value, key)
    if found is MISSING:
        raise Internal(
            f"Unable to parse '{key}': attempt to access non-existing object member '{key}'"
        )
    return found


def text_member(members: dict[str, Any], key: str) -> str:
    """The member of an object, a string; raises Internal where it has none or another kind."""
    found = members.get(key)
    return found if type(found) is str else text(required(members, key), key)


def array_member(members: dict[str, Any], key: str) -> list[Any]:
    """The member of an object, an array; raises Internal where it has none or another kind."""
    found = members.get(key)
    return found if type(found) is list else array(required(members, key), key)


def text(value: Any, key: str) -> str:
    """A string, the value of `key`; raises Internal for anything else."""
    return value if type(value) is str else refuse(key, "string")


def boolean(value: Any, key: str) -> bool:
    """A boolean, the value of `key`; raises Internal for anything else."""
    return value if type(value) is bool else refuse(key, "boolean")


def unsigned(value: Any, key: str) -> int:
    """An integer from 0 to 2^64-1, the value of `key`; raises Internal for anything else."""
    if type(value) is int and 0 <= value < 1 << 64:
        return value
    return refuse(key, "unsigned-integer")


def array(value: Any, key: str) -> list[Any]:
    """An array, the value of `key`; raises Internal for anything else."""
    return value if type(value) is list else refuse(key, "array")


def members(value: Any, key: str) -> dict[str, Any]:
    """An object, the value of `key`; raises Internal for anything else."""
    return value if type(value) is dict else refuse(key, "object")
