"""`InferenceRequest`: what is asked of a model, and what becomes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from microkernel.errors import InvalidArgument
from microkernel.inprocess.memory import DeviceOrMemoryType, require_host
from microkernel.inprocess.tensor import encode_input
from microkernel.request import NO_SEQUENCE, InferRequest, Parameter, Sequence

if TYPE_CHECKING:
    from microkernel.inprocess.model import Model

SEQUENCE_START = 1
SEQUENCE_END = 2
_UINT64 = range(2**64)


@dataclass(slots=True, eq=False)
class InferenceRequest:
    """A request. It may be run any number of times, also at the same time.

    `inputs` are by name: a `Tensor`, a numpy array, an object with `__dlpack__`, or a nested list.
    Their memory is read until the request is answered, so leave it as it is till then. `flags` are
    1 for the start of the sequence `correlation_id` and 2 for its end; `timeout` is the longest
    wait in a queue in microseconds, 0 for the model's own. `response_queue` gets every response
    too, without regard to how fast the iterator is read: a `queue.SimpleQueue` for `infer`, an
    `asyncio.Queue` for `async_infer`, which slows the model down where it has a size and is full.
    """

    model: "Model"
    request_id: str | None = None
    flags: int = 0
    correlation_id: int | str | None = None
    priority: int = 0
    timeout: int = 0
    inputs: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    output_memory_type: DeviceOrMemoryType | None = None
    response_queue: Any = None


def encode(request: InferenceRequest) -> InferRequest:
    """The request as the port takes it. Raises InvalidArgument and Unsupported naming what is
    wrong."""
    if request.output_memory_type is not None:
        require_host(request.output_memory_type, "output_memory_type")
    _check(request)
    return InferRequest(
        request.model.name,
        tuple(encode_input(name, value) for name, value in request.inputs.items()),
        version=request.model.version,
        id=request.request_id or "",
        parameters=dict(request.parameters),
        priority=request.priority,
        timeout_us=request.timeout,
        sequence=_sequence(request),
    )


def _check(request: InferenceRequest) -> None:
    for name in ("inputs", "parameters"):
        if not isinstance(value := getattr(request, name), Mapping):
            raise InvalidArgument(f"{name} must be a mapping by name, got {type(value).__name__}")
    if not isinstance(request.request_id, str | None):
        raise InvalidArgument(f"request_id must be text, got {request.request_id!r}")
    for name in ("priority", "timeout", "flags"):
        if not _is_unsigned(value := getattr(request, name)):
            raise InvalidArgument(f"{name} must be an unsigned 64-bit number, got {value!r}")
    for key, value in cast("Mapping[Any, Any]", request.parameters).items():
        if not isinstance(key, str) or not isinstance(value, str | int | float | bool):
            raise InvalidArgument(
                f"parameter {key!r} must be a str, int, float or bool under a text key, got "
                f"{type(value).__name__}"
            )


def _is_unsigned(value: object) -> bool:
    return isinstance(value, int) and value in _UINT64


def _sequence(request: InferenceRequest) -> Sequence:
    number = request.correlation_id
    if number is None and not request.flags:
        return NO_SEQUENCE
    if not isinstance(number, str | None) and not _is_unsigned(number):
        raise InvalidArgument(
            f"correlation_id must be text or an unsigned 64-bit number, got {number!r}"
        )
    return Sequence(
        number or 0,
        start=bool(request.flags & SEQUENCE_START),
        end=bool(request.flags & SEQUENCE_END),
    )
