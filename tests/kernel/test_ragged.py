"""Batches of requests of different shapes: what they look like to a backend, and how its outputs
are taken apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import Batch, InferRequest, Internal, ModelConfig, Tensor
from microkernel.config.parse import parse_text
from microkernel.models.checking import RequestChecker
from microkernel.ragged import Composition, composed
from microkernel.workers import descriptors
from microkernel.workers.descriptors import Schema
from microkernel.workers.wire import HEADER_SIZE

ONES = [(1, 2), (1, 4), (1, 1), (1, 3)]
ITEMS = [(2, 3, 1), (1, 2, 2)]


@pytest.mark.parametrize(
    ("kind", "shapes", "expected"),
    [
        ("BATCH_ELEMENT_COUNT", ONES, [2, 4, 1, 3]),
        ("BATCH_ELEMENT_COUNT", [(2, 3)], [6]),
        ("BATCH_ELEMENT_COUNT", [(1, 0), (1, 2)], [0, 2]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT", ONES, [2, 6, 7, 10]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", ONES, [0, 2, 6, 7, 10]),
        ("BATCH_ITEM_SHAPE", ITEMS, [[3, 1], [3, 1], [2, 2]]),
        ("BATCH_ITEM_SHAPE", ONES, [[2], [4], [1], [3]]),
        ("BATCH_ITEM_SHAPE_FLATTEN", ITEMS, [3, 1, 3, 1, 2, 2]),
    ],
)
def test_what_a_batch_is_made_of(
    kind: str, shapes: list[tuple[int, ...]], expected: list[Any]
) -> None:
    assert composed(kind, shapes, batches=True).tolist() == expected


def test_the_largest_count_is_told_by_a_shape() -> None:
    assert composed("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", ONES, batches=True).shape == (4,)


def test_a_request_of_a_model_that_does_not_batch_is_one_item() -> None:
    assert composed("BATCH_ITEM_SHAPE", [(3, 2)], batches=False).tolist() == [[3, 2]]
    assert composed("BATCH_ITEM_SHAPE_FLATTEN", [(3, 2)], batches=False).tolist() == [3, 2]


TEXT = """
name: "m" backend: "b" max_batch_size: 8
input {{ name: "X" data_type: {kind} dims: [ -1 ] allow_ragged_batch: true }}
input {{ name: "N" data_type: TYPE_INT32 dims: [ 1 ] }}
output {{ name: "Y" data_type: {kind} dims: [ -1 ] }}
output {{ name: "Z" data_type: TYPE_INT32 dims: [ 1 ] }}
batch_input {{
  kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: [ "ENDS", "SAME" ] data_type: TYPE_FP32
  source_input: "X"
}}
batch_output {{ target_name: "Y" source_input: "X" }}
"""


def config_of(kind: str = "TYPE_FP32") -> ModelConfig:
    return parse_text(TEXT.format(kind=kind), "m")


def laid_out(config: ModelConfig, arrays: Sequence[Any]) -> list[Batch]:
    """The batch as a worker in a process gets it, and as one in a thread does. Each request holds
    one of the arrays as `X`, and its number as `N`."""
    schema, checker = Schema.of(config), RequestChecker(config)
    requests = []
    for i, array in enumerate(arrays):
        numbers = np.full((array.shape[0], 1), i, np.int32)
        tensors = (Tensor.from_numpy("X", array), Tensor.from_numpy("N", numbers))
        requests.append(InferRequest("m", tensors, id=str(i)))
    checked = [checker.check(request) for request in requests]
    assert len({each.key for each in checked}) == 1, "they may not share a batch"
    ready, sizes = [each.request for each in checked], [each.size for each in checked]
    plan = descriptors.plan(ready, schema)
    block = memoryview(bytearray(plan.total))
    descriptors.gather(plan, block)
    message = descriptors.execute_message(plan, sizes, schema, (1, 2, 3))
    remote = descriptors.read_execute(message[HEADER_SIZE:], schema, block, ("m", 1))
    if len(arrays) == 1:
        return [remote, descriptors.alone(ready, sizes, schema, 3)]
    return [remote, descriptors.lay_out(plan, sizes, schema, block)]


ROWS = [np.arange(6).reshape(2, 3), np.arange(6, 7).reshape(1, 1), np.arange(7, 11).reshape(1, 4)]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["TYPE_FP32", "TYPE_STRING"])
def test_a_ragged_input_is_one_dimension_and_each_request_keeps_its_shape(
    kind: str, count: int
) -> None:
    dtype: Any = object if kind == "TYPE_STRING" else np.float32
    arrays = [row.astype(dtype) for row in ROWS[:count]]
    for batch in laid_out(config_of(kind), arrays):
        stacked = batch.stacked["X"]
        flat = [element for array in arrays for element in array.reshape(-1).tolist()]
        expected = [str(e).encode() for e in flat] if dtype is object else flat
        assert stacked.shape == (len(flat),)
        assert stacked.as_numpy().tolist() == expected
        own = [request.inputs[0].shape for request in batch]
        assert own == [array.shape for array in arrays]
        assert list(batch.sizes) == [array.shape[0] for array in arrays]


def test_what_is_made_of_a_batch_stands_beside_its_inputs() -> None:
    for batch in laid_out(config_of(), [row.astype(np.float32) for row in ROWS]):
        assert batch.stacked["ENDS"].as_numpy().tolist() == [6.0, 7.0, 11.0]
        assert batch.stacked["SAME"].as_numpy().dtype == np.float32
        assert batch.stacked["SAME"].as_numpy().tolist() == [6.0, 7.0, 11.0]
        assert batch.stacked["N"].shape == (4, 1)
        assert set(batch.stacked) == {"X", "N", "ENDS", "SAME"}
        assert [len(request.inputs) for request in batch] == [2, 2, 2]


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 5)), min_size=1, max_size=4))
def test_an_output_like_a_ragged_input_gives_each_request_its_own_back(
    shapes: list[tuple[int, int]],
) -> None:
    for kind, dtype in (("TYPE_INT64", np.int64), ("TYPE_STRING", object)):
        whole = np.arange(sum(a * b for a, b in shapes)).astype(dtype)
        arrays, start = [], 0
        for rows, columns in shapes:
            end = start + rows * columns
            arrays.append(whole[start:end].reshape(rows, columns))
            start = end
        for batch in laid_out(config_of(kind), arrays):
            flat = Tensor("Y", batch.stacked["X"].datatype, (start,), batch.stacked["X"].data)
            items = Tensor.from_numpy("Z", np.arange(batch.size, dtype=np.int32).reshape(-1, 1))
            responses = batch.split([flat, items])
            for request, response in zip(batch, responses, strict=True):
                y, z = response.outputs
                assert y.shape == request.inputs[0].shape
                assert bytes(y.data) == bytes(request.inputs[0].data)
                assert len(responses) == 1 or z.shape[0] == request.inputs[0].shape[0]


def test_an_output_with_too_few_elements_is_an_error() -> None:
    batch = laid_out(config_of(), [row.astype(np.float32) for row in ROWS])[0]
    with pytest.raises(
        Internal, match=r"output tensor 'Y' of shape \[10\] over requests that want"
    ):
        batch.split([Tensor.from_numpy("Y", np.zeros(10, np.float32))])
    batch.split([Tensor.from_numpy("Y", np.zeros(12, np.float32))])


def test_pieces_have_the_dimensions_of_the_output_but_for_those_of_its_source() -> None:
    text = """
    name: "m" backend: "b" max_batch_size: 4
    input { name: "X" data_type: TYPE_FP32 dims: [ 6, -1 ] reshape { shape: [ 2, -1, 3 ] } }
    output { name: "Y" data_type: TYPE_FP32 dims: [ 1, -1, 2 ] }
    output { name: "Z" data_type: TYPE_FP32 dims: [ 5, -1 ] reshape { shape: [ 5, -1, 1 ] } }
    batch_output { target_name: [ "Y", "Z" ] source_input: "X" }
    """
    composition = Composition.of(parse_text(text, "m"))
    assert composition is not None
    requests = [
        InferRequest("m", (Tensor.from_numpy("X", np.zeros((1, 2, n, 3), np.float32)),))
        for n in (4, 1)
    ]
    for name, shapes in (("Y", [(1, 1, 4, 2), (1, 1, 1, 2)]), ("Z", [(1, 5, 4, 1), (1, 5, 1, 1)])):
        output = Tensor.from_numpy(name, np.zeros(25, np.float32))
        pieces = composition.pieces(output, requests)
        assert pieces is not None
        assert [piece.shape for piece in pieces] == shapes


def test_what_is_made_of_an_input_that_is_left_out_is_left_out_as_well() -> None:
    text = """
    name: "m" backend: "b" max_batch_size: 4
    input { name: "X" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true optional: true }
    input { name: "N" data_type: TYPE_INT32 dims: [ 1 ] }
    output { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] }
    batch_input { target_name: "COUNT" data_type: TYPE_INT32 source_input: "X" }
    """
    composition = Composition.of(parse_text(text, "m"))
    assert composition is not None
    n = Tensor.from_numpy("N", np.zeros((1, 1), np.int32))
    assert set(composition.stacked([InferRequest("m", (n,))], {"N": n})) == {"N"}


def test_a_plain_model_has_no_composition() -> None:
    text = 'input { name: "X" data_type: TYPE_FP32 dims: [ -1 ] }'
    assert Composition.of(parse_text(text, "m")) is None


SHAPED = """
name: "m" backend: "tensorrt" platform: "tensorrt_plan" max_batch_size: 4
input { name: "X" data_type: TYPE_FP32 dims: [ 2 ] }
input { name: "S" data_type: TYPE_INT32 dims: [ 3 ] is_shape_tensor: true }
output { name: "Y" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "T" data_type: TYPE_INT32 dims: [ 3 ] is_shape_tensor: true }
"""


def test_shape_tensors_have_no_batch_dimension_and_are_the_same_for_a_batch() -> None:
    config = parse_text(SHAPED, "m")
    checker, schema = RequestChecker(config), Schema.of(config)

    def ask(*numbers: int) -> Any:
        x = Tensor.from_numpy("X", np.zeros((1, 2), np.float32))
        s = Tensor.from_numpy("S", np.array(numbers, np.int32))
        return checker.check(InferRequest("m", (x, s)))

    one, same, other = ask(1, 2, 3), ask(1, 2, 3), ask(1, 2, 4)
    assert one.key == same.key != other.key
    assert one.size == 1
    plan = descriptors.plan([one.request, same.request], schema)
    block = memoryview(bytearray(plan.total))
    descriptors.gather(plan, block)
    batch = descriptors.lay_out(plan, [1, 1], schema, block)
    assert batch.stacked["X"].shape == (2, 2)
    assert batch.stacked["S"].as_numpy().tolist() == [1, 2, 3]
    responses = batch.split(
        [
            Tensor.from_numpy("Y", np.zeros((2, 2), np.float32)),
            Tensor.from_numpy("T", np.array([7, 8, 9], np.int32)),
        ]
    )
    for response in responses:
        assert [t.as_numpy().shape for t in response.outputs] == [(1, 2), (3,)]
