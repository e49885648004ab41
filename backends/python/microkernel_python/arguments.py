"""Checks of what models pass in: types raise TypeError, meanings raise TritonModelException.

This is how Triton's native binding behaves, and models catch these very classes.
"""

import operator
from collections.abc import Iterable
from typing import Any, TypeVar

from microkernel_python.errors import TritonModelException

T = TypeVar("T")
INT64 = range(-(2**63), 2**63)


def text(value: object, what: str) -> str:
    """A `str` argument; `bytes` are taken as UTF-8. Raises TypeError for anything else."""
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}")
    return value


def integer(value: object, what: str) -> int:
    """An integer argument, also a numpy one. Raises TypeError for anything else."""
    try:
        return operator.index(value)  # type: ignore[arg-type]  # the check is the point
    except TypeError:
        raise TypeError(f"{what} must be an int, not {type(value).__name__}") from None


def instance_of(value: object, kind: type[T], what: str) -> T:
    """An argument of exactly this class or one derived from it. Raises TypeError otherwise."""
    if not isinstance(value, kind):
        raise TypeError(f"{what} must be a {kind.__name__}, not {type(value).__name__}")
    return value


def elements(value: object, kind: type[T], what: str) -> list[T]:
    """A sequence of objects of one class as a list.

    Raises TypeError for what is no sequence and for elements of another class, and
    TritonModelException for None among them.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{what} must be a sequence, not {type(value).__name__}")
    checked: list[T] = []
    for element in value:
        if element is None:
            raise TritonModelException(f"{what} must not contain None")
        checked.append(instance_of(element, kind, f"each element of {what}"))
    return checked


def parameter_values(value: object) -> dict[str, bool | int | str]:
    """Request or response parameters: a dict from str to bool, int or str; None means none.

    Raises TritonModelException naming the type found for anything else, and for an integer that
    needs more than 64 bits or a text with half a surrogate pair.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TritonModelException(f"parameters must be a dict, found type '{_name(value)}'")
    return {_key(key): _value(key, entry) for key, entry in value.items()}


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TritonModelException(f"parameter keys must be str, found type '{_name(key)}'")
    return _encodable(key, f"the parameter key {key!r}")


def _value(key: str, value: Any) -> bool | int | str:
    if not isinstance(value, bool | int | str):
        raise TritonModelException(
            f"parameter '{key}' must be a bool, an int or a str, found type '{_name(value)}'"
        )
    if isinstance(value, str):
        return _encodable(value, f"parameter '{key}'")
    if value not in INT64:
        raise TritonModelException(f"parameter '{key}' does not fit 64 bits: {value}")
    return value


def _encodable(value: str, what: str) -> str:
    """A text that a client can be sent."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise TritonModelException(f"{what} is no text in Unicode: {value!r}") from None
    return value


def _name(value: object) -> str:
    return str(type(value))
