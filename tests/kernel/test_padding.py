"""Requests of different lengths made equal, and what came of them cut back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import (
    DATA_TYPES,
    DynamicBatching,
    InferRequest,
    InvalidArgument,
    ModelConfig,
    Tensor,
)
from microkernel.config.padding import element
from microkernel.config.parse import parse_text
from microkernel.config.validate import problems
from microkernel.models.checking import RequestChecker
from microkernel.models.padding import SHORT, Padding
from microkernel.scheduling.pending import Pending
from microkernel.scheduling.policy import Batching, Dispatch, Joins

HEAD = """
name: "m" backend: "b" max_batch_size: 8
input { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }
input { name: "kinds" data_type: TYPE_INT32 dims: [ -1 ] }
input { name: "mask" data_type: TYPE_INT64 dims: [ -1 ] }
input { name: "fixed" data_type: TYPE_FP32 dims: [ 2 ] }
input { name: "words" data_type: TYPE_STRING dims: [ -1 ] }
input { name: "image" data_type: TYPE_UINT8 dims: [ -1, -1 ] }
input { name: "heap" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }
output { name: "hidden" data_type: TYPE_FP32 dims: [ -1, 2 ] }
output { name: "pooled" data_type: TYPE_FP32 dims: [ 2 ] }
"""


def parameters(**given: str) -> str:
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in given.items()
    )


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"PAD_TO_LONGEST": "ids, kinds", "PAD_VALUE": "ids=3"}, ""),
        ({"PAD_TO_LONGEST": "ids", "PAD_MASK": "mask", "PAD_CUT": "hidden"}, ""),
        ({"PAD_MASK": "mask"}, "parameter PAD_MASK needs PAD_TO_LONGEST to name inputs for m"),
        ({"PAD_TO_LONGEST": "idz"}, "input 'idz', which is not in the configuration for m"),
        ({"PAD_TO_LONGEST": "fixed"}, "has 0 variable dimensions where it must have one for m"),
        ({"PAD_TO_LONGEST": "image"}, "has 2 variable dimensions where it must have one for m"),
        ({"PAD_TO_LONGEST": "words"}, "is of TYPE_STRING and cannot be padded for m"),
        ({"PAD_TO_LONGEST": "heap"}, "needs no padding, being ragged or a shape tensor, for m"),
        ({"PAD_TO_LONGEST": "ids", "PAD_MASK": "fixed"}, "PAD_MASK names input 'fixed', which has"),
        (
            {"PAD_TO_LONGEST": "ids", "PAD_CUT": "pooled"},
            "PAD_CUT names output 'pooled', which has",
        ),
        ({"PAD_TO_LONGEST": "ids", "PAD_CUT": "ids"}, "names output 'ids', which is not in the"),
        ({"PAD_TO_LONGEST": "ids", "PAD_VALUE": "kinds=1"}, "input 'kinds', which is not padded"),
        ({"PAD_LIMIT": "2"}, "parameter PAD_LIMIT needs PAD_TO_LONGEST to name inputs for m"),
        ({"PAD_TO_LONGEST": "ids", "PAD_LIMIT": "2"}, "PAD_LIMIT needs 'dynamic_batching' for m"),
        (
            {"PAD_TO_LONGEST": "ids", "PAD_VALUE": "1.5"},
            "parameter PAD_VALUE gives '1.5' for input 'ids', which is no value of TYPE_INT64",
        ),
        (
            {"PAD_TO_LONGEST": "kinds", "PAD_VALUE": "kinds=2147483648"},
            "gives '2147483648' for input 'kinds', which is no value of TYPE_INT32, for m",
        ),
    ],
)
def test_parameters_that_cannot_be_meant_are_refused(given: dict[str, str], fault: str) -> None:
    found = problems(parse_text(HEAD + parameters(**given), "m"))
    assert len(found) == bool(fault)
    assert not fault or fault in found[0]


@given(
    st.fixed_dictionaries(
        {"PAD_TO_LONGEST": st.sampled_from(["ids", "kinds,ids", "fixed", "", "mask"])},
        optional={
            "PAD_VALUE": st.text(st.sampled_from("ids=knd,-+1e5.naf "), max_size=12),
            "PAD_MASK": st.sampled_from(["mask", "ids", "words", " "]),
            "PAD_CUT": st.text(st.sampled_from("hiden,"), max_size=8),
        },
    )
)
def test_whatever_the_parameters_say_they_are_refused_or_kept(given: dict[str, str]) -> None:
    config = parse_text(HEAD + parameters(**given), "m")
    if not problems(config):
        Padding.of(config)
        RequestChecker(config)


@pytest.mark.parametrize("limit", ["0.99", "x", "nan", "-1"])
def test_a_limit_that_is_none_is_refused(limit: str) -> None:
    text = HEAD + parameters(PAD_TO_LONGEST="ids", PAD_LIMIT=limit) + "dynamic_batching { }"
    assert problems(parse_text(text, "m")) == [
        "parameter PAD_LIMIT must be a number from 1 on for m"
    ]


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("1", "BOOL", b"\1"),
        ("-2", "INT8", b"\xfe"),
        (str(2**64 - 1), "UINT64", b"\xff" * 8),
        (str(-(2**63)), "INT64", b"\0" * 7 + b"\x80"),
        ("1.5", "FP16", b"\0\x3e"),
        ("-inf", "FP32", b"\0\0\x80\xff"),
        ("1", "BF16", b"\x80\x3f"),
        ("2", "BOOL", None),
        ("128", "INT8", None),
        ("1e30", "FP16", None),
        ("1e39", "BF16", None),
        ("0.0", "INT32", None),
        ("x", "BYTES", None),
    ],
)
def test_one_element_of_a_value(text: str, kind: str, expected: bytes | None) -> None:
    if expected is not None:
        assert element(text, DATA_TYPES[kind]) == expected
        return
    with pytest.raises((ValueError, OverflowError)):
        element(text, DATA_TYPES[kind])


def config_of(**given: str) -> ModelConfig:
    text = """
    name: "m" backend: "b" max_batch_size: 8
    input { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }
    input { name: "mask" data_type: TYPE_BOOL dims: [ 1, -1 ] }
    input { name: "wave" data_type: TYPE_FP16 dims: [ 2, -1, 3 ] }
    output { name: "hidden" data_type: TYPE_FP32 dims: [ -1, 2 ] }
    output { name: "texts" data_type: TYPE_STRING dims: [ -1 ] }
    """
    return parse_text(text + parameters(**given), "m")


WHOLE = config_of(
    PAD_TO_LONGEST="ids,wave", PAD_VALUE="ids=9,wave=-1", PAD_MASK="mask", PAD_CUT="hidden,texts"
)


def ask(length: int, size: int = 1, start: int = 0) -> InferRequest:
    ids = np.arange(start, start + size * length, dtype=np.int64).reshape(size, length)
    wave = np.full((size, 2, length, 3), start, np.float16)
    return InferRequest("m", (Tensor.from_numpy("ids", ids), Tensor.from_numpy("wave", wave)))


def arrays(request: InferRequest) -> dict[str, Any]:
    return {tensor.name: tensor.as_numpy() for tensor in request.inputs}


def padded(requests: Sequence[InferRequest]) -> list[dict[str, Any]]:
    """The inputs of each request when they run together."""
    checker, padding = RequestChecker(WHOLE), Padding.of(WHOLE)
    assert padding is not None
    checked = [checker.check(request) for request in requests]
    assert len({each.key for each in checked}) == 1
    return [arrays(request) for request in padding.pad([each.request for each in checked])]


def test_requests_are_filled_up_to_the_longest_and_told_what_is_real() -> None:
    short, long = padded([ask(2, size=2), ask(3, start=5)])
    assert short["ids"].tolist() == [[0, 1, 9], [2, 3, 9]]
    assert long["ids"].tolist() == [[5, 6, 7]]
    assert short["mask"].tolist() == [[[True, True, False]]] * 2
    assert long["mask"].tolist() == [[[True] * 3]]
    assert short["wave"].shape == (2, 2, 3, 3)
    assert short["wave"][:, :, 2].tolist() == [[[-1.0] * 3] * 2] * 2
    assert short["wave"][:, :, :2].tolist() == [[[[0.0] * 3] * 2] * 2] * 2


def test_inputs_arrive_in_the_order_of_the_configuration() -> None:
    checked = RequestChecker(WHOLE).check(ask(2))
    assert [tensor.name for tensor in checked.request.inputs] == ["ids", "mask", "wave"]


def test_a_mask_that_is_sent_is_kept_and_filled_up() -> None:
    short, other = ask(2), ask(4)
    mask = Tensor.from_numpy("mask", np.array([[[True, False]]]))
    short.inputs = (short.inputs[0], mask, short.inputs[1])
    first, second = padded([short, other])
    assert first["mask"].tolist() == [[[True, False, False, False]]]
    assert second["mask"].tolist() == [[[True] * 4]]


def waiting(length: int, size: int = 1) -> Pending:
    """A request in a queue; nobody answers it here."""
    reply: Any = None
    return Pending(ask(length), size, "same", reply, 0.0, 0)


@pytest.mark.parametrize(
    ("limit", "lengths", "count"),
    [
        ("1.5", (4, 2, 2), 3),
        ("1.5", (4, 2, 1), 2),
        ("1.5", (4, 4, 1), 3),
        ("1.5", (4, 1, 4), 1),
        ("1.5", (1, 4), 1),
        ("1", (3, 3, 4), 2),
        ("1.5", (0, 0, 1), 2),
        ("", (1, 512, 1), 3),
    ],
)
def test_a_batch_takes_what_does_not_fill_it_up_too_much(
    limit: str, lengths: tuple[int, ...], count: int
) -> None:
    config = replace(
        config_of(PAD_TO_LONGEST="ids", PAD_LIMIT=limit), dynamic_batching=DynamicBatching()
    )
    padding = Padding.of(config)
    assert padding is not None
    policy = Batching.of(config, padding.limited(None))
    queue = [waiting(length) for length in lengths]
    assert policy.decide(queue, 0.0) == Dispatch(count)


def test_another_strategy_is_asked_as_well() -> None:
    config = config_of(PAD_TO_LONGEST="ids", PAD_LIMIT="2")
    padding = Padding.of(config)
    assert padding is not None
    seen: list[int] = []

    def open_batch() -> Joins:
        def joins(waiting: Any) -> bool:
            seen.append(waiting.size)
            return False

        return joins

    asked = padding.limited(open_batch)
    assert asked is not None
    assert not asked()(waiting(3, 5))
    assert seen == [5]
    plain = Padding.of(config_of(PAD_TO_LONGEST="ids"))
    assert plain is not None
    assert plain.limited(open_batch) is open_batch


def test_requests_that_are_equally_long_are_left_alone() -> None:
    padding = Padding.of(WHOLE)
    assert padding is not None
    requests = [ask(3), ask(3)]
    assert all(a is b for a, b in zip(padding.pad(requests), requests, strict=True))


def test_the_inputs_of_a_request_must_be_equally_long() -> None:
    request = ask(3)
    request.inputs = (request.inputs[0], ask(2).inputs[1])
    with pytest.raises(InvalidArgument) as caught:
        RequestChecker(WHOLE).check(request)
    assert str(caught.value) == (
        "[request id: <id_unknown>] inputs that are padded must be equally long, but 'ids' is 3, "
        "'wave' is 2"
    )


def test_a_length_without_its_data_makes_no_mask() -> None:
    """Which would take as much memory as the client likes."""
    request = ask(3)
    ids = Tensor("ids", request.inputs[0].datatype, (1, 10**15), b"12345678")
    request.inputs = (ids, request.inputs[1])
    with pytest.raises(InvalidArgument, match="input byte size mismatch for input 'ids'"):
        RequestChecker(WHOLE).check(request)


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        (0, SHORT, True),
        (1, SHORT, True),
        (SHORT, SHORT + 1, False),
        (SHORT + 1, 2 * SHORT, True),
        (2 * SHORT, 2 * SHORT + 1, False),
        (2 * SHORT + 1, 4 * SHORT, True),
    ],
)
def test_one_very_long_request_does_not_lengthen_the_others(
    one: int, other: int, share: bool
) -> None:
    checker = RequestChecker(WHOLE)
    assert (checker.check(ask(one)).key == checker.check(ask(other)).key) is share


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9)), min_size=1, max_size=5))
def test_outputs_as_long_as_the_batch_are_cut_to_each_request(
    sizes: list[tuple[int, int]],
) -> None:
    padding = Padding.of(WHOLE)
    assert padding is not None
    longest = max(length for _, length in sizes)
    for size, length in sizes:
        hidden = np.arange(size * longest * 2, dtype=np.float32).reshape(size, longest, 2)
        texts = np.array([[b"%d" % i for i in range(longest)]] * size, object)
        texts = texts.reshape(size, longest)
        outputs = (Tensor.from_numpy("hidden", hidden), Tensor.from_numpy("texts", texts))
        cut = padding.cut(ask(length, size), outputs)
        assert cut[0].as_numpy().tolist() == hidden[:, :length].tolist()
        assert cut[0].shape == (size, length, 2)
        assert cut[1].as_numpy().tolist() == texts[:, :length].tolist()


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9)), min_size=1, max_size=5))
def test_what_is_real_stays_where_it_was(sizes: list[tuple[int, int]]) -> None:
    requests = [ask(length, size, number) for number, (size, length) in enumerate(sizes)]
    longest = max(length for _, length in sizes)
    for request, found in zip(requests, padded(requests), strict=True):
        ids, wave = arrays(request).values()
        size, length = ids.shape
        assert found["ids"].shape == (size, longest)
        assert found["ids"][:, :length].tolist() == ids.tolist()
        assert (found["ids"][:, length:] == 9).all()
        assert found["wave"][:, :, :length].tolist() == wave.tolist()
        assert (found["wave"][:, :, length:] == -1).all()
        assert found["mask"].sum(axis=(1, 2)).tolist() == [length] * size


def test_an_output_of_another_form_is_left_as_it_is() -> None:
    padding = Padding.of(WHOLE)
    assert padding is not None
    outputs = tuple(
        Tensor.from_numpy(name, np.zeros(shape, np.float32))
        for name, shape in (("hidden", (4,)), ("other", (1, 9)), ("hidden", (1, 2, 2)))
    )
    assert padding.cut(ask(3), outputs) == outputs


def test_a_model_that_names_no_inputs_is_not_padded() -> None:
    assert Padding.of(config_of()) is None
    requests = [ask(2), ask(3)]
    for request in requests:
        mask = Tensor.from_numpy("mask", np.ones((1, 1, 1), np.bool_))
        request.inputs = (request.inputs[0], mask, request.inputs[1])
    first, second = (RequestChecker(config_of()).check(request) for request in requests)
    assert first.key != second.key
