"""What tensors of a `.pt2` are called, told by call specs as torch writes them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

from microkernel_torchscript.exported.call_spec import Malformed, input_names, output_names
from microkernel_torchscript.exported.leaf_names import (
    NotFound,
    alias_map,
    is_keyed,
    leaf_places,
    placed,
)
from microkernel_torchscript.exported.leaves import Leaf

LEAF = '{"type": null, "context": null, "children_spec": []}'


def _node(kind: str, *children: str, context: str = "null") -> str:
    listed = ", ".join(children)
    return f'{{"type": "{kind}", "context": {json.dumps(context)}, "children_spec": [{listed}]}}'


def _tuple(*children: str) -> str:
    return _node("builtins.tuple", *children)


def _dict(keys: list[str], *children: str) -> str:
    return _node("builtins.dict", *children, context=json.dumps(keys))


def _spec(root: str) -> str:
    return f"[1, {root}]"


# Recorded from torch 2.13: forward(x, pair, keyed, *, scale, ids).
RECORDED = _spec(
    _tuple(
        _tuple(LEAF, _tuple(LEAF, LEAF), _dict(["b", "a"], LEAF, LEAF)),
        _dict(["scale", "ids"], LEAF, LEAF),
    )
)

INPUTS = {
    "one tensor": (_spec(_tuple(_tuple(LEAF), _dict([]))), [("ARGS[0]",)]),
    "nested": (
        RECORDED,
        [
            ("ARGS[0]",),
            ("ARGS[1][0]",),
            ("ARGS[1][1]",),
            ("ARGS[2][b]",),
            ("ARGS[2][a]",),
            ("scale", "KWARGS[scale]"),
            ("ids", "KWARGS[ids]"),
        ],
    ),
    "an only dictionary": (
        _spec(_tuple(_tuple(_dict(["b", "a"], LEAF, LEAF)), _dict([]))),
        [("b", "ARGS[0][b]"), ("a", "ARGS[0][a]")],
    ),
    "an ordered dictionary": (
        _spec(
            _tuple(_tuple(LEAF, _node("collections.OrderedDict", LEAF, context='["k"]')), _dict([]))
        ),
        [("ARGS[0]",), ("ARGS[1][k]",)],
    ),
    "a list": (
        _spec(_tuple(_tuple(_node("builtins.list", LEAF, LEAF)), _dict([]))),
        [("ARGS[0][0]",), ("ARGS[0][1]",)],
    ),
    "a key that no path can have": (
        _spec(_tuple(_tuple(LEAF, _dict(["a b", 'a"', "a]"], LEAF, LEAF, LEAF)), _dict([]))),
        [("ARGS[0]",), (), (), ()],
    ),
    "keys that are numbers": (
        _spec(_tuple(_tuple(LEAF, _node("builtins.dict", LEAF, context="[7]")), _dict([]))),
        [("ARGS[0]",), ("ARGS[1][7]",)],
    ),
    "nothing": (_spec(_tuple(_tuple(), _dict([]))), []),
}

OUTPUTS = {
    "one tensor": (_spec(LEAF), [("RESULT",)]),
    "a tuple": (_spec(_tuple(LEAF, LEAF)), [("RESULT[0]",), ("RESULT[1]",)]),
    "a dictionary": (
        _spec(_dict(["y", "z"], LEAF, _node("builtins.list", LEAF))),
        [("y", "RESULT[y]"), ("z.0", "RESULT[z][0]")],
    ),
    "dictionaries in a dictionary": (
        _spec(_dict(["a"], _dict(["b", "c d"], LEAF, LEAF))),
        [("a.b", "RESULT[a][b]"), ("a.c d",)],
    ),
    "a dictionary in a tuple": (
        _spec(_tuple(LEAF, _dict(["b"], LEAF))),
        [("RESULT[0]",), ("RESULT[1][b]",)],
    ),
    "a NamedTuple": (
        _spec(_node("collections.namedtuple", LEAF, LEAF, context='"__main__.Pair"')),
        [("RESULT[0]",), ("RESULT[1]",)],
    ),
}


@pytest.mark.parametrize(("text", "names"), INPUTS.values(), ids=list(INPUTS))
def test_arguments_are_called_by_their_paths(text: str, names: list[tuple[str, ...]]) -> None:
    assert input_names(text) == names


@pytest.mark.parametrize(("text", "names"), OUTPUTS.values(), ids=list(OUTPUTS))
def test_results_are_called_by_their_paths(text: str, names: list[tuple[str, ...]]) -> None:
    assert output_names(text) == names


MALFORMED = [
    "",
    "7",
    "[1]",
    "[1, 7]",
    '[1, {"type": null}]',
    '[1, {"type": "builtins.dict", "context": "null", "children_spec": [' + LEAF + "]}]",
    _spec(_tuple(LEAF, LEAF, LEAF)),
    "[" * 100_000,
]


@pytest.mark.parametrize("text", MALFORMED, ids=[text[:20] for text in MALFORMED])
def test_what_torch_does_not_write_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        input_names(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.fixed_dictionaries(
            {
                "type": st.sampled_from([None, "builtins.dict", "builtins.tuple"]),
                "context": inner,
                "children_spec": st.lists(inner, max_size=3),
            }
        )
    ),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_read_or_malformed(document: object) -> None:
    for read in (input_names, output_names):
        try:
            assert isinstance(read(json.dumps([1, document])), list)
        except Malformed:
            continue


LEAVES = [Leaf(("x", "ARGS[0]")), Leaf((), kind="constant", default=None), Leaf(("y", "ARGS[2]"))]


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["x", "y"], [0, 2]),
        (["y", "x"], [2, 0]),
        (["ARGS[2]", "INPUT__0"], [2, 0]),
        (["b__2", "a__0"], [2, 0]),
        (["INPUT__0", "b__2"], [0, 2]),
        (["one", "two"], [0, 2]),
        (["one__b", "two"], [0, 2]),
    ],
)
def test_names_lead_to_places(names: list[str], places: list[int]) -> None:
    assert leaf_places(names, alias_map(LEAVES, "INPUT")) == places


@pytest.mark.parametrize(
    ("names", "strange"),
    [
        (["x", "z"], "z"),
        (["ARGS[7]", "ARGS[0]"], "ARGS[7]"),
        (["KWARGS[x]", "a"], "KWARGS[x]"),
        (["a__0", "b__1"], "b__1"),
        (["a__0", "b__9"], "b__9"),
        (["one", "two", "three"], "three"),
    ],
)
def test_a_name_that_leads_nowhere_is_told(names: list[str], strange: str) -> None:
    with pytest.raises(NotFound) as caught:
        leaf_places(names, alias_map(LEAVES, "INPUT"))
    assert str(caught.value) == strange


KEYED = [Leaf(("a.0", "RESULT[a][0]")), Leaf(("b", "RESULT[b]"))]


@pytest.mark.parametrize(
    ("names", "places"),
    [(["b", "a.0"], [1, 0]), (["b__1", "a__0"], [1, 0]), (["RESULT[b]", "OUTPUT__0"], [1, 0])],
)
def test_names_lead_to_results_in_a_dictionary(names: list[str], places: list[int]) -> None:
    assert is_keyed(KEYED)
    assert leaf_places(names, alias_map(KEYED, "OUTPUT"), keyed=True) == places


@pytest.mark.parametrize("names", [["one"], ["one", "two"], ["one__b", "a__0"]])
def test_results_in_a_dictionary_are_not_taken_by_order(names: list[str]) -> None:
    with pytest.raises(NotFound, match="one"):
        leaf_places(names, alias_map(KEYED, "OUTPUT"), keyed=True)


def test_paths_are_not_keys() -> None:
    assert not is_keyed([Leaf(("RESULT[0]",)), Leaf(("RESULT[1][b]",)), Leaf()])


def test_a_name_of_two_tensors_is_that_of_none() -> None:
    known = alias_map([Leaf(("x",)), Leaf(("x",))], "OUTPUT")
    assert known == {"OUTPUT__0": 0, "OUTPUT__1": 1}


@pytest.mark.parametrize(
    ("name", "place"),
    [("y", 2), ("STATE__2", 2), ("INPUT__0", 0), ("STATE__1", None), ("STATE", None)],
)
def test_controls_and_states_have_a_name_or_an_index(name: str, place: int | None) -> None:
    assert placed(name, alias_map(LEAVES, "INPUT")) == place
