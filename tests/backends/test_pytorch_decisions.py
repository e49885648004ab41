"""What is decided about results, made-up inputs, states and messages without running a model."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_models import config_of

from microkernel import InvalidArgument, ModelConfig, config_from_json
from microkernel_torchscript.failures import execute_failure, first_line
from microkernel_torchscript.inputs import plan_inputs
from microkernel_torchscript.outputs import plan_outputs
from microkernel_torchscript.probing.examples import configured_examples
from microkernel_torchscript.results import flatten
from microkernel_torchscript.signature import Argument, Signature

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


TRACED = """The following operation failed in the TorchScript interpreter.
Traceback of TorchScript, serialized code (most recent call last):
  File "code/__torch__.py", line 12, in forward
    _0 = torch.linear(x, weight, bias)
         ~~~~~~~~~~~~ <--- HERE

Traceback of TorchScript, original code (most recent call last):
/models/net.py(30): forward
/models/my trace.py(3): <module>
RuntimeError: shapes (2) and (3) differ
more"""


def test_what_was_raised_is_found_below_the_calls_that_were_traced() -> None:
    assert first_line(RuntimeError(TRACED)) == "RuntimeError: shapes (2) and (3) differ"


@given(st.integers(1, 50_000))
def test_a_long_message_loses_its_middle(length: int) -> None:
    text = execute_failure(RuntimeError("b" + "-" * length + "e"))
    assert text.startswith("PyTorch execute failure: b")
    assert text.endswith("e")
    assert len(text) < 6100
    assert ("characters left out" in text) is (length + 2 > 6000)


STRINGS = Signature((Argument("x", "tensor", "Tensor"), Argument("s", "list", "str[]")))


def with_a_state_of_strings(max_batch_size: int, *dims: int) -> ModelConfig:
    state = {"input_name": "S__1", "output_name": "T__1", "data_type": "TYPE_STRING"}
    return config_from_json(
        {
            "name": "m",
            "max_batch_size": max_batch_size,
            "input": [{"name": "X__0", "data_type": "TYPE_FP32", "dims": [1]}],
            "output": [{"name": "Y__0", "data_type": "TYPE_FP32", "dims": [1]}],
            "sequence_batching": {"state": [{**state, "dims": dims}]},
        }
    )


@pytest.mark.parametrize(
    ("max_batch_size", "dims", "cure"), [(2, (1,), r"\[ \], for"), (0, (1, 1), r"\[ -1 \]")]
)
def test_a_state_of_strings_has_one_dimension(
    max_batch_size: int, dims: tuple[int, ...], cure: str
) -> None:
    """Since a list has, which the model gives back."""
    config = with_a_state_of_strings(max_batch_size, *dims)
    with pytest.raises(InvalidArgument, match=rf"state 'S__1' is .* needs dims: {cure}"):
        plan_inputs(config, STRINGS)
    with pytest.raises(InvalidArgument, match="state 'T__1'"):
        plan_outputs(config)


@pytest.mark.parametrize(("max_batch_size", "dims"), [(2, ()), (0, (1,)), (0, (-1,))])
def test_a_state_of_strings_may_be_a_list(max_batch_size: int, dims: tuple[int, ...]) -> None:
    plan = plan_inputs(with_a_state_of_strings(max_batch_size, *dims), STRINGS)
    assert plan.kinds["S__1"] == "list"
