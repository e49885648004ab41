"""What plug-ins name as `"module:name"` and is imported only where it is needed; and asking their
functions."""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from microkernel.errors import InvalidArgument

Told = TypeVar("Told")


def make(factory: str, settings: Any) -> Any:
    """Import `"module:callable"` and call it with a plug-in's settings, or with nothing for
    None."""
    made = resolve(factory)
    return made() if settings is None else made(settings)


def resolve(name: str) -> Any:
    """The object that `"module:name"` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def asked(hook: Callable[..., Told], *arguments: Any) -> Told:
    """What a plug-in's function says. Raises what it raises, but InvalidArgument where it would end
    the process."""
    try:
        return hook(*arguments)
    except SystemExit as error:
        name = getattr(hook, "__qualname__", repr(hook))
        raise InvalidArgument(f"{name} of a plug-in ended with SystemExit: {error}") from error


def package_of(name: str) -> str:
    """The outermost package of what `"module:name"` names, which is not imported."""
    return name.partition(":")[0].partition(".")[0]
