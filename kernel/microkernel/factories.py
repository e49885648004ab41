"""What plug-ins name as `"module:name"` and is imported only where it is needed."""

import importlib
from typing import Any


def make(factory: str, settings: Any) -> Any:
    """Import `"module:callable"` and call it with a plug-in's settings, or with nothing for
    None."""
    made = resolve(factory)
    return made() if settings is None else made(settings)


def resolve(name: str) -> Any:
    """The object that `"module:name"` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def package_of(name: str) -> str:
    """The outermost package of what `"module:name"` names, which is not imported."""
    return name.partition(":")[0].partition(".")[0]
