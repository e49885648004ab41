"""What travels through the server: requests and responses as plain data.

No callbacks, no live protocol objects, no references to an event loop: a request can cross a
process boundary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from microkernel.errors import InvalidArgument, MicrokernelError
from microkernel.tensor import Tensor
from microkernel.trace import Trace

Parameter: TypeAlias = bool | int | float | str
Parameters: TypeAlias = Mapping[str, Parameter]


class _Nothing(dict[str, Any]):
    """The empty mapping as the default of a field, for which it must be hashable. A factory in its
    place would be called several times for every request."""

    __slots__ = ()

    def __hash__(self) -> int:  # type: ignore[override]  # dict declares it None
        return 0


NO_PARAMETERS: Parameters = _Nothing()
NO_CLASSIFICATIONS: Mapping[str, int] = _Nothing()
LATEST = -1
"""As a version: the highest one that is ready."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """Which sequence a request belongs to, and whether it opens or closes it. An id of 0 or ""
    means none."""

    id: int | str = 0
    start: bool = False
    end: bool = False


NO_SEQUENCE = Sequence()


@dataclass(frozen=True, slots=True)
class RegionPart:
    """A part of a region of shared memory that a client has registered."""

    region: str
    byte_size: int
    offset: int = 0


NO_PARTS: Mapping[str, RegionPart] = _Nothing()


@dataclass(slots=True)
class Spent:
    """What the executions of requests took that were made on behalf of another one, in
    nanoseconds, by Triton's parts of an execution."""

    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0

    def add(self, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Add an execution, or what was spent on behalf of such a request."""
        self.input_ns += input_ns
        self.infer_ns += infer_ns
        self.output_ns += output_ns


@dataclass(slots=True)
class InferRequest:
    """One inference request, built whole by a front end; read-only by habit.

    `outputs` names the outputs asked for, empty for all. `timeout_us` is the wait a client allows
    in the queue, 0 for none. `parameters` holds only what a client sent for the backend, never a
    reserved key. `classifications` says of which outputs the largest values are wanted in place of
    the tensor, and how many. `shared_inputs` says where the data of an input lies in shared memory;
    its tensor's own data is empty then. `shared_outputs` says where an output goes. `trace` is what
    `Port.begin_trace` gave for the request, None for one that is not traced. `spent` is where the
    time of its execution is added up, for one that is made on behalf of another.
    """

    model_name: str
    inputs: tuple[Tensor, ...]
    version: int = LATEST
    id: str = ""
    outputs: tuple[str, ...] = ()
    parameters: Parameters = NO_PARAMETERS
    priority: int = 0
    timeout_us: int = 0
    sequence: Sequence = NO_SEQUENCE
    classifications: Mapping[str, int] = NO_CLASSIFICATIONS
    shared_inputs: Mapping[str, RegionPart] = NO_PARTS
    shared_outputs: Mapping[str, RegionPart] = NO_PARTS
    trace: Trace | None = None
    spent: Spent | None = None

    def input(self, name: str) -> Tensor | None:
        """The input of that name, None where the request leaves it out."""
        return next((tensor for tensor in self.inputs if tensor.name == name), None)

    def tag(self) -> str:
        """The prefix of messages about a request: `[request id: <id>] `."""
        return f"[request id: {self.id or '<id_unknown>'}] "


@dataclass(slots=True)
class InferResponse:
    """An answer to a request: its outputs, and the name and version of the model that ran.

    On a stream one that is not `final` is followed by others. `error` is what became of the request
    in place of outputs; a stream may go on after it. One that is `flag_only` carries nothing and
    says only that the one before was the last.
    """

    model_name: str
    version: int
    id: str
    outputs: tuple[Tensor, ...]
    parameters: Parameters = NO_PARAMETERS
    shared_outputs: Mapping[str, RegionPart] = NO_PARTS
    final: bool = True
    error: MicrokernelError | None = None
    flag_only: bool = False


@dataclass(slots=True)
class Answer:
    """What a model gave for one request: outputs and parameters, in the backend's shapes."""

    outputs: tuple[Tensor, ...]
    parameters: Parameters = NO_PARAMETERS


class Reschedule:
    """In place of an answer: the model wants to see the same request again, in a later batch. There
    is only the one object `RESCHEDULE`."""

    __slots__ = ()


RESCHEDULE = Reschedule()

Outcome: TypeAlias = InferResponse | MicrokernelError | Reschedule
"""What became of one request of a batch, as a backend says it."""
Answered: TypeAlias = Answer | MicrokernelError | Reschedule
"""The same on the server's side."""


def parse_version(text: str) -> int:
    """A version as clients write it; "" is LATEST. Raises InvalidArgument for anything but a 64-bit
    number."""
    if not text:
        return LATEST
    try:
        version = int(text)
    except ValueError:
        version = -2
    if not LATEST <= version < 2**63:
        raise InvalidArgument(
            f"failed to get model version from specified version string '{text}' (details: stol), "
            "version should be an integral value > 0"
        )
    return version
