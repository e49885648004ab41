"""The table of data types, and tensors as views on bytes."""

import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from microkernel.errors import InvalidArgument
from microkernel.tensor import (
    BF16,
    BOOL,
    BY_CONFIG_NAME,
    BY_NUMBER,
    BYTES,
    DATA_TYPES,
    FP32,
    INT32,
    UINT8,
    DataType,
    Tensor,
    datatype_of,
    decode_bytes,
    element_count,
    encode_bytes,
    raw_view,
    unknown_type,
)

ROWS = list(DATA_TYPES.values())
NUMERIC = [row for row in ROWS if row.numpy is not None and row is not BYTES]


def test_the_table_is_the_protocol_s() -> None:
    assert [(row.name, row.number, row.size) for row in ROWS] == [
        *(("BOOL", 1, 1), ("UINT8", 2, 1), ("UINT16", 3, 2), ("UINT32", 4, 4), ("UINT64", 5, 8)),
        *(("INT8", 6, 1), ("INT16", 7, 2), ("INT32", 8, 4), ("INT64", 9, 8)),
        *(("FP16", 10, 2), ("FP32", 11, 4), ("FP64", 12, 8), ("BYTES", 13, 0), ("BF16", 14, 2)),
    ]


@pytest.mark.parametrize("row", ROWS, ids=repr)
def test_every_row_is_found_by_each_of_its_names(row: DataType) -> None:
    assert DATA_TYPES[row.name] is row
    assert BY_NUMBER[row.number] is row
    assert BY_CONFIG_NAME[row.config_name] is row
    assert row.config_name == f"TYPE_{'STRING' if row is BYTES else row.name}"


@pytest.mark.parametrize("row", NUMERIC, ids=repr)
def test_numpy_agrees_on_the_size_and_leads_back(row: DataType) -> None:
    assert row.numpy is not None
    assert row.numpy.itemsize == row.size
    assert datatype_of(np.empty(0, row.numpy)) is row
    assert datatype_of(np.empty(0, row.numpy.newbyteorder(">"))) is row


@pytest.mark.parametrize("kind", ["O", "S3", "U3"])
def test_texts_and_objects_are_bytes(kind: str) -> None:
    assert datatype_of(np.empty(0, kind)) is BYTES


@pytest.mark.parametrize("kind", ["c8", "M8[s]", "i4,i4"])
def test_a_type_the_wire_lacks_is_refused(kind: str) -> None:
    with pytest.raises(InvalidArgument, match="has no counterpart on the wire"):
        datatype_of(np.empty(0, kind))


@pytest.mark.parametrize(("shape", "count"), [((), 1), ((0,), 0), ((2, 3), 6), ((4, 0, 2), 0)])
def test_element_count(shape: tuple[int, ...], count: int) -> None:
    assert element_count(shape) == count


@given(
    st.sampled_from(NUMERIC).flatmap(
        lambda row: arrays.arrays(
            row.numpy if row.numpy is not None else np.dtype(object),
            arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        )
    )
)
def test_arrays_come_back_as_they_were(array: np.ndarray[Any, Any]) -> None:
    tensor = Tensor.from_numpy("A", array)
    assert tensor.shape == array.shape
    assert tensor.nbytes == array.nbytes == element_count(tensor.shape) * tensor.datatype.size
    assert bytes(tensor.data) == array.tobytes()
    np.testing.assert_array_equal(tensor.as_numpy(), array)


def test_a_contiguous_array_is_not_copied() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    tensor = Tensor.from_numpy("A", array)
    array[1, 2] = 99
    assert tensor.as_numpy()[1, 2] == 99
    assert np.shares_memory(tensor.as_numpy(), array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int32).reshape(2, 3).T,
        np.arange(12, dtype=np.int32)[::2].reshape(3, 2),
        np.arange(6, dtype=">i4").reshape(3, 2),
    ],
)
def test_other_layouts_are_copied_into_the_raw_one(array: np.ndarray[Any, Any]) -> None:
    tensor = Tensor.from_numpy("A", array)
    assert (tensor.datatype, tensor.shape) == (INT32, (3, 2))
    assert bytes(tensor.data) == struct.pack("<6i", *array.reshape(-1).tolist())


def test_a_raw_view_is_flat_bytes() -> None:
    view = raw_view(np.array([[1, 2]], dtype="<u2"))
    assert (view.format, view.ndim, bytes(view)) == ("B", 1, b"\x01\x00\x02\x00")


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer_is_data(wrap: Any) -> None:
    tensor = Tensor("A", UINT8, (2,), wrap(b"\x05\x06"))
    assert tensor.nbytes == 2
    assert tensor.as_numpy().tolist() == [5, 6]


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        (BF16, (1,), b"\0\0", "tensor 'A' is BF16, which numpy lacks"),
        (FP32, (3,), bytes(8), r"tensor 'A' holds 2 elements, its shape \[3\] wants 3"),
        (BOOL, (), bytes(2), r"tensor 'A' holds 2 elements, its shape \[\] wants 1"),
        (BYTES, (2,), b"\1\0\0\0a", r"tensor 'A' holds 1 elements, its shape \[2\] wants 2"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    datatype: DataType, shape: tuple[int, ...], data: bytes, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Tensor("A", datatype, shape, data).as_numpy()


@given(st.lists(st.binary(max_size=8), max_size=5))
def test_bytes_elements_come_back_as_they_were(elements: list[bytes]) -> None:
    raw = encode_bytes(elements)
    assert decode_bytes(raw, "A") == elements
    tensor = Tensor("A", BYTES, (len(elements), 1), raw)
    assert tensor.as_numpy().tolist() == [[element] for element in elements]
    again = Tensor.from_numpy("A", tensor.as_numpy())
    assert (again.shape, again.data) == (tensor.shape, raw)


@pytest.mark.parametrize(
    ("array", "elements"),
    [
        (np.array(["é", ""], dtype=object), ["é".encode(), b""]),
        (np.array([b"a", 1, None], dtype=object), [b"a", b"1", b"None"]),
        (np.array(["ab", "c"]), [b"ab", b"c"]),
        (np.array([b"ab", b"c"]), [b"ab", b"c"]),
    ],
)
def test_texts_become_utf_8(array: np.ndarray[Any, Any], elements: list[bytes]) -> None:
    tensor = Tensor.from_numpy("A", array)
    assert tensor.datatype is BYTES
    assert decode_bytes(tensor.data, "A") == elements


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            b"\1\0\0",
            "incomplete string length indicator for inference input 'A', "
            "expecting 4 bytes but only 3 bytes available",
        ),
        (
            b"\1\0\0\0a\2\0\0\0b",
            "incomplete string data for inference input 'A', "
            "expecting string of length 2 but only 1 bytes available",
        ),
        (
            b"\xff\xff\xff\xff",
            "incomplete string data for inference input 'A', "
            "expecting string of length 4294967295 but only 0 bytes available",
        ),
    ],
)
def test_truncated_bytes_are_refused(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_bytes(memoryview(raw), "A")
    assert str(caught.value) == message


def test_encoding_takes_little_more_than_what_is_encoded() -> None:
    elements = [b""] * 100_000
    tracemalloc.start()
    try:
        encoded = encode_bytes(elements)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert encoded == bytes(400_000)
    assert peak < 5 * len(encoded)


def test_what_is_no_type_is_none_of_the_types() -> None:
    row = unknown_type("FP32")
    assert row is not FP32
    assert (row.name, row.shown) == ("FP32", "<invalid>")
    assert FP32.shown == "FP32"
