"""The thread that writes traces: order, bounds, failures, and its end."""

import threading
from typing import Any

import numpy as np
from structlog.testing import capture_logs

from microkernel import Tensor, Trace, TracedTensor
from microkernel.tracing.writer import Closed, Ended, Item, TraceWriter


class Recorder:
    """A sink that remembers; while `gate` is shut it takes one item and waits."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.closed = self.given_up = False
        self.reached = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None

    def write(self, item: Item) -> None:
        self.reached.release()
        self.gate.wait(30)
        if self.failure is not None:
            raise self.failure
        self.items.append(item)

    def close(self) -> None:
        self.closed = True

    def give_up(self) -> None:
        self.given_up = True
        self.gate.set()

    def numbers(self) -> list[Any]:
        return [item.trace.id for item in self.items if isinstance(item, Ended)]


def ended(number: int, nbytes: int = 0) -> Ended:
    trace = Trace(number, "m", 1)
    if nbytes:
        tensor = Tensor.from_numpy("X", np.zeros(nbytes, np.uint8))
        trace.tensors.append(TracedTensor("T", tensor))
    return Ended(trace)


async def test_everything_is_written_in_order() -> None:
    sink = Recorder()
    writer = TraceWriter(sink)
    items: list[Item] = [ended(1), Closed(1, indexed=True), ended(2)]
    for item in items:
        writer.put(item)
    await writer.close(30)
    assert sink.items == items
    assert sink.closed


async def test_no_trace_no_thread() -> None:
    sink = Recorder()
    writer = TraceWriter(sink)
    assert writer._thread is None
    await writer.close(30)
    assert not sink.closed


async def test_traces_beyond_a_number_are_dropped_and_told() -> None:
    sink = Recorder()
    sink.gate.clear()
    writer = TraceWriter(sink, most_waiting=4)
    with capture_logs() as lines:
        for number in range(1, 11):
            writer.put(ended(number))
        writer.put(Closed(1, indexed=True))
        sink.gate.set()
        await writer.close(30)
    assert sink.numbers() == [1, 2, 3, 4]
    assert isinstance(sink.items[-1], Closed)
    events = [line["event"] for line in lines]
    assert events == [
        "traces are dropped: they come faster than they are written",
        "traces were dropped",
    ]
    assert lines[-1]["count"] == 6


async def test_traces_beyond_a_size_are_dropped_and_later_ones_are_written() -> None:
    sink = Recorder()
    sink.gate.clear()
    writer = TraceWriter(sink, most_bytes=100)
    for number in (1, 2, 3):
        writer.put(ended(number, nbytes=90))
    sink.gate.set()
    for _ in range(2):
        assert sink.reached.acquire(timeout=30)
    await writer.close(30)
    assert sink.numbers() == [1, 2]
    writer.put(ended(4, nbytes=90))
    await writer.close(30)
    assert sink.numbers() == [1, 2, 4]


async def test_a_sink_that_fails_is_told_once_and_asked_again() -> None:
    sink = Recorder()
    sink.failure = RuntimeError("odd")
    writer = TraceWriter(sink)
    with capture_logs() as lines:
        for number in range(3):
            writer.put(ended(number))
        for _ in range(3):
            assert sink.reached.acquire(timeout=30)
        await writer.close(30)
    assert [line["event"] for line in lines] == ["a trace could not be written"]


async def test_a_sink_that_hangs_is_left_behind() -> None:
    sink = Recorder()
    sink.gate.clear()
    writer = TraceWriter(sink)
    writer.put(ended(1))
    with capture_logs() as lines:
        await writer.close(0)
    assert sink.given_up
    assert [line["event"] for line in lines] == ["not all traces could be written in time"]
