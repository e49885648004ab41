"""What is recorded of one request that is traced: plain data, filled in on the request's way."""

import time
from dataclasses import dataclass, field

from microkernel.tensor import Tensor


@dataclass(slots=True)
class TracedTensor:
    """A tensor as it was at one point of the way, `activity` in Triton's words
    (`TENSOR_QUEUE_INPUT`). Its data is the trace's own copy."""

    activity: str
    tensor: Tensor


@dataclass(slots=True)
class Trace:
    """The trace of one request.

    `id` is unique in the server, `parent` the id of the trace of the request that caused this one,
    0 for none; `children` are the traces of the requests that this one caused, which are handed in
    with it. `timestamps` are names in Triton's words and nanoseconds of the monotonic clock, in no
    promised order; `ended_ns` is the moment at which the trace was ended, 0 before.

    In the OpenTelemetry mode `context` is the W3C `traceparent` under which work on behalf of the
    request continues the trace, `caller` the one that the request came with and `caller_state` its
    `tracestate`; elsewhere they are "". `group` says under which settings it was sampled.
    """

    id: int
    model_name: str
    version: int
    request_id: str = ""
    parent: int = 0
    context: str = ""
    wants_timestamps: bool = True
    wants_tensors: bool = False
    timestamps: list[tuple[str, int]] = field(default_factory=list)
    tensors: list[TracedTensor] = field(default_factory=list)
    children: list["Trace"] = field(default_factory=list)
    caller: str = ""
    caller_state: str = ""
    group: int = 0
    ended_ns: int = 0

    @property
    def shown_id(self) -> str:
        """The id by which people find the trace: the W3C one where there is one, else its
        number."""
        return self.context.split("-")[1] if self.context else str(self.id)

    def mark(self, name: str, ns: int = 0) -> None:
        """Record that something happened, now or at the moment `ns`."""
        if self.wants_timestamps:
            self.timestamps.append((name, ns or time.monotonic_ns()))
