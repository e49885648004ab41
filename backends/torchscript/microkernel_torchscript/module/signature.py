"""What the `forward` of a Python module takes, told by its arguments and their annotations."""

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from microkernel_torchscript.signature import REQUIRED, SCALARS, Argument, Kind, Signature

_NUMBERS: dict[Any, Kind] = {int: "int", float: "float", bool: "bool"}
_LISTS = {str: "str[]", bytes: "bytes[]"}

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def module_signature(forward: Callable[..., Any]) -> Signature | None:
    """The arguments that can be given by position; None where there may be any number of them, or
    Python cannot tell.

    What has no annotation, and whatever the annotation says that is neither a list of strings, a
    dictionary nor a number, is a tensor: Python checks none of it.
    """
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        return None
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    annotations, returned = _annotations(forward)
    return Signature(
        arguments=tuple(
            _argument(p, annotations.get(p.name)) for p in parameters if p.kind in _BY_POSITION
        ),
        returns_dictionary=_origin(returned) is dict,
        returned=_returned(returned),
    )


def keyword_only(forward: Callable[..., Any]) -> Sequence[str]:
    """The names of arguments without a default that no input can feed, as they are given by name
    only."""
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    return [
        p.name
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is inspect.Parameter.empty
    ]


def _annotations(forward: Callable[..., Any]) -> tuple[dict[str, Any], Any]:
    try:
        found = typing.get_type_hints(forward)
    except Exception:  # noqa: BLE001 - an annotation may be any expression, and need not be sound
        found = {}
    return found, found.get("return")


def _argument(parameter: inspect.Parameter, annotation: Any) -> Argument:
    held, optional = _without_none(annotation)
    kind, spelled = _kind(held)
    has_default = parameter.default is not inspect.Parameter.empty
    # Without a default Python wants a value, but None will do where a request leaves it out.
    otherwise = None if optional and kind not in SCALARS else REQUIRED
    return Argument(
        name=parameter.name,
        kind=kind,
        type_name=spelled,
        default=parameter.default if has_default else otherwise,
        optional=has_default,
    )


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """What an annotation `X | None` says, and whether it is one."""
    if _origin(annotation) not in (typing.Union, types.UnionType):
        return annotation, False
    held = [member for member in typing.get_args(annotation) if member is not type(None)]
    optional = len(held) < len(typing.get_args(annotation))
    return (held[0] if len(held) == 1 else None), optional


def _kind(held: Any) -> tuple[Kind, str]:
    if isinstance(held, type) and held in _NUMBERS:
        return _NUMBERS[held], held.__name__
    if _origin(held) is dict:
        return "dict", "Dict(str, Tensor)"
    members = typing.get_args(held)
    if _origin(held) is list and members and members[0] in _LISTS:
        return "list", _LISTS[members[0]]
    return "tensor", "Tensor"


def _returned(annotation: Any) -> int:
    """How many results an annotation promises."""
    fields = getattr(annotation, "_fields", None)
    if fields is not None:
        return len(fields)
    members = typing.get_args(annotation)
    fixed = _origin(annotation) is tuple and members and members[-1] is not Ellipsis
    return len(members) if fixed else 1


def _origin(annotation: Any) -> Any:
    return typing.get_origin(annotation) or annotation
