"""The call spec of a `.pt2`: how its tensors lie in the arguments and the result.

torch writes it as JSON: nodes with a type, a context (the keys of a dictionary) and children, where
a tensor is a node without type.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_KEYED = ("builtins.dict", "collections.OrderedDict", "collections.defaultdict")
_PLAIN_KEY = re.compile(r'[^"\[\]\s\x00-\x1f\x7f]+')


class Malformed(ValueError):
    """A call spec that is not what torch writes; the text says what was found."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: the keys and indices that lead to it."""

    steps: tuple[str | int, ...]

    def path(self, root: str) -> str:
        """As Triton spells it, `ARGS[2][key]`; "" where a key has characters that it does not
        allow there."""
        if not all(isinstance(step, int) or _PLAIN_KEY.fullmatch(step) for step in self.steps):
            return ""
        return root + "".join(f"[{step}]" for step in self.steps)


def input_names(text: str) -> list[tuple[str, ...]]:
    """What each tensor among the arguments may be called, in flattening order: `ARGS[...]`,
    `KWARGS[...]`, and the name of a keyword argument or, where one dictionary is the only argument,
    the key in it. Raises Malformed."""
    positional, keyword = _arguments(_parsed(text))
    places, keywords = list(_places(positional)), list(_places(keyword))
    whole = not keywords and {p.steps[:1] for p in places} == {(0,)}
    named = [
        _names(p.path("ARGS"), p.steps[1:] if whole and len(p.steps) == 2 else ()) for p in places
    ]
    return [*named, *(_names(p.path("KWARGS"), p.steps) for p in keywords)]


def output_names(text: str) -> list[tuple[str, ...]]:
    """What each tensor of the result may be called, in flattening order: `RESULT[...]`, and where
    the whole is a dictionary the key, or the keys and indices with dots between them. Raises
    Malformed."""
    root = _parsed(text)
    keyed = isinstance(root, dict) and root.get("type") in _KEYED
    return [
        _told(".".join(map(str, place.steps)) if keyed else "", place.path("RESULT"))
        for place in _places(root)
    ]


def _names(path: str, steps: Sequence[str | int]) -> tuple[str, ...]:
    own = steps[0] if len(steps) == 1 else None
    return _told(own if isinstance(own, str) else "", path)


def _told(*names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name)


def _parsed(text: str) -> Any:
    try:
        _, root = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise Malformed(f"the call spec is not what torch writes: {text[:80]!r}") from None
    return root


def _arguments(root: Any) -> tuple[Any, Any]:
    children = _children(root)
    if len(children) != 2:
        raise Malformed("the call spec does not tell positional and keyword arguments")
    return children[0], children[1]


def _children(node: Any) -> list[Any]:
    children = node.get("children_spec") if isinstance(node, dict) else None
    if not isinstance(children, list):
        raise Malformed(f"the call spec has a node that is not what torch writes: {node!r:.80}")
    return children


def _places(node: Any, steps: tuple[str | int, ...] = ()) -> Iterator[Place]:
    children = _children(node)
    if node.get("type") is None:
        yield Place(steps)
        return
    for step, child in zip(_steps(node, len(children)), children, strict=True):
        yield from _places(child, (*steps, step))


def _steps(node: Any, count: int) -> Sequence[str | int]:
    if node["type"] not in _KEYED:
        return range(count)
    try:
        context = json.loads(node["context"])
    except (KeyError, ValueError, TypeError):
        context = None
    keys = context[-1] if node["type"] == "collections.defaultdict" and context else context
    if not isinstance(keys, list) or len(keys) != count:
        raise Malformed(f"the call spec has a dictionary without its keys: {node!r:.80}")
    return [key if isinstance(key, str) else str(key) for key in keys]
