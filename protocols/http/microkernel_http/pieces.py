"""Large JSON texts, read piece by piece.

The scanner of `json` keeps every other thread waiting until it has read all that it was given. So
it is given no more than a piece at a time: of an array or an object so many whole elements as a
piece holds. What is larger than a piece is walked, down to where it is not.
"""

import codecs
import json
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from microkernel import InvalidArgument
from microkernel_http.nesting import MAX_DEPTH, STEP, flatten

PIECE = 64 << 10
"""The bytes of a piece."""
MOST = 10_000
"""The objects, arrays and members that a text may have, elements of `data` aside."""
_DEEPEST = 500
_CHECKED = 1 << 20
_BLANKS = re.compile(rb"[ \t\n\r]*+")
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\u[0-9a-fA-F]{4}|\\[^u])*+', re.DOTALL)
_TOKEN = re.compile(rb"[-+.\w]*+")
_INF = re.compile(r"-?Inf\b")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_UNTERMINATED = "Unterminated string starting at"
_DECODER = json.JSONDecoder()

Load: TypeAlias = Callable[[str], Any]
"""Reads a whole text. Raises JSONDecodeError for a malformed one."""


class Malformed(ValueError):
    """A text that is no JSON: what `json` says is wrong, text in which the same brackets are open
    as there, and the offset in bytes."""

    def __init__(self, message: str, before: str, offset: int) -> None:
        super().__init__(message)
        self.message, self.before, self.offset = message, before, offset


class Reader:
    """Reads one text, which is UTF-8. Where `pairs`, an object becomes the tuple of its members,
    else a dictionary, and arrays in an array called `data` lose their brackets, for only the order
    of its elements counts.

    `load` reads a piece. `lone` tells, in the end, that half a surrogate pair was among the
    strings.
    """

    def __init__(self, raw: memoryview, load: Load, *, pairs: bool) -> None:
        self._raw = raw
        self._bytes: npt.NDArray[np.uint8] = np.frombuffer(raw, np.uint8)
        self._load = load
        self._pairs = pairs
        self._left = MOST
        self._held: list[list[Any]] = []
        self.lone = False

    def read(self) -> Any:
        """The value of the text.

        Raises Malformed, InvalidArgument for too many objects, arrays or members, RecursionError
        for text nested too deeply, and ValueError for an integer of too many digits.
        """
        value, end = self._value(self._blank(0), "", 0, flat=False)
        end = self._blank(end)
        if end < len(self._raw):
            raise Malformed("Extra data", "", end)
        return value

    @property
    def empty(self) -> bool:
        """Whether the text is blank."""
        return self._blank(0) == len(self._raw)

    def release(self) -> None:
        """Empty the large arrays that were read, piece by piece: to drop millions of values at once
        would keep every other thread waiting, too."""
        for values in self._held:
            while values:
                del values[-STEP:]

    def _value(self, start: int, bracket: str, depth: int, *, flat: bool) -> tuple[Any, int]:
        """The value that starts there and is large, perhaps, and where it ends."""
        if depth > _DEEPEST:
            raise RecursionError
        first = self._at(start)
        if first in ("[", "{"):
            self._count(1)
            values, end = self._items(start + 1, first, depth, flat=flat)
            if first == "[":
                return values, end
            return (tuple(values) if self._pairs else dict(values)), end
        return self._string(start) if first == '"' else self._scalar(start, bracket)

    def _items(self, at: int, bracket: str, depth: int, *, flat: bool) -> tuple[list[Any], int]:
        """The elements of an array, or the members of an object as pairs, and where it ends. `at`
        is behind its opening bracket."""
        values: list[Any] = []
        self._held.append(values)
        begun = closed = False
        while not closed:
            at = self._blank(at)
            self._check_begin(at, bracket, begun=begun)
            end, closed = self._cut(at, flat=flat)
            if end:
                values += self._piece(at, end, bracket, depth, flat=flat)
            else:
                found, end = self._item(at, bracket, depth, flat=flat)
                values += found
                end, closed = self._behind(end, bracket)
            at, begun = end, True
        return values, at

    def _check_begin(self, at: int, bracket: str, *, begun: bool) -> None:
        """Raise Malformed where no item can begin, and the array or object cannot end either."""
        found = self._at(at)
        if found == ("}" if bracket == "{" else "]") and not begun:
            return
        if bracket == "{" and found != '"':
            raise Malformed("Expecting property name enclosed in double quotes", bracket, at)
        if bracket == "[" and found in ("", ",", "]"):
            raise Malformed("Expecting value", bracket, at)

    def _cut(self, at: int, *, flat: bool) -> tuple[int, bool]:
        """Where a piece ends that begins there: behind the closing bracket, and True; else behind
        the last comma between two items; 0 where the first item is too large. Counts what is in
        the piece."""
        window = self._bytes[at : at + PIECE]
        if (window == ord("\\")).any():
            window = np.frombuffer(_ESCAPE.sub(b"xx", window.tobytes()), np.uint8)
        outside = np.cumsum(window == ord('"'), dtype=np.uint8) & 1 == 0
        folded = window | 0x20  # makes braces of brackets
        opened = (folded == ord("{")) & outside
        level = np.cumsum(opened, dtype=np.int32)
        level -= np.cumsum((folded == ord("}")) & outside, dtype=np.int32)
        ends = level < 0
        closed = bool(ends.any())
        if closed:
            size = int(ends.argmax()) + 1
        else:
            commas = np.flatnonzero((window == ord(",")) & outside & (level == 0))
            size = int(commas[-1]) + 1 if len(commas) else 0
        counted = opened & (window == ord("{")) if flat else opened
        self._count(int(np.count_nonzero(counted[:size])))
        return (at + size if size else 0), closed

    def _piece(self, start: int, end: int, bracket: str, depth: int, *, flat: bool) -> list[Any]:
        """The items of an array or object between two offsets, with the comma or the bracket after
        the last."""
        raw, closing = self._raw[start:end].tobytes(), "]" if bracket == "[" else "}"
        told = str(raw, "utf-8")
        found = self._loaded(bracket + (told[:-1] + closing if told[-1] == "," else told), start)
        if b"\\u" in raw and _SURROGATE.search(raw):
            self._look(json.dumps(found, ensure_ascii=False))
        if bracket == "[":
            return flatten(found, MAX_DEPTH - depth) if flat else found
        self._count(len(found))
        return list(found if self._pairs else found.items())

    def _loaded(self, text: str, start: int) -> Any:
        """The value of a text of a bracket and what begins at an offset."""
        try:
            return self._load(text)
        except json.JSONDecodeError as error:
            offset = start + len(text[: error.pos].encode()) - 1
            raise Malformed(error.msg, text[: error.pos], offset) from None

    def _item(self, at: int, bracket: str, depth: int, *, flat: bool) -> tuple[list[Any], int]:
        """An item that is larger than a piece, alone in a list, and where it ends; an array without
        its brackets where `flat`."""
        if bracket == "[":
            value, end = self._value(at, bracket, depth + 1, flat=flat)
            return (value if flat and type(value) is list else [value]), end
        self._count(1)
        key, at = self._string(at)
        at = self._blank(at)
        if self._at(at) != ":":
            raise Malformed("Expecting ':' delimiter", bracket, at)
        flat = key == "data" and not self._pairs
        value, end = self._value(self._blank(at + 1), bracket, 0 if flat else depth + 1, flat=flat)
        return [(key, value)], end

    def _behind(self, at: int, bracket: str) -> tuple[int, bool]:
        """What comes after the comma or closing bracket behind an item, and whether it was the
        bracket."""
        at = self._blank(at)
        found = self._at(at)
        if found == ",":
            return at + 1, False
        if found == ("]" if bracket == "[" else "}"):
            return at + 1, True
        raise Malformed("Expecting ',' delimiter", bracket, at)

    def _string(self, start: int) -> tuple[str, int]:
        """The string that starts there, and where it ends."""
        parts, at, halves = [], start + 1, False
        while self._at(at) != '"':
            found = _IN_STRING.match(self._raw, at, at + PIECE)
            end = found.end() if found else at
            while at < end < len(self._raw) and self._bytes[end] & 0xC0 == 0x80:
                end -= 1  # not within a character
            if end == at:
                self._refuse_string(start, at)
            raw = self._raw[at:end].tobytes()
            parts.append(self._loaded(f'"{str(raw, "utf-8")}"', at))
            halves = halves or _SURROGATE.search(raw) is not None
            at = end
        text = "".join(parts)
        if halves:
            # A piece may have ended within a pair.
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
            self._look(text)
        return text, at + 1

    def _refuse_string(self, start: int, at: int) -> NoReturn:
        """Raise Malformed for a string that starts there and ends with the text, or goes on with a
        wrong escape."""
        rest = str(self._raw[at : at + 8].tobytes(), "utf-8", "replace")
        try:
            self._loaded(f'"{rest}', at)
        except Malformed as fault:
            if fault.message != _UNTERMINATED:
                raise
        raise Malformed(_UNTERMINATED, "", start)

    def _scalar(self, start: int, bracket: str) -> tuple[Any, int]:
        """The number or word that starts there, and where it ends."""
        found = _TOKEN.match(self._raw, start)
        token = str(found[0], "ascii", "replace") if found else ""
        try:
            value, size = _DECODER.raw_decode(token)
        except json.JSONDecodeError as error:
            infinite = _INF.match(token)
            if infinite is None:
                raise Malformed(error.msg, bracket, start + error.pos) from None
            value, size = (-math.inf if token[0] == "-" else math.inf), infinite.end()
        return value, start + size

    def _look(self, text: str) -> None:
        """Note where a text holds half a surrogate pair."""
        try:
            text.encode()
        except UnicodeEncodeError:
            self.lone = True

    def _blank(self, at: int) -> int:
        """Where blanks end that begin there, if any."""
        while True:
            found = _BLANKS.match(self._raw, at, at + PIECE)
            end = found.end() if found else at
            if end - at < PIECE:
                return end
            at = end

    def _at(self, at: int) -> str:
        """The character there, "" at the end of the text."""
        return chr(self._raw[at]) if at < len(self._raw) else ""

    def _count(self, more: int) -> None:
        self._left -= more
        if self._left < 0:
            raise InvalidArgument(
                f"the request JSON has more than {MOST} objects, arrays and members"
            )


def utf8_fault(raw: memoryview) -> int | None:
    """The offset of what is no UTF-8 in a text, None where all is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(raw), _CHECKED):
        kept = len(decoder.getstate()[0])
        part = raw[start : start + _CHECKED]
        try:
            decoder.decode(part, final=start + _CHECKED >= len(raw))
        except UnicodeDecodeError as error:
            return start - kept + error.start
    return None
