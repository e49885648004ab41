"""JSON bodies: parsing, and typed access to members, with the messages that clients know.

Triton reads JSON with RapidJSON; reasons and offsets are put in its words.
"""

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from microkernel import Internal, InvalidArgument

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

Objects: TypeAlias = Callable[[list[tuple[str, Any]]], Any]
"""Makes the value of a JSON object from its members."""

MISSING = object()
"""What `member` answers where there is no such member: None is a JSON value."""


def parse(raw: bytes | memoryview, objects: Objects | None = None) -> Any:
    """The value of a JSON text in UTF-8. `NaN`, `Infinity`, `-Infinity` and `Inf` are numbers. An
    object becomes a dictionary, or what `objects` makes of it.

    Raises Internal for malformed text, as Triton does, and InvalidArgument for text nested too
    deeply.
    """
    try:
        text = str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise _malformed("Invalid encoding in string.", error.start) from None
    try:
        document = _load(text, objects)
        if "\\u" in text and _SURROGATE.search(raw):
            json.dumps(document, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        if not text.strip():
            raise _malformed("The document is empty.", len(raw)) from None
        raise _malformed(_reason(error), len(text[: error.pos].encode())) from None
    except UnicodeEncodeError:
        raise _malformed("The surrogate pair in string is invalid.", len(raw)) from None
    except ValueError:  # an integer of more digits than Python converts
        raise _malformed("Number too big to be stored in double.", len(raw)) from None
    except RecursionError:
        raise InvalidArgument("the request JSON is nested too deeply") from None
    return document


def _load(text: str, objects: Objects | None) -> Any:
    if objects is None:
        try:  # `loads` takes half as long again; it is left to tell what is wrong
            document, end = _DECODER.raw_decode(text)
        except json.JSONDecodeError:
            document, end = None, -1
        if end == len(text) or (end > 0 and not text[end:].strip(_SPACE)):
            return document
    try:
        return json.loads(text, object_pairs_hook=objects)
    except json.JSONDecodeError:
        spelled = _STRING_OR_INF.sub(
            lambda found: "Infinity" if found[0] == "Inf" else found[0], text
        )
        if spelled == text:
            raise
        return json.loads(spelled, object_pairs_hook=objects)


def _malformed(reason: str, offset: int) -> Internal:
    return Internal(f"failed to parse the request JSON buffer: {reason} at {offset}")


def _reason(error: json.JSONDecodeError) -> str:
    if error.msg != "Expecting ',' delimiter":
        return _REASONS.get(error.msg, error.msg)
    if _innermost(error.doc[: error.pos]) == "{":
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
