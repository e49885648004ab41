"""Responses on their way from the server's loop to a consumer that reads as it likes."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, cast

import pytest
from server_harness import PATIENCE

from microkernel import InferRequest, InferResponse, NotFound, Port, ResponseStream, Unavailable
from microkernel.inprocess import InferenceRequest, InferenceResponse, Model, ResponseIterator
from microkernel.inprocess.engine import Engine
from microkernel.inprocess.iterators import LoopOutlet, ThreadOutlet
from microkernel.inprocess.loop import LoopThread
from microkernel.inprocess.relay import WINDOW, Outlet, Relay
from microkernel.inprocess.response import respond

MODEL = Model(Engine(), "m", 1)


class Source:
    """A port of one model, whose responses the test gives."""

    def __init__(self, thread: LoopThread) -> None:
        self.thread = thread
        self.stream_made: Future[ResponseStream] = Future()
        self.abandoned = threading.Event()
        self.refusal: Exception | None = None
        self.tasks: list[asyncio.Task[None]] = []

    async def stream(self, request: InferRequest) -> ResponseStream:
        if self.refusal is not None:
            raise self.refusal
        stream = ResponseStream(self.abandoned.set)
        self.stream_made.set_result(stream)
        return stream

    def own(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    def open(self, outlet: Outlet) -> tuple[Relay, "Future[None]"]:
        relay = Relay(
            self.thread,
            InferRequest("m", ()),
            outlet,
            lambda response: respond(response, MODEL, lambda _: None),
        )
        return relay, self.thread.submit(relay.open(cast("Port", self), self.own))

    def give(self, count: int, *, last: bool = True) -> None:
        """Have so many responses come; the last one is final."""

        async def put() -> None:
            for i in range(count):
                final = last and i == count - 1
                self.stream_made.result().put(InferResponse("m", 1, str(i), (), final=final))

        self.thread.call(put(), PATIENCE)

    def buffered(self) -> int:
        """How many responses wait in the stream when nothing moves any more."""

        async def settled() -> int:
            for _ in range(10 * WINDOW):
                await asyncio.sleep(0)
            return self.stream_made.result().buffered

        return self.thread.call(settled(), PATIENCE)


@pytest.fixture
def source() -> Iterator[Source]:
    thread = LoopThread("test")
    yield Source(thread)
    thread.end()


def test_a_reader_that_does_not_read_holds_the_stream_back(source: Source) -> None:
    outlet = ThreadOutlet(InferenceRequest(MODEL))
    relay, opened = source.open(outlet)
    opened.result(PATIENCE)
    source.give(100)
    assert source.buffered() == 100 - WINDOW
    iterator = ResponseIterator(outlet, relay, raise_on_error=True)
    for i in range(10):
        assert next(iterator).request_id == str(i)
    assert source.buffered() == 100 - WINDOW - 10
    assert [r.request_id for r in iterator] == [str(i) for i in range(10, 100)]
    with pytest.raises(StopIteration):
        next(iterator)
    assert not source.abandoned.is_set()


def test_a_queue_takes_everything(source: Source) -> None:
    queue: SimpleQueue[InferenceResponse] = SimpleQueue()
    _, opened = source.open(ThreadOutlet(InferenceRequest(MODEL, response_queue=queue)))
    opened.result(PATIENCE)
    source.give(100)
    assert source.buffered() == 0
    assert [queue.get(timeout=PATIENCE).request_id for _ in range(100)] == [
        str(i) for i in range(100)
    ]


@pytest.mark.parametrize("how", ["cancel", "drop"])
def test_leaving_abandons_and_frees_what_waits(source: Source, how: str) -> None:
    outlet = ThreadOutlet(InferenceRequest(MODEL))
    relay, opened = source.open(outlet)
    opened.result(PATIENCE)
    iterator = ResponseIterator(outlet, relay, raise_on_error=True)
    source.give(50, last=False)
    assert next(iterator).request_id == "0"
    if how == "cancel":
        iterator.cancel()
        assert len(list(iterator)) <= WINDOW
    else:
        del iterator
    assert source.abandoned.wait(PATIENCE)
    assert source.buffered() == 0
    assert all(task.done() for task in source.tasks)


def test_cancelling_before_the_request_is_accepted(source: Source) -> None:
    relay = Relay(
        source.thread,
        InferRequest("m", ()),
        ThreadOutlet(InferenceRequest(MODEL)),
        lambda response: respond(response, MODEL, lambda _: None),
    )
    relay.cancel()
    source.thread.call(relay.open(cast("Port", source), source.own), PATIENCE)
    assert source.abandoned.wait(PATIENCE)


def test_the_end_of_the_loop_is_a_last_response(source: Source) -> None:
    outlet = ThreadOutlet(InferenceRequest(MODEL))
    relay, opened = source.open(outlet)
    opened.result(PATIENCE)
    iterator = ResponseIterator(outlet, relay, raise_on_error=True)
    source.thread.end()
    with pytest.raises(Unavailable, match="the server has stopped"):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)
    relay.cancel()  # nobody is there to hear it
    with pytest.raises(Unavailable, match="the server has stopped"):
        source.thread.submit(asyncio.sleep(0))


async def test_a_refusal_reaches_the_queue(source: Source) -> None:
    source.refusal = NotFound("nobody")
    queue: asyncio.Queue[InferenceResponse] = asyncio.Queue()
    _, opened = source.open(LoopOutlet(InferenceRequest(MODEL, response_queue=queue)))
    response = await queue.get()
    assert isinstance(response.error, NotFound)
    with pytest.raises(NotFound):
        opened.result(PATIENCE)


def test_a_consumer_whose_loop_is_closed_abandons_the_request(source: Source) -> None:
    async def begin() -> LoopOutlet:
        return LoopOutlet(InferenceRequest(MODEL))

    _, opened = source.open(asyncio.run(begin()))
    opened.result(PATIENCE)
    source.give(3, last=False)
    assert source.abandoned.wait(PATIENCE)
