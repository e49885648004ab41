import contextlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel import Internal, InvalidArgument, MicrokernelError
from microkernel_http import document


@pytest.mark.parametrize(
    ("raw", "reason", "offset"),
    [
        (b"{", "Missing a name for object member.", 1),
        (b'{"ready":', "Invalid value.", 9),
        (b"nul", "Invalid value.", 0),
        (b"\xef\xbb\xbf{}", "Invalid value.", 0),
        (b'{"a" 1}', "Missing a colon after a name of object member.", 5),
        (b'{"a":1 "b":2}', "Missing a comma or } after an object member.", 7),
        (b'{"a":[1 2]}', "Missing a comma or ] after an array element.", 8),
        (b'{"}":["[", 1 2]}', "Missing a comma or ] after an array element.", 13),
        (b'{"a":[1],"b":2 "c"}', "Missing a comma or } after an object member.", 15),
        (b'["abc', "Missing a closing quotation mark in string.", 1),
        (b'["\\x"]', "Invalid escape character in string.", 2),
        (b'["a\nb"]', "Invalid encoding in string.", 3),
        (b"{} {}", "The document root must not be followed by other values.", 3),
        ('["é" 1]'.encode(), "Missing a comma or ] after an array element.", 6),
        (b'["\xff"]', "Invalid encoding in string.", 2),
        (b'["\\ud800"]', "The surrogate pair in string is invalid.", 10),
        (b"[" + b"9" * 5000 + b"]", "Number too big to be stored in double.", 5002),
    ],
)
def test_malformed_text_is_explained_in_rapidjson_words(
    raw: bytes, reason: str, offset: int
) -> None:
    with pytest.raises(Internal) as caught:
        document.parse(raw)
    assert str(caught.value) == f"failed to parse the request JSON buffer: {reason} at {offset}"


@pytest.mark.parametrize("text", ["[1]", " [1]", "[1] ", "\t\r\n[1]\n", "[1]\t\r\n "])
def test_white_space_around_the_text_does_not_matter(text: str) -> None:
    assert document.parse(text.encode()) == [1]


@pytest.mark.parametrize("space", ["\x00", "\x0b", "\u00a0"])
def test_white_space_that_json_lacks_is_refused(space: str) -> None:
    for text, reason in ((space + "[1]", "Invalid value."), ("[1]" + space, "The document root")):
        with pytest.raises(Internal, match=reason):
            document.parse(text.encode())


def test_text_nested_too_deeply_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="nested too deeply"):
        document.parse(b"[" * 200_000)


def test_bare_numbers_that_json_lacks_are_read_outside_strings_only() -> None:
    values = document.parse(b'[NaN, Infinity, -Infinity, Inf, -Inf, "Inf", "\\"Inf"]')
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf, math.inf, -math.inf, "Inf", '"Inf']


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert document.parse(rb'"\ud83d\ude00"') == "\U0001f600"


@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:\\udD8aInf01.-e ', max_size=60))
@settings(max_examples=200, deadline=None)
def test_parse_raises_nothing_but_our_errors(raw: bytes | str) -> None:
    with contextlib.suppress(MicrokernelError):
        document.parse(raw if isinstance(raw, bytes) else raw.encode())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
@settings(deadline=None)
def test_parse_reads_what_json_writes(value: object) -> None:
    assert document.parse(json.dumps(value, ensure_ascii=False).encode()) == value
    assert document.parse(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("read", "good", "bad", "message"),
    [
        (document.text, "x", 7, "non-string as string"),
        (document.boolean, True, 1, "non-boolean as boolean"),
        (document.unsigned, 2**64 - 1, 2**64, "non-unsigned-integer as unsigned-integer"),
        (document.unsigned, 0, -1, "non-unsigned-integer as unsigned-integer"),
        (document.unsigned, 1, True, "non-unsigned-integer as unsigned-integer"),
        (document.unsigned, 1, 1.0, "non-unsigned-integer as unsigned-integer"),
        (document.array, [], {}, "non-array as array"),
        (document.members, {}, [], "non-object as object"),
    ],
)
def test_kinds_are_not_coerced(read, good, bad, message) -> None:  # type: ignore[no-untyped-def]
    assert read(good, "key") == good
    with pytest.raises(Internal) as caught:
        read(bad, "key")
    assert str(caught.value) == f"Unable to parse 'key': attempt to access JSON {message}"


def test_null_is_a_value_and_not_an_absence() -> None:
    assert document.member({"a": None}, "a") is None
    assert document.member({"a": None}, "b") is document.MISSING
    assert document.member([1], "a") is document.MISSING
    with pytest.raises(Internal, match="attempt to access non-existing object member 'b'"):
        document.required({"a": None}, "b")
