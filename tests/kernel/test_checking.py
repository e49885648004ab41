"""Requests against a model's configuration: every phrase that clients may match, and what a good
request becomes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import (
    InferRequest,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    RegionPart,
    Reshape,
    Tensor,
    encode_bytes,
    unknown_type,
)
from microkernel.models.checking import Checked, RequestChecker
from microkernel.tensor import BY_CONFIG_NAME, BYTES, FP32, INT32

A = ModelInput("A", "TYPE_FP32", dims=(-1, 2))
B = ModelInput("B", "TYPE_INT32", dims=(4,))
TEXT = ModelInput("T", "TYPE_STRING", dims=(2,))
FLEXIBLE = ModelInput("O", "TYPE_FP32", dims=(1,), optional=True)


def config_of(*inputs: ModelInput, largest: int = 8) -> ModelConfig:
    outputs = (ModelOutput("Y", "TYPE_FP32", (1,)), ModelOutput("Z", "TYPE_FP32", (1,)))
    return ModelConfig(name="m", max_batch_size=largest, input=inputs, output=outputs)


def a(*shape: int, name: str = "A") -> Tensor:
    return Tensor.from_numpy(name, np.zeros(shape, np.float32))


def b(*shape: int) -> Tensor:
    return Tensor.from_numpy("B", np.zeros(shape, np.int32))


def o(*shape: int) -> Tensor:
    return a(*shape, name="O")


def text(shape: Sequence[int], data: bytes) -> Tensor:
    return Tensor("T", BYTES, tuple(shape), data)


def check(config: ModelConfig, *inputs: Tensor, **fields: Any) -> Checked:
    return RequestChecker(config).check(InferRequest("m", inputs, **fields))


TWO = config_of(A, B)
PLAIN = config_of(A, B, largest=0)
SOME = config_of(A, B, FLEXIBLE)
WORDS = config_of(TEXT)
TAIL = "Please provide all required input(s)."
NOTE = "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension"

FAULTS = [
    pytest.param(
        TWO,
        (a(1, 1, 2),),
        f"expected 2 inputs but got 1 inputs for model 'm'. Got input(s) ['A'], but missing "
        f"required input(s) ['B']. {TAIL}",
        id="too few",
    ),
    pytest.param(
        TWO,
        (),
        f"expected 2 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing required "
        f"input(s) ['A','B']. {TAIL}",
        id="none",
    ),
    pytest.param(
        TWO,
        (a(1, 1, 2), b(1, 4), o(1, 1)),
        f"expected 2 inputs but got 3 inputs for model 'm'. Got input(s) ['A','B','O'], but "
        f"missing required input(s) []. {TAIL}",
        id="too many",
    ),
    pytest.param(
        SOME,
        (a(1, 1, 2),),
        f"expected number of inputs between 2 and 3 but got 1 inputs for model 'm'. Got input(s) "
        f"['A'], but missing required input(s) ['B']. {TAIL}",
        id="optional, too few",
    ),
    pytest.param(
        SOME,
        (a(1, 1, 2), o(1, 1)),
        f"expected number of inputs between 2 and 3 but got 2 inputs for model 'm'. Got input(s) "
        f"['A','O'], but missing required input(s) ['B']. {TAIL}",
        id="optional, right count",
    ),
    pytest.param(
        TWO, (a(1, 1, 2), a(1, 1, 2)), "input 'A' already exists in request", id="repeated"
    ),
    pytest.param(
        TWO,
        (a(), b()),
        "input 'A' has no shape but model requires batch dimension for 'm'",
        id="rank 0",
    ),
    pytest.param(
        TWO,
        (a(2, 1, 2), b(3, 4)),
        "input 'B' batch size does not match other inputs for 'm'",
        id="batch sizes",
    ),
    pytest.param(
        TWO, (a(9, 1, 2), b(9, 4)), "inference request batch-size must be <= 8 for 'm'", id="large"
    ),
    pytest.param(
        TWO,
        (a(1, 1, 2), replace(b(1, 4), datatype=FP32)),
        "inference input 'B' data-type is 'FP32', but model 'm' expects 'INT32'",
        id="data type",
    ),
    pytest.param(
        TWO,
        (a(1, 1, 2), replace(b(1, 4), datatype=unknown_type("int32" + "x" * 200))),
        "inference input 'B' data-type is '<invalid>', but model 'm' expects 'INT32'; 'int32"
        f"{'x' * 95}' is no data type",
        id="no data type",
    ),
    pytest.param(
        TWO,
        (a(2, 1, 2), b(2, 8)),
        f"unexpected shape for input 'B' for model 'm'. Expected [-1,4], got [2,8]. {NOTE}",
        id="shape",
    ),
    pytest.param(
        TWO,
        (a(2, 3, 3), b(2, 4)),
        f"unexpected shape for input 'A' for model 'm'. Expected [-1,-1,2], got [2,3,3]. {NOTE}",
        id="shape, variable",
    ),
    pytest.param(
        TWO,
        (a(2, 3), b(2, 4)),
        f"unexpected shape for input 'A' for model 'm'. Expected [-1,-1,2], got [2,3]. {NOTE}",
        id="rank",
    ),
    pytest.param(
        PLAIN,
        (a(1, 2), b(5)),
        "unexpected shape for input 'B' for model 'm'. Expected [4], got [5]. ",
        id="shape without batching",
    ),
    pytest.param(
        TWO,
        (replace(a(1, 2, 2), shape=(-1, -2, 2)), replace(b(1, 4), shape=(-1, 4))),
        "All input dimensions should be specified for input 'A' for model 'm', got [-1,-2,2]",
        id="negative",
    ),
    pytest.param(
        PLAIN,
        (replace(a(1, 2), shape=(-1, -2)), b(4)),
        "All input dimensions should be specified for input 'A' for model 'm', got [-1,-2]",
        id="negative, but the sizes agree",
    ),
    pytest.param(
        TWO,
        (a(1, 1, 2), replace(b(1, 4), data=b"short")),
        "input byte size mismatch for input 'B' for model 'm'. Expected 16, got 5",
        id="bytes",
    ),
    pytest.param(
        TWO,
        (a(0, 1, 2), b(0, 4)),
        "input byte size mismatch for input 'A' for model 'm'. Expected 8, got 0",
        id="a batch of none counts as one",
    ),
    pytest.param(
        WORDS,
        (text([1, 2], encode_bytes([b"one"])),),
        "expected 2 string elements for inference input 'T' for model 'm', got 1",
        id="strings, too few",
    ),
    pytest.param(
        WORDS,
        (text([0, 2], b""),),
        "expected 2 string elements for inference input 'T' for model 'm', got 0",
        id="strings, a batch of none",
    ),
    pytest.param(
        WORDS,
        (text([1, 2], encode_bytes([b"1", b"2", b"3"])),),
        "unexpected number of string elements 3 for inference input 'T' for model 'm', expecting 2",
        id="strings, too many",
    ),
    pytest.param(
        WORDS,
        (text([1, 2], encode_bytes([b"1"]) + b"\x01\0"),),
        "incomplete string length indicator for inference input 'T' for model 'm', expecting 4 "
        "bytes but only 2 bytes available",
        id="strings, cut in a length",
    ),
]


@pytest.mark.parametrize(("config", "inputs", "phrase"), FAULTS)
@pytest.mark.parametrize(
    ("request_id", "tag"), [("", "[request id: <id_unknown>] "), ("7", "[request id: 7] ")]
)
def test_what_does_not_fit_is_said_in_triton_s_words(
    config: ModelConfig, inputs: tuple[Tensor, ...], phrase: str, request_id: str, tag: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check(config, *inputs, id=request_id)
    assert str(caught.value).startswith(tag + phrase)
    assert NOTE in phrase or str(caught.value) == tag + phrase


@pytest.mark.parametrize(("config", "inputs", "phrase"), FAULTS)
def test_what_does_not_fit_is_seen_before_it_is_read_from_shared_memory(
    config: ModelConfig, inputs: tuple[Tensor, ...], phrase: str
) -> None:
    empty = tuple(replace(tensor, data=b"") for tensor in inputs)
    parts = {tensor.name: RegionPart("r", len(tensor.data)) for tensor in inputs}
    request = InferRequest("m", empty, shared_inputs=parts)
    told = None
    try:
        RequestChecker(config).check_ahead(request)
    except InvalidArgument as error:
        told = str(error)
    in_the_elements = "string" in phrase
    assert (told is None) == in_the_elements
    assert told is None or phrase in told


WITHOUT_TAG = [
    pytest.param(
        TWO,
        (a(1, 1, 2), b(1, 4)),
        ("Y", "X"),
        "unexpected inference output 'X' for model 'm'",
        id="output",
    ),
    pytest.param(
        TWO,
        (a(1, 1, 2), a(1, 4, name="C")),
        (),
        "unexpected inference input 'C' for model 'm'",
        id="input",
    ),
    pytest.param(
        WORDS,
        (text([1, 2], encode_bytes([b"1", b"22"])[:-1]),),
        (),
        "incomplete string data for inference input 'T', expecting string of length 2 but only 1 "
        "bytes available",
        id="strings, cut in an element",
    ),
]


@pytest.mark.parametrize(("config", "inputs", "outputs", "text"), WITHOUT_TAG)
def test_some_phrases_lack_the_request_s_id(
    config: ModelConfig, inputs: tuple[Tensor, ...], outputs: tuple[str, ...], text: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check(config, *inputs, id="7", outputs=outputs)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("config", "inputs", "size"),
    [
        (TWO, (a(3, 1, 2), b(3, 4)), 3),
        (TWO, (a(8, 0, 2), b(8, 4)), 8),
        (PLAIN, (a(5, 2), b(4)), 1),
        (WORDS, (text([2, 2], encode_bytes([b"a", b"", b"c", b"d"])),), 2),
        (config_of(replace(TEXT, dims=(-1,))), (text([1, 0], b""),), 1),
        (config_of(A), (a(0, 0, 2),), 1),
        (config_of(), (), 1),
        (config_of(FLEXIBLE), (), 1),
        (config_of(ModelInput("S", "TYPE_FP32", dims=(1,)), largest=0), (a(1, name="S"),), 1),
    ],
)
def test_a_good_request_has_a_size(
    config: ModelConfig, inputs: tuple[Tensor, ...], size: int
) -> None:
    checked = check(config, *inputs)
    assert checked.size == size
    assert checked.request.inputs == inputs


def test_a_good_request_is_handed_on_as_it_is() -> None:
    request = InferRequest("m", (a(1, 1, 2), b(1, 4)), outputs=("Z",))
    assert RequestChecker(TWO).check(request).request is request


def test_inputs_come_in_the_configuration_s_order() -> None:
    checked = check(SOME, o(1, 1), b(1, 4), a(1, 1, 2), id="7", priority=3)
    assert [tensor.name for tensor in checked.request.inputs] == ["A", "B", "O"]
    assert (checked.request.id, checked.request.priority) == ("7", 3)


@pytest.mark.parametrize(
    ("inputs", "others", "together"),
    [
        ((a(1, 1, 2), b(1, 4)), (a(3, 1, 2), b(3, 4)), True),
        ((a(1, 1, 2), b(1, 4)), (b(3, 4), a(3, 1, 2)), True),
        ((a(1, 1, 2), b(1, 4)), (a(1, 5, 2), b(1, 4)), False),
        ((a(1, 1, 2), b(1, 4)), (a(1, 1, 2), b(1, 4), o(1, 1)), False),
        ((a(1, 1, 2), b(1, 4), o(1, 1)), (a(1, 1, 2), b(1, 4), o(1, 1)), True),
    ],
)
def test_only_requests_of_one_shape_and_with_the_same_inputs_share_a_batch(
    inputs: tuple[Tensor, ...], others: tuple[Tensor, ...], *, together: bool
) -> None:
    one, other = check(SOME, *inputs), check(SOME, *others)
    assert (one.key == other.key) is together
    assert (hash(one.key) == hash(other.key)) or not together


def test_what_is_asked_for_does_not_matter_for_sharing_a_batch() -> None:
    one = check(TWO, a(1, 1, 2), b(1, 4), outputs=("Y",), parameters={"k": 1}, priority=2)
    assert one.key == check(TWO, a(1, 1, 2), b(1, 4)).key


def test_the_backend_sees_the_reshaped_input() -> None:
    reshaped = config_of(replace(A, reshape=Reshape((2, -1))), B)
    checked = check(reshaped, a(3, 5, 2), b(3, 4))
    assert [tensor.shape for tensor in checked.request.inputs] == [(3, 2, 5), (3, 4)]
    assert checked.request.inputs[0].nbytes == 3 * 5 * 2 * 4


@given(st.lists(st.binary(max_size=5), max_size=6), st.integers(0, 6))
def test_strings_are_counted_as_a_reader_would(elements: list[bytes], count: int) -> None:
    config = config_of(replace(TEXT, dims=(-1,)), largest=0)
    tensor = text([count], encode_bytes(elements))
    if len(elements) == count:
        assert check(config, tensor).request.inputs[0].as_numpy().tolist() == elements
        return
    with pytest.raises(InvalidArgument, match="string elements"):
        check(config, tensor)


def test_a_wrong_type_is_found_also_behind_right_sizes() -> None:
    tensor = Tensor("A", INT32, (1, 1, 2), bytes(8))
    with pytest.raises(InvalidArgument, match="data-type is 'INT32', but model 'm' expects 'FP32'"):
        check(TWO, tensor, b(1, 4))


@pytest.mark.parametrize(
    ("kind", "largest", "shape", "refused"),
    [
        ("TYPE_FP32", 0, (3, 0, 2), False),
        ("TYPE_FP32", 0, (0, 2**40, 2**40), True),
        ("TYPE_FP32", 0, (2**63 - 1, 0, 2**63 - 1), True),
        ("TYPE_FP32", 0, (0, 2**30, 2**30), False),
        ("TYPE_FP32", 0, (0, 2**31, 2**30), True),
        ("TYPE_BOOL", 0, (0, 1, 2**63 - 1), False),
        ("TYPE_STRING", 0, (0, 2**30, 2**29), False),
        ("TYPE_STRING", 0, (0, 2**30, 2**30), True),
        ("TYPE_BOOL", 8, (1, 0, 2**60 - 1), False),
        ("TYPE_BOOL", 8, (1, 0, 2**60), True),
    ],
)
def test_dims_of_nothing_are_such_that_libraries_can_make_arrays_of_them(
    kind: str, largest: int, shape: tuple[int, ...], *, refused: bool
) -> None:
    dims = (-1,) * (len(shape) - (largest > 0))
    config = config_of(ModelInput("A", kind, dims=dims), largest=largest)
    tensor = Tensor("A", BY_CONFIG_NAME[kind], shape, b"")
    if refused:
        with pytest.raises(InvalidArgument, match="byte size overflow for input 'A'"):
            check(config, tensor)
        return
    checked = check(config, tensor).request.inputs[0]
    assert checked.as_numpy().shape == shape
    whole = (max(largest, shape[0]), *shape[1:])
    assert np.empty(whole, checked.datatype.numpy).shape == whole
