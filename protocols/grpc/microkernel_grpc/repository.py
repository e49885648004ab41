"""The parameters of loading and unloading a model; nothing here knows grpc."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from microkernel import InvalidArgument

_FILE = "file:"


@dataclass(frozen=True, slots=True)
class LoadParameters:
    """A configuration as JSON text in place of the repository's, None for none, and a model's files
    by their path below its directory."""

    config: str | None
    files: Mapping[str, bytes]


def load_parameters(parameters: Mapping[str, Any]) -> LoadParameters:
    """What a load request says. Raises InvalidArgument for a key that is unknown and a value of the
    wrong kind."""
    config: str | None = None
    files: dict[str, bytes] = {}
    for key, value in parameters.items():
        if key == "config":
            config = _choice("load", key, value, "string_param")
        elif key.startswith(_FILE):
            files[key.removeprefix(_FILE)] = _choice("load", key, value, "bytes_param")
        else:
            raise InvalidArgument(
                f"unrecognized load parameter '{key}', expected 'config' or 'file:<path>'"
            )
    return LoadParameters(config, files)


def unload_dependents(parameters: Mapping[str, Any]) -> bool:
    """Whether an unload request takes along what depends on the model. Other keys are ignored, as
    Triton does. Raises InvalidArgument for a value of the wrong kind."""
    key = "unload_dependents"
    if key not in parameters:
        return False
    wanted: bool = _choice("unload", key, parameters[key], "bool_param")
    return wanted


def _choice(what: str, key: str, value: Any, wanted: str) -> Any:
    if value.WhichOneof("parameter_choice") != wanted:
        raise InvalidArgument(
            f"invalid value type for {what} parameter '{key}', expected {wanted}."
        )
    return getattr(value, wanted)
