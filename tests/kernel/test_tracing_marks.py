"""What the kernel records of a request: in which order, how much of a stream, and nothing once the
trace has ended."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from microkernel import InferRequest, Tensor, Trace
from microkernel.stats import Execution
from microkernel.tracing import marks

TIMES = Execution(30, 31, 32, 33)


def request(**trace: Any) -> InferRequest:
    tensor = Tensor.from_numpy("X", np.arange(4, dtype=np.int32))
    return InferRequest("m", (tensor,), trace=Trace(1, "m", 1, **trace))


def trace_of(made: InferRequest) -> Trace:
    assert made.trace is not None
    return made.trace


def test_a_long_stream_is_recorded_in_part() -> None:
    made = request(wants_tensors=True)
    for ns in range(1, 5000):
        marks.responded(made, made.inputs, ns)
    marks.over(made, 5000)
    trace = trace_of(made)
    assert len(trace.timestamps) + len(trace.tensors) <= marks.MOST_RECORDS + 2
    assert trace.timestamps[0] == ("INFER_RESPONSE_COMPLETE", 1)
    assert trace.timestamps[-1] == ("REQUEST_END", 5000)


def test_a_stream_of_large_responses_is_recorded_without_most_of_its_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(marks, "MOST_BYTES", 40)
    made = request(wants_tensors=True)
    for ns in range(1, 10):
        marks.responded(made, made.inputs, ns)
    trace = trace_of(made)
    assert len(trace.tensors) == 3
    assert len(trace.timestamps) == 9


def test_tensors_are_copies_and_the_backends_share_those_of_the_queue() -> None:
    data = bytearray(16)
    made = request(wants_tensors=True)
    made.inputs[0].data = memoryview(data)
    marks.queued(made, 1)
    data[:] = b"x" * 16
    marks.executed(made, TIMES)
    queued, given = trace_of(made).tensors
    assert (queued.activity, given.activity) == ("TENSOR_QUEUE_INPUT", "TENSOR_BACKEND_INPUT")
    assert queued.tensor.data is given.tensor.data
    assert bytes(queued.tensor.data) == bytes(16)


def test_tensors_alone_are_recorded_without_timestamps() -> None:
    made = request(wants_tensors=True, wants_timestamps=False)
    marks.queued(made, 1)
    marks.executed(made, TIMES)
    marks.answered(made, made.inputs, 40)
    assert trace_of(made).timestamps == []
    assert len(trace_of(made).tensors) == 3


@pytest.mark.parametrize(
    "mark",
    [
        lambda made: marks.queued(made, 1),
        lambda made: marks.executed(made, TIMES),
        lambda made: marks.responded(made, made.inputs, 1),
        lambda made: marks.answered(made, made.inputs, 1),
        lambda made: marks.over(made, 1),
    ],
)
def test_nothing_is_recorded_after_the_end(mark: Callable[[InferRequest], None]) -> None:
    made = request(wants_tensors=True)
    trace_of(made).ended_ns = 1
    mark(made)
    assert (trace_of(made).timestamps, trace_of(made).tensors) == ([], [])
