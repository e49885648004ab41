"""The classification extension."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.classification import MAX_ELEMENTS, classify, classify_outputs
from microkernel.errors import InvalidArgument
from microkernel.request import InferResponse
from microkernel.tensor import BF16, BYTES, DATA_TYPES, Tensor

TYPES = [f"{sign}INT{bits}" for sign in ("U", "") for bits in (8, 16, 32, 64)]


def tensor(values: Any, dtype: Any = np.float32) -> Tensor:
    return Tensor.from_numpy("X", np.array(values, dtype=dtype))


def classes(found: Tensor) -> list[Any]:
    assert (found.name, found.datatype) == ("X", BYTES)
    decoded: list[Any] = np.vectorize(bytes.decode, otypes=[object])(found.as_numpy()).tolist()
    return decoded


@pytest.mark.parametrize(
    ("values", "dtype", "count", "labels", "batches", "expected"),
    [
        ([11, 22, 44, 33], np.int32, 2, ("n", "e", "s"), False, ["44:2:s", "33:3"]),
        ([0.1, 0.9], np.float32, 1, (), False, ["0.900000:1"]),
        ([0.1, 0.9], np.float64, 9, ("a", ""), False, ["0.900000:1", "0.100000:0:a"]),
        ([[1, 2], [4, 3]], np.int8, 1, ("a", "b"), True, [["2:1:b"], ["4:0:a"]]),
        ([[1, 2], [4, 3]], np.int8, 2, ("a",), False, ["4:2", "3:3"]),
        ([[[1, 2], [4, 3]]], np.uint8, 3, (), True, [["4:2", "3:3", "2:1"]]),
        ([5, 7, 5, 7], np.int64, 4, (), False, ["7:1", "7:3", "5:0", "5:2"]),
        ([5.0, 7, 5, 7], np.float32, 4, (), False, [f"{v}.000000:{i}" for v, i in
            ((7, 1), (7, 3), (5, 0), (5, 2))]),
        ([-1.0, np.nan, np.inf, -np.inf], np.float32, 4, (), False,
            ["inf:2", "-1.000000:0", "-inf:3", "nan:1"]),
        (7, np.int32, 1, ("only",), False, ["7:0:only"]),
        ([], np.int32, 3, ("a",), False, []),
    ],
)  # fmt: skip
def test_the_largest_values_come_first(
    values: Any, dtype: Any, count: int, labels: tuple[str, ...], batches: bool, expected: Any
) -> None:
    assert classes(classify(tensor(values, dtype), count, labels, batches=batches)) == expected


@pytest.mark.parametrize(
    ("shape", "count", "batches", "expected"),
    [
        ((2, 3), 2, True, (2, 2)),
        ((2, 3), 9, True, (2, 3)),
        ((2, 3), 9, False, (6,)),
        ((0, 3), 2, True, (0, 2)),
        ((2, 0), 2, True, (2, 0)),
        ((3,), 2, True, (3, 1)),
        ((1, 2, 3), 4, True, (1, 4)),
    ],
)
def test_the_shape(
    shape: tuple[int, ...], count: int, batches: bool, expected: tuple[int, ...]
) -> None:
    found = classify(tensor(np.zeros(shape)), count, (), batches=batches)
    assert found.shape == expected == found.as_numpy().shape


@pytest.mark.parametrize("name", TYPES)
def test_integers_of_every_width_keep_their_order(name: str) -> None:
    datatype = DATA_TYPES[name].numpy
    assert datatype is not None
    info = np.iinfo(datatype)
    values = [info.min, info.max, 1]
    expected = [f"{info.max}:1", "1:2", f"{info.min}:0"]
    assert classes(classify(tensor(values, datatype), 3, (), batches=False)) == expected


@given(st.lists(st.floats(width=32), max_size=20), st.integers(1, 25))
def test_classes_are_a_sorted_choice_of_the_values(values: list[float], count: int) -> None:
    found = classes(classify(tensor(values), count, (), batches=False))
    indexes = [int(text.split(":")[1]) for text in found]
    assert len(set(indexes)) == len(indexes) == min(count, len(values))
    assert [f"{float(np.float32(values[i])):.6f}:{i}" for i in indexes] == found
    chosen = [values[i] for i in indexes if values[i] == values[i]]
    assert chosen == sorted(chosen, reverse=True)


@pytest.mark.parametrize(
    "values", [tensor([True], bool), tensor([1.0], np.float16), tensor([b"a"], object)]
)
def test_types_without_classes(values: Tensor) -> None:
    with pytest.raises(InvalidArgument) as caught:
        classify(values, 1, (), batches=False)
    text = f"class result not available for output due to unsupported type '{values.datatype.name}'"
    assert str(caught.value) == f"{text} of output 'X'"


def test_bf16_has_no_classes() -> None:
    with pytest.raises(InvalidArgument, match="unsupported type 'BF16'"):
        classify(Tensor("X", BF16, (1,), b"\0\0"), 1, (), batches=False)


def test_the_largest_output_that_is_taken() -> None:
    values = np.zeros(MAX_ELEMENTS + 1, np.uint8)
    assert classify(tensor(values[1:], np.uint8), 1, (), batches=False).shape == (1,)
    with pytest.raises(InvalidArgument, match=r"^classification output tensor too large: "):
        classify(tensor(values, np.uint8), 1, (), batches=False)


def test_a_label_may_be_no_text() -> None:
    found = classify(tensor([1], np.int32), 1, ("caf\udce9",), batches=False)
    assert found.as_numpy().tolist() == [b"1:0:caf\xe9"]


def test_only_the_outputs_asked_for_are_replaced() -> None:
    other = Tensor.from_numpy("Y", np.array([1.0], np.float32))
    response = InferResponse("m", 1, "7", (tensor([1, 2], np.int32), other), {"a": 1})
    found = classify_outputs(response, {"X": 1, "Z": 1}, {"X": ("a", "b")}, batches=False)
    assert classes(found.outputs[0]) == ["2:1:b"]
    assert found.outputs[1] is other
    assert (found.id, found.parameters) == ("7", {"a": 1})
    assert response.outputs[0].datatype is not BYTES
