"""The model parameter TORCH_COMPILE_OPTIONAL_PARAMETERS, parsed once. This module imports no
torch."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from microkernel import InvalidArgument, ModelConfig

PARAMETER = "TORCH_COMPILE_OPTIONAL_PARAMETERS"

INDUCTOR = "inductor"
"""The backend of `torch.compile` where none is named; it needs a C++ compiler."""


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """Keyword arguments of `torch.compile`. `written` tells whether the configuration has the
    parameter at all."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    written: bool = False

    @property
    def disabled(self) -> bool:
        """Whether the module is to run as it is."""
        return bool(self.arguments.get("disable"))

    @property
    def backend(self) -> str:
        """The name of the compiler."""
        return str(self.arguments.get("backend") or INDUCTOR)


def parse_compile_options(config: ModelConfig) -> CompileOptions:
    """The options of a model. InvalidArgument, naming the key and what is allowed, for text that is
    no JSON object, keys that `torch.compile` does not have and values of other types."""
    if PARAMETER not in config.parameters:
        return CompileOptions()
    arguments = _object(config)
    for key, value in arguments.items():
        if fault := _fault(key, value):
            raise refused(config.name, fault)
    # Torch takes the mode "default" as having none.
    if arguments.get("mode") not in (None, "default") and arguments.get("options"):
        raise refused(config.name, "'mode' and 'options' exclude each other; give one of them")
    return CompileOptions(arguments, written=True)


def refused(name: str, fault: str) -> InvalidArgument:
    """The error for what is wrong with the parameter of the model `name`."""
    return InvalidArgument(f"failed to load model '{name}': parameter {PARAMETER}: {fault}")


def _object(config: ModelConfig) -> dict[str, Any]:
    text = config.parameter(PARAMETER)
    try:
        found = json.loads(text or "{}", object_pairs_hook=_no_key_twice)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise refused(config.name, f"not valid JSON: {error.msg} at {place}") from None
    except (ValueError, RecursionError) as error:
        raise refused(config.name, f"not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise refused(
            config.name,
            f'must be a JSON object such as {{"dynamic": true}}, got {_json_type(found)}',
        )
    return found


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"the key '{twice}' stands there twice")
    return found


@dataclass(frozen=True, slots=True)
class _Type:
    """What a key may hold."""

    about: str
    fits: Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_FLAG = _Type("true or false", lambda value: isinstance(value, bool))
_TEXT = _Type("a string or null", lambda value: value is None or isinstance(value, str))

_KEYS: Mapping[str, _Type] = {
    "fullgraph": _FLAG,
    "dynamic": _Type("true, false or null", lambda value: value is None or isinstance(value, bool)),
    "backend": _Type(
        "the name of a compiler", lambda value: isinstance(value, str) and bool(value)
    ),
    "mode": _TEXT,
    "options": _Type(
        "an object of settings or null", lambda value: value is None or isinstance(value, dict)
    ),
    "disable": _FLAG,
    "name": _TEXT,
    "recompile_limit": _Type(
        "a whole number of at least 1, or null", lambda value: value is None or _is_count(value)
    ),
    "isolate_recompiles": _FLAG,
    "shapes_spec": _Type(
        "an object or null", lambda value: value is None or isinstance(value, dict)
    ),
}


def _fault(key: str, value: Any) -> str:
    if key == "model":
        return "'model' is not an optional parameter for 'torch.compile'"
    if key not in _KEYS:
        return f"unknown key '{key}'; the keys are {', '.join(_KEYS)}"
    if _KEYS[key].fits(value):
        return ""
    return f"'{key}' must be {_KEYS[key].about}, got {_json_type(value)}"


def _json_type(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else json.dumps(value)
