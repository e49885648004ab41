"""The parameters of an infer request: reserved keys have places of their own, the others are for
the backend."""

from typing import Any

from microkernel import InvalidArgument, Parameter, Parameters, Sequence
from microkernel_http.document import boolean, members, refuse, text, unsigned

RESERVED = frozenset(
    {
        *("sequence_id", "sequence_start", "sequence_end"),
        *("priority", "timeout", "binary_data_output"),
    }
)
"""The keys that are not for the backend."""
_QUEUE = RESERVED - {"binary_data_output"}
_NO_PARAMETERS: Parameters = {}
_NO_QUEUE = (0, 0, Sequence())


def custom_parameters(given: dict[str, Any]) -> Parameters:
    """What is not reserved, checked. Raises InvalidArgument for keys that start with `triton_` and
    for values that no parameter can hold."""
    if RESERVED.issuperset(given):
        return _NO_PARAMETERS
    return {key: _allowed(key, value) for key, value in given.items() if key not in RESERVED}


def _allowed(key: str, value: Any) -> Parameter:
    if key.startswith("triton_"):
        raise InvalidArgument(
            "parameter keys starting with 'triton_' are reserved for Triton usage "
            "and should not be specified."
        )
    return custom(key, value)


def custom(key: str, value: Any) -> Parameter:
    """The value of a parameter for the backend. An integer beyond 64 bits becomes a double. Raises
    InvalidArgument for what no parameter can hold."""
    if type(value) is int:
        return value if -(1 << 63) <= value < 1 << 63 else _double(value)
    if isinstance(value, str | bool | float):
        return value
    raise InvalidArgument(
        f"parameter '{key}' has invalid type. It should be either 'int', 'bool', or 'string'."
    )


def _double(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def queueing(given: dict[str, Any]) -> tuple[int, int, Sequence]:
    """What the queue of a model looks at: priority, timeout in microseconds and sequence. Raises
    Internal for a value of the wrong kind."""
    if _QUEUE.isdisjoint(given):
        return _NO_QUEUE
    return _number(given, "priority"), _number(given, "timeout"), _sequence(given)


def _sequence(given: dict[str, Any]) -> Sequence:
    identity = given.get("sequence_id", 0)
    if type(identity) is not str:
        identity = _number_id(identity)
    return Sequence(
        identity,
        boolean(given.get("sequence_start", False), "sequence_start"),
        boolean(given.get("sequence_end", False), "sequence_end"),
    )


def _number_id(value: Any) -> int:
    if type(value) is int and 0 <= value < 1 << 64:
        return value
    return refuse("sequence_id", "string")


def _number(given: dict[str, Any], key: str) -> int:
    return unsigned(given.get(key, 0), key)


def flag(given: dict[str, Any], key: str) -> bool:
    """A reserved parameter that is a boolean, False where it is absent."""
    return boolean(given[key], key) if key in given else False


def parameters_of(document: Any) -> dict[str, Any]:
    """The member `parameters` of an object, empty where it is absent."""
    return members(document["parameters"], "parameters") if "parameters" in document else {}


def identifier(document: Any) -> str:
    """The request id, "" where it is absent."""
    return text(document["id"], "id") if "id" in document else ""
