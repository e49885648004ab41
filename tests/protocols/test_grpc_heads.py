"""A message that is remembered means what it meant when it was read."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("google.protobuf", reason="the extra 'grpc' is missing")

from microkernel import InferRequest, MicrokernelError
from microkernel_grpc.decode import decode, parse
from microkernel_grpc.heads import LONGEST, MOST, Heads
from microkernel_grpc.schema import message

OUTPUTS: list[dict[str, Any]] = [
    {"name": "A"},
    {"name": "B", "parameters": {"classification": {"int64_param": 2}}},
]
PARAMETERS: dict[str, Any] = {
    "priority": {"int64_param": 2},
    "sequence_id": {"string_param": "s"},
    "mine": {"bool_param": True},
}


def packed(*datas: bytes, **fields: Any) -> bytes:
    inputs = [
        {"name": f"X{i}", "datatype": "UINT8", "shape": [len(data)]} for i, data in enumerate(datas)
    ]
    infer: Any = message("ModelInferRequest")(
        **{"model_name": "m", "inputs": inputs, "raw_input_contents": datas} | fields
    )
    found: bytes = infer.SerializeToString()
    return found


def as_read(request: InferRequest) -> InferRequest:
    """With the data of tensors as bytes, so that it can be compared."""
    for tensor in request.inputs:
        tensor.data = bytes(tensor.data)
    return request


def read(data: bytes) -> InferRequest:
    return as_read(decode(*parse(data)))


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=4),
    fills=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    outputs=st.lists(st.sampled_from(OUTPUTS), unique_by=lambda output: output["name"]),
    parameters=st.dictionaries(st.sampled_from(sorted(PARAMETERS)), st.none()),
)
def test_the_same_message_with_other_tensors(
    sizes: list[int],
    fills: tuple[int, int],
    outputs: list[dict[str, Any]],
    parameters: dict[str, None],
) -> None:
    first, second = (
        packed(
            *(bytes([fill]) * size for size in sizes),
            outputs=outputs,
            parameters={key: PARAMETERS[key] for key in parameters},
        )
        for fill in fills
    )
    heads = Heads()
    assert heads.again(first) is None
    heads.remember(first, read(first))
    found = heads.again(second)
    assert found is not None
    assert as_read(found) == read(second)


@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_a_message_that_differs_is_never_taken_for_another(
    sizes: list[int], changes: list[tuple[int, int]]
) -> None:
    first = packed(*(b"a" * size for size in sizes), outputs=OUTPUTS)
    heads, other = Heads(), bytearray(first)
    heads.remember(first, read(first))
    for at, byte in changes:
        other[at % len(other)] = byte
    found = heads.again(bytes(other))
    if found is not None:
        assert as_read(found) == read(bytes(other))


@pytest.mark.parametrize(
    "data",
    [
        packed(b"abcd", id="one"),
        packed(b"abcd", outputs=[{"name": "A" * LONGEST}]),
        packed(raw_input_contents=[]),
        packed(
            inputs=[
                {
                    "name": "X",
                    "datatype": "UINT8",
                    "shape": [1],
                    "contents": {"uint_contents": [1]},
                }
            ]
        ),
        packed(
            inputs=[
                {
                    "name": "X",
                    "datatype": "UINT8",
                    "shape": [4],
                    "parameters": {
                        "shared_memory_region": {"string_param": "r"},
                        "shared_memory_byte_size": {"int64_param": 4},
                    },
                }
            ]
        ),
    ],
    ids=["id", "long", "nothing", "contents", "shared memory"],
)
def test_what_is_not_remembered(data: bytes) -> None:
    heads = Heads()
    heads.remember(data, read(data))
    assert heads.again(data) is None


@pytest.mark.parametrize("other", [packed(b"abcde"), packed(b"abcd", b""), b"", b"\xff" * 30])
def test_another_message_is_not_remembered(other: bytes) -> None:
    heads, data = Heads(), packed(b"abcd")
    heads.remember(data, read(data))
    assert heads.again(other) is None


def test_only_so_many_are_remembered() -> None:
    heads, datas = Heads(), [packed(b"a" * size) for size in range(MOST + 1)]
    for data in datas:
        heads.remember(data, read(data))
    assert heads.again(datas[0]) is None
    assert heads.again(datas[-1]) is not None


def test_a_fault_is_a_fault_each_time() -> None:
    data = packed(b"abcd", inputs=[{"name": "X", "datatype": "INT8", "shape": [-4]}])
    heads = Heads()
    for _ in range(2):
        assert heads.again(data) is None
        with pytest.raises(MicrokernelError, match="All input dimensions should be specified"):
            read(data)


def test_what_a_model_does_to_its_parameters_is_forgotten() -> None:
    heads, data = Heads(), packed(b"abcd", parameters={"mine": {"bool_param": True}})
    heads.remember(data, read(data))
    for _ in range(2):
        request = heads.again(data)
        assert request is not None
        assert request.parameters == {"mine": True}
        request.parameters.clear()  # type: ignore[attr-defined]  # what nobody should do
