"""What is decided about results, made-up inputs and messages without running a model."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_models import config_of

from microkernel_torchscript.failures import execute_failure
from microkernel_torchscript.probing.examples import configured_examples
from microkernel_torchscript.results import flatten

LEAF = st.builds(torch.tensor, st.integers(0, 9)) | st.lists(st.text(), min_size=1)
NESTED: st.SearchStrategy[Any] = st.recursive(
    LEAF | st.integers() | st.none(),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(tuple)
        | st.dictionaries(st.text("abc", min_size=1), inner, min_size=1, max_size=3)
        | st.lists(st.tuples(inner), min_size=1, max_size=3)
    ),
    max_leaves=8,
)


def leaves(value: Any) -> list[Any]:
    """Depth first, told by what holds others rather than by what does not."""
    if isinstance(value, dict):
        return [leaf for member in value.values() for leaf in leaves(member)]
    if isinstance(value, tuple) or (isinstance(value, list) and isinstance(value[0], tuple)):
        return [leaf for member in value for leaf in leaves(member)]
    return [value]


@given(NESTED)
def test_results_come_depth_first_each_under_a_name(result: Any) -> None:
    found = flatten(result)
    expected = leaves(result)
    assert len(found.values) == len(expected) == len(found.names)
    assert all(one is other for one, other in zip(found.values, expected, strict=True))
    assert len(set(found.names)) == len(found.names)
    for name, value in zip(found.names, found.values, strict=True):
        assert followed(result, name) is value


def followed(result: Any, name: str) -> Any:
    """What lies where the name of a result leads."""
    for step in name.split(".") if name else ():
        result = result[step] if isinstance(result, dict) else result[int(step)]
    return result


class Fields(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (Fields([1], {"a": [2]}), ["left", "right.a"]),
        ((Fields([1], [2]),), ["0.left", "0.right"]),
        ({1: [1], 2: ([2], [3])}, ["1", "2.0", "2.1"]),
        ([["a"], ["b"]], ["0", "1"]),
        ((), []),
        ({}, []),
        ([1, 2], [""]),
    ],
)
def test_names_of_results(result: Any, names: list[str]) -> None:
    assert flatten(result).names == names


@pytest.mark.parametrize(
    ("strings", "names"),
    [(None, ["0", "1"]), ((), []), ((0,), ["0"]), (("1",), ["1"]), ((1,), [])],
)
def test_an_empty_list_counts_where_strings_are_expected(
    strings: Sequence[int | str] | None, names: list[str]
) -> None:
    assert flatten(([], []), strings).names == names


def shapes(max_batch_size: int, **inputs: tuple[int, ...]) -> list[dict[str, tuple[int, ...]]]:
    """The shapes that are tried for inputs of these dimensions."""
    config = config_of({n: ("FP32", *d) for n, d in inputs.items()}, {}, max_batch_size)
    kinds = dict.fromkeys(inputs, "tensor")
    return [{e.name: e.shape for e in tried} for tried in configured_examples(config, kinds)]


def test_rows_are_few_where_other_sizes_are_free() -> None:
    tried = shapes(0, picture=(-1, 3, -1, -1), row=(-1,))
    assert tried[0] == {"picture": (1, 3, 16, 16), "row": (1,)}
    assert {"picture": (1, 3, 224, 224), "row": (1,)} in tried
    assert {"picture": (16, 3, 16, 16), "row": (16,)} in tried
    assert {"picture": (224, 3, 224, 224), "row": (224,)} not in tried


@pytest.mark.parametrize(
    ("max_batch_size", "dims", "first"),
    [(0, (4,), (4,)), (0, (-1, 4), (16, 4)), (8, (-1, -1), (1, 16, 16)), (8, (3,), (1, 3))],
)
def test_other_free_sizes_begin_with_the_smallest_usual_one(
    max_batch_size: int, dims: tuple[int, ...], first: tuple[int, ...]
) -> None:
    tried = shapes(max_batch_size, x=dims)
    assert tried[0] == {"x": first}
    assert len(tried) == len({entry["x"] for entry in tried})


def test_a_large_input_is_tried_all_the_same() -> None:
    assert shapes(0, x=(-1, 3, 4096, 4096))


TRACE = """The following operation failed in the TorchScript interpreter.
Traceback of TorchScript, original code (most recent call last):
  File "model.py", line 5, in forward
        return self.inner(x)
               ~~~~~~~~~~ <--- HERE
  File "model.py", line 2, in forward
        assert x > 1, "first\\nsecond"
        ~~~~~~~~~~~~ <--- HERE
        return x
RuntimeError: AssertionError: first
second"""


def test_the_first_line_of_what_was_raised_comes_first() -> None:
    text = execute_failure(RuntimeError(TRACE))
    assert text.splitlines()[0] == "PyTorch execute failure: RuntimeError: AssertionError: first"
    assert text.endswith(TRACE)


@given(st.integers(1, 50_000))
def test_a_long_message_loses_its_middle(length: int) -> None:
    text = execute_failure(RuntimeError("b" + "-" * length + "e"))
    assert text.startswith("PyTorch execute failure: b")
    assert text.endswith("e")
    assert len(text) < 6100
    assert ("characters left out" in text) is (length + 2 > 6000)
