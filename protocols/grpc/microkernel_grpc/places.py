"""The parameters of a tensor: where in shared memory it lies, and whether its classes are wanted;
nothing here knows grpc."""

from collections.abc import Iterable, Mapping
from typing import Any

from microkernel import InvalidArgument, RegionPart

_REGION, _SIZE, _OFFSET = (
    "shared_memory_region",
    "shared_memory_byte_size",
    "shared_memory_offset",
)
_KINDS: Mapping[str, str] = {
    _REGION: "string_param",
    _SIZE: "int64_param",
    _OFFSET: "int64_param",
    "classification": "int64_param",
}
_NO_PARTS: Mapping[str, RegionPart] = {}
_NO_CLASSES: Mapping[str, int] = {}


def parts(what: str, entries: Iterable[Any]) -> Mapping[str, RegionPart]:
    """Where the tensors lie that are in shared memory, by name. `what` is `input` or `output`, for
    the messages of InvalidArgument."""
    found = {
        entry.name: part
        for entry in entries
        if entry.parameters and (part := _part(what, entry)) is not None
    }
    return found or _NO_PARTS


def classifications(outputs: Iterable[Any]) -> Mapping[str, int]:
    """How many of the highest classes to answer with in place of the tensor, by output."""
    found = {
        entry.name: _classes(entry)
        for entry in outputs
        if entry.parameters and "classification" in entry.parameters
    }
    return found or _NO_CLASSES


def _part(what: str, entry: Any) -> RegionPart | None:
    given = entry.parameters
    if _REGION not in given:
        for key in (_OFFSET, _SIZE):
            if key in given:
                raise InvalidArgument(
                    f"'{key}' can not be specified without '{_REGION}' parameter for {what} "
                    f"tensor '{entry.name}'"
                )
        return None
    if _SIZE not in given:
        raise InvalidArgument(
            f"'{_SIZE}' must be specified along with '{_REGION}' parameter for {what} tensor "
            f"'{entry.name}'"
        )
    offset = _value(what, entry, _OFFSET) if _OFFSET in given else 0
    return RegionPart(_value(what, entry, _REGION), _value(what, entry, _SIZE), offset)


def _classes(entry: Any) -> int:
    count: int = _value("output", entry, "classification")
    if count <= 0:
        raise InvalidArgument(
            f"invalid value {count} for 'classification' parameter for output tensor "
            f"'{entry.name}', expected 1 or more."
        )
    if _REGION in entry.parameters:
        raise InvalidArgument(
            f"output '{entry.name}' can't set both '{_REGION}' and 'classification'"
        )
    return count


def _value(what: str, entry: Any, key: str) -> Any:
    value, wanted = entry.parameters[key], _KINDS[key]
    if value.WhichOneof("parameter_choice") != wanted:
        raise InvalidArgument(
            f"invalid value type for '{key}' parameter for {what} tensor '{entry.name}', expected "
            f"{wanted}."
        )
    return getattr(value, wanted)
