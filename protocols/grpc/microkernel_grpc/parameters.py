"""The parameters of an infer request: reserved keys have places of their own, the others are for
the backend."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from microkernel import InvalidArgument, Parameter, Parameters, Sequence

_CUSTOM = frozenset({"bool_param", "int64_param", "string_param", "double_param"})
_EMPTY_FINAL = "triton_enable_empty_final_response"
NO_SEQUENCE = Sequence()


@dataclass(slots=True)
class Given:
    """What the parameters of a request say."""

    custom: Parameters
    sequence: Sequence
    priority: int
    timeout_us: int


NOTHING = Given({}, NO_SEQUENCE, 0, 0)


def read(parameters: Mapping[str, Any]) -> Given:
    """The parameters of a request. Raises InvalidArgument naming the key for a value of the wrong
    kind."""
    if not parameters:
        return NOTHING
    custom: dict[str, Parameter] = {}
    reserved: dict[str, Any] = {}
    for key, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        wanted = _RESERVED.get(key)
        if wanted is not None:
            reserved[key] = _choice(key, value, kind, wanted)
        elif not key.startswith("triton_"):
            custom[key] = _choice(key, value, kind, _CUSTOM)
        elif key == _EMPTY_FINAL:
            _choice(key, value, kind, frozenset({"bool_param"}))
        else:
            raise InvalidArgument(
                "parameter keys starting with 'triton_' are reserved for Triton usage "
                "and should not be specified."
            )
    return Given(
        custom,
        _sequence(reserved),
        _unsigned(reserved, "priority"),
        _unsigned(reserved, "timeout"),
    )


def wants_empty_final(parameters: Mapping[str, Any]) -> bool:
    """Whether a client wants a response of its own for the news that there will be no more."""
    return _EMPTY_FINAL in parameters and bool(parameters[_EMPTY_FINAL].bool_param)


_RESERVED: Mapping[str, frozenset[str]] = {
    "sequence_id": frozenset({"int64_param", "string_param"}),
    "sequence_start": frozenset({"bool_param"}),
    "sequence_end": frozenset({"bool_param"}),
    "priority": frozenset({"int64_param", "uint64_param"}),
    "timeout": frozenset({"int64_param"}),
}


_NEVER_FORWARDED = frozenset({*_RESERVED, "headers", "binary_data_output"})


def is_reserved(key: str) -> bool:
    """Whether a key has a meaning of its own, so that metadata of that name is not forwarded."""
    return key in _NEVER_FORWARDED or key.startswith("triton_")


def _choice(key: str, value: Any, kind: str | None, wanted: frozenset[str]) -> Any:
    if kind is None or kind not in wanted:
        raise InvalidArgument(
            f"invalid value type for '{key}' parameter, expected {' or '.join(sorted(wanted))}."
        )
    return getattr(value, kind)


def _sequence(reserved: Mapping[str, Any]) -> Sequence:
    identity = reserved.get("sequence_id", 0)
    if isinstance(identity, int):
        identity &= (1 << 64) - 1  # Triton reads the signed field as an unsigned number
    start, end = reserved.get("sequence_start", False), reserved.get("sequence_end", False)
    return Sequence(identity, start, end)


def _unsigned(reserved: Mapping[str, Any], key: str) -> int:
    value: int = reserved.get(key, 0)
    if value < 0:
        raise InvalidArgument(f"invalid value {value} for '{key}' parameter, expected 0 or more.")
    return value
