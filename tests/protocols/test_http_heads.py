"""A text that is remembered means what it meant when it was read."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import InferRequest, MicrokernelError
from microkernel_http.decode import Limits, OutputForms, decode
from microkernel_http.heads import LONGEST, MOST, Heads

LIMITS = Limits()


def entry(name: str, size: int, **fields: Any) -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    return {"name": name, "datatype": "UINT8", "shape": [size], "parameters": parameters} | fields


def text(*inputs: dict[str, Any], **members: Any) -> bytes:
    return json.dumps({"inputs": inputs, **members}).encode()


def as_read(found: tuple[InferRequest, OutputForms]) -> tuple[InferRequest, OutputForms]:
    """With the data of tensors as bytes, so that it can be compared."""
    for tensor in found[0].inputs:
        tensor.data = bytes(tensor.data)
    return found


def both(heads: Heads, head: bytes, data: bytes) -> None:
    body = head + data
    found = as_read(heads.decode(body, len(head), "m", 3))
    assert found == as_read(decode(body, len(head), "m", 3, LIMITS))


def remembered(heads: Heads, monkeypatch: pytest.MonkeyPatch, head: bytes, data: bytes) -> bool:
    """Whether a body is decoded without being read."""
    read = []

    def watched(*given: Any) -> Any:
        read.append(given)
        return decode(*given)

    with monkeypatch.context() as patched:
        patched.setattr("microkernel_http.heads.decode", watched)
        heads.decode(head + data, len(head), "m", 3)
    return not read


OUTPUTS: list[dict[str, Any]] = [
    {"name": "A", "parameters": {"binary_data": True}},
    {"name": "B", "parameters": {"classification": 2}},
    {"name": "C", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8}},
]
PARAMETERS = {"priority": 2, "timeout": 5, "sequence_id": 7, "sequence_start": True, "mine": "x"}


@given(
    datas=st.lists(st.lists(st.binary(max_size=8), min_size=2, max_size=2), min_size=1, max_size=6),
    outputs=st.lists(st.sampled_from(OUTPUTS), unique_by=lambda output: output["name"]),
    parameters=st.dictionaries(st.sampled_from(sorted(PARAMETERS)), st.none()),
    identity=st.sampled_from([{}, {"id": "one"}]),
)
def test_what_is_decoded_does_not_depend_on_what_is_remembered(
    datas: list[list[bytes]],
    outputs: list[dict[str, Any]],
    parameters: dict[str, None],
    identity: dict[str, str],
) -> None:
    heads = Heads(LIMITS)
    given = {key: PARAMETERS[key] for key in parameters}
    for first, second in datas * 2:
        inputs = entry("X", len(first)), entry("Y", len(second))
        both(heads, text(*inputs, outputs=outputs, parameters=given, **identity), first + second)


def test_the_same_text_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, head = Heads(LIMITS), text(entry("X", 4))
    assert [remembered(heads, monkeypatch, head, data) for data in (b"abcd", b"efgh")] == [
        False,
        True,
    ]
    both(heads, head, b"ijkl")


@pytest.mark.parametrize(
    ("head", "data"),
    [
        (text(entry("X", 4), id="one"), b"abcd"),
        (text(entry("X", 1, data=[1], parameters={}), entry("Y", 4)), b"abcd"),
        (text(entry("X", 4), outputs=[{"name": "A" * LONGEST}]), b"abcd"),
        (
            text(
                entry(
                    "X",
                    4,
                    parameters={"shared_memory_region": "r", "shared_memory_byte_size": 4},
                ),
                entry("Y", 4),
            ),
            b"abcd",
        ),
        (text(entry("X", 1, data=[1], parameters={})), b""),
    ],
    ids=["id", "data in the text", "long", "shared memory", "nothing after it"],
)
def test_what_is_not_remembered(monkeypatch: pytest.MonkeyPatch, head: bytes, data: bytes) -> None:
    heads = Heads(LIMITS)
    assert [remembered(heads, monkeypatch, head, data) for _ in range(2)] == [False, False]


@pytest.mark.parametrize("data", [b"abc", b"abcde"])
def test_a_text_that_is_remembered_does_not_excuse_a_wrong_size(data: bytes) -> None:
    heads, head = Heads(LIMITS), text(entry("X", 4))
    both(heads, head, b"abcd")
    with pytest.raises(MicrokernelError) as expected:
        decode(head + data, len(head), "m", 3, LIMITS)
    with pytest.raises(type(expected.value), match=str(expected.value)):
        heads.decode(head + data, len(head), "m", 3)


def test_requests_of_one_text_share_no_tensors() -> None:
    heads, head = Heads(LIMITS), text(entry("X", 4))
    found = [
        heads.decode(head + data, len(head), "m", 3)[0] for data in (b"abcd", b"efgh", b"ijkl")
    ]
    assert [bytes(request.inputs[0].data) for request in found] == [b"abcd", b"efgh", b"ijkl"]


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, texts = Heads(LIMITS), [text(entry(f"X{i}", 1)) for i in range(MOST + 1)]
    for head in texts:
        heads.decode(head + b"a", len(head), "m", 3)
    assert remembered(heads, monkeypatch, texts[-1], b"b")
    assert not any(remembered(Heads(LIMITS), monkeypatch, head, b"b") for head in texts[:1])
    assert not remembered(heads, monkeypatch, texts[0], b"b")


def test_what_a_model_does_to_its_parameters_is_forgotten() -> None:
    heads, head = Heads(LIMITS), text(entry("X", 4), parameters={"mine": "x"})
    for _ in range(3):
        request, _ = heads.decode(head + b"abcd", len(head), "m", 3)
        assert request.parameters == {"mine": "x"}
        request.parameters.clear()  # type: ignore[attr-defined]  # what nobody should do
