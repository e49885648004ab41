"""What the kernel records of a traced request.

Called for traced requests only, so that others cost no call. What comes after a trace was ended, as
the result of a request whose caller has gone, is left out.
"""

from collections.abc import Iterable
from dataclasses import replace

from microkernel.request import InferRequest
from microkernel.stats import Execution
from microkernel.tensor import Tensor
from microkernel.trace import TracedTensor

MOST_RECORDS = 1024
MOST_BYTES = 64 << 20
"""After how many records, and bytes of tensors, the responses of a stream are left out."""
_QUEUED = "TENSOR_QUEUE_INPUT"
_GIVEN = "TENSOR_BACKEND_INPUT"
_MADE = "TENSOR_BACKEND_OUTPUT"


def queued(request: InferRequest, now: int) -> None:
    """A request was put into its queue, its inputs as the client sent them."""
    trace = request.trace
    if trace is None or trace.ended_ns:
        return
    trace.mark("QUEUE_START", now)
    if trace.wants_tensors:
        trace.tensors += [_copy(_QUEUED, tensor) for tensor in request.inputs]


def executed(request: InferRequest, times: Execution) -> None:
    """A backend was given a request, its inputs in the backend's shapes, and is done with it."""
    trace = request.trace
    if trace is None or trace.ended_ns:
        return
    trace.mark("COMPUTE_START", times.start)
    trace.mark("COMPUTE_INPUT_END", times.input_end)
    trace.mark("COMPUTE_OUTPUT_START", times.output_start)
    trace.mark("COMPUTE_END", times.end)
    if trace.wants_tensors:
        copies = {t.tensor.name: t.tensor.data for t in trace.tensors if t.activity == _QUEUED}
        trace.tensors += [
            TracedTensor(_GIVEN, replace(tensor, data=copies[tensor.name]))
            for tensor in request.inputs
            if tensor.name in copies
        ]


def responded(request: InferRequest, outputs: Iterable[Tensor], now: int) -> None:
    """A response came, its outputs as the backend made them. Of a long stream only the first are
    recorded."""
    trace = request.trace
    if trace is None or trace.ended_ns:
        return
    if len(trace.timestamps) + len(trace.tensors) >= MOST_RECORDS:
        return
    trace.mark("INFER_RESPONSE_COMPLETE", now)
    if trace.wants_tensors and sum(t.tensor.nbytes for t in trace.tensors) < MOST_BYTES:
        trace.tensors += [_copy(_MADE, tensor) for tensor in outputs]


def answered(request: InferRequest, outputs: Iterable[Tensor], now: int) -> None:
    """The only response of a request came, or an error in its place, which has no outputs."""
    responded(request, outputs, now)
    over(request, now)


def over(request: InferRequest, now: int) -> None:
    """The kernel is done with a request."""
    if request.trace is not None and not request.trace.ended_ns:
        request.trace.mark("REQUEST_END", now)


def _copy(activity: str, tensor: Tensor) -> TracedTensor:
    return TracedTensor(activity, replace(tensor, data=bytes(tensor.data)))
