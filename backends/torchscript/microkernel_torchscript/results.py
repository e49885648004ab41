"""What `forward` returned, taken apart into single results."""

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(slots=True)
class Results:
    """The single results in flattening order: tensors, lists of strings, and whatever else stands
    where one of those should.

    A result is called by the keys and fields that lead to it, and by its place where it is in a
    plain tuple or a list: `scores`, `boxes.left`, `pyramid.0`. `keyed` says that the whole is a
    dictionary, `fields` that it is a NamedTuple; of anything else the results have no names that
    a configuration may use. `single` says that the whole is one result.
    """

    names: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    keyed: bool = False
    fields: bool = False
    single: bool = False

    @property
    def named(self) -> bool:
        """Whether results may be asked for by name."""
        return self.keyed or self.fields


def flatten(result: Any, strings: Container[int | str] | None = None) -> Results:
    """Take a result of `forward` apart: tuples, lists and dictionaries, in one another too.

    An empty list is one of strings where its place or its name is in `strings`, or anywhere for
    None, and holds nothing elsewhere.
    """
    if isinstance(result, torch.Tensor):
        return Results([""], [result], single=True)
    found = Results(
        keyed=isinstance(result, dict),
        fields=isinstance(result, tuple) and hasattr(result, "_fields"),
    )
    _gather(result, "", found, strings)
    found.single = found.names == [""]
    return found


def is_output(value: Any) -> bool:
    """Whether a single result can be an output: a tensor or a list of strings."""
    return isinstance(value, torch.Tensor) or (
        isinstance(value, list) and all(isinstance(member, str) for member in value)
    )


def kind_name(value: Any) -> str:
    """What a result is called in a message: `int`, `List[Tensor]`."""
    if isinstance(value, list) and value:
        return f"List[{type(value[0]).__name__}]"
    return type(value).__name__


def _gather(value: Any, name: str, found: Results, strings: Container[int | str] | None) -> None:
    if isinstance(value, torch.Tensor) or not _holds_results(value):
        empty = isinstance(value, list) and not value
        listed = strings is None or len(found.values) in strings or name in strings
        if listed or not empty:
            found.names.append(name)
            found.values.append(value)
        return
    start = f"{name}." if name else ""
    if isinstance(value, dict):
        members = [(str(key), member) for key, member in value.items()]
    else:
        fields = getattr(value, "_fields", range(len(value)))
        members = [(str(key), member) for key, member in zip(fields, value, strict=True)]
    for key, member in members:
        _gather(member, f"{start}{key}", found, strings)


def _holds_results(value: Any) -> bool:
    """Whether to look for results inside. A list of numbers is not taken apart, so that a message
    can say what it is."""
    if isinstance(value, list):
        return any(isinstance(member, torch.Tensor | tuple | list | dict) for member in value)
    return isinstance(value, tuple | dict)
