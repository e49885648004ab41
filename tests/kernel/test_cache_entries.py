"""Kept responses: what was written is read, and nothing else is."""

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from any_tensors import tensors
from hypothesis import given
from hypothesis import strategies as st

from microkernel import BY_NUMBER, DATA_TYPES, Tensor, encode_bytes
from microkernel.caching.entries import decode_entry, encode_entry

KEY, OTHER = bytes(range(32)), bytes(32)


@st.composite
def responses(draw: st.DrawFn) -> list[Tensor]:
    names = draw(st.lists(st.text(min_size=1, max_size=5), max_size=4, unique=True))
    return [draw(tensors(name)) for name in names]


def types_of(outputs: Sequence[Tensor]) -> dict[str, Any]:
    return {tensor.name: tensor.datatype for tensor in outputs}


def plain(outputs: Sequence[Tensor]) -> list[tuple[object, ...]]:
    return [(t.name, t.datatype, t.shape, bytes(t.data)) for t in outputs]


@given(responses(), st.booleans())
def test_what_was_written_is_read(outputs: list[Tensor], trusted: bool) -> None:
    entry = encode_entry(KEY, outputs)
    found = decode_entry(entry, KEY, types_of(outputs), trusted=trusted)
    assert plain(found) == plain(outputs)
    for tensor in found:
        assert isinstance(tensor.data, memoryview)
        assert tensor.data.obj is entry, "a copy"


@given(responses(), st.data())
def test_what_was_tampered_with_is_refused_or_fits_the_model(
    outputs: list[Tensor], data: st.DataObject
) -> None:
    entry = bytearray(encode_entry(KEY, outputs))
    for _ in range(data.draw(st.integers(1, 4))):
        entry[data.draw(st.integers(0, len(entry) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 3))
    try:
        found = decode_entry(
            bytes(entry[: len(entry) - cut]), KEY, types_of(outputs), trusted=False
        )
    except ValueError:
        return
    for tensor in found:
        assert tensor.datatype is types_of(outputs)[tensor.name]
        assert min(tensor.shape, default=0) >= 0
        if tensor.datatype.numpy is not None:
            tensor.as_numpy()  # raises where data and shape do not fit


@given(st.binary(max_size=200))
def test_anything_else_is_refused(data: bytes) -> None:
    head = struct.pack("<8s32s", b"mk\x00resp1", KEY)
    for entry in (data, head + data):
        try:
            assert decode_entry(entry, KEY, {}, trusted=False) == ()
        except ValueError:
            continue
        assert entry == encode_entry(KEY, ())


def words(*numbers: int, names: bytes = b"", data: bytes = b"") -> bytes:
    """An entry of those words."""
    head = struct.pack("<8s32sII", b"mk\x00resp1", KEY, len(numbers), len(names))
    entry = head + struct.pack(f"<{len(numbers)}q", *numbers) + names
    return entry + bytes(-len(entry) % 16) + data


FP32, BYTES = DATA_TYPES["FP32"], DATA_TYPES["BYTES"]
RIGHT = words(1, FP32.number, 8, 1, 2, names=b"y", data=bytes(8))
TEXT = words(1, BYTES.number, 5, 1, 1, names=b"t", data=encode_bytes([b"a"]))


@pytest.mark.parametrize("entry", [RIGHT, TEXT])
def test_the_form_is_as_these_tests_have_it(entry: bytes) -> None:
    decode_entry(entry, KEY, {"y": FP32, "t": BYTES}, trusted=False)


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        RIGHT[:-1],
        RIGHT + b"\0",
        b"\x80\x04N." + RIGHT,  # a pickle
        RIGHT.replace(KEY, OTHER),
        words(1, FP32.number, 8, 1, 3, names=b"y", data=bytes(8)),
        words(1, FP32.number, 8, 1, -2, names=b"y", data=bytes(8)),
        words(1, FP32.number, 0, 2, 0, 2**61, names=b"y"),
        words(1, FP32.number, 8, 2, -1, -2, names=b"y", data=bytes(8)),
        words(1, FP32.number, -8, 1, 2, names=b"y", data=bytes(8)),
        words(-1, FP32.number, 8, 1, 2, names=b"y", data=bytes(8)),
        words(1, FP32.number, 8, -1, names=b"y", data=bytes(8)),
        words(1, FP32.number, 8, 2**62, 2, names=b"y", data=bytes(8)),
        words(1, FP32.number, 8, names=b"y", data=bytes(8)),
        words(1, 99, 8, 1, 2, names=b"y", data=bytes(8)),
        words(1, DATA_TYPES["INT32"].number, 8, 1, 2, names=b"y", data=bytes(8)),
        words(1, FP32.number, 8, 1, 2, names=b"z", data=bytes(8)),
        words(1, FP32.number, 8, 1, 2, names=b"yy", data=bytes(8)),
        words(1, FP32.number, 8, 1, 2, names=b"\xff", data=bytes(8)),
        words(*(1, FP32.number, 0, 1, 0) * 2, names=b"yy"),
        words(1, BYTES.number, 5, 1, 2, names=b"t", data=encode_bytes([b"a"])),
        words(1, BYTES.number, 5, 1, 1, names=b"t", data=b"\x05\0\0\0a"),
    ],
)
def test_an_entry_that_is_none(entry: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - every one of its messages is for the log
        decode_entry(entry, KEY, {"y": FP32, "t": BYTES}, trusted=False)


def test_the_elements_of_texts_are_not_read_where_the_memory_is_our_own() -> None:
    entry = words(1, BYTES.number, 5, 1, 2, names=b"t", data=encode_bytes([b"a"]))
    [tensor] = decode_entry(entry, KEY, {"t": BYTES}, trusted=True)
    assert tensor.shape == (2,)


def test_numbers_of_types_stay_what_they_are() -> None:
    """Entries outlive the server that wrote them."""
    names = "BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 BYTES BF16"
    assert {n: t.name for n, t in BY_NUMBER.items()} == dict(enumerate(names.split(), 1))
