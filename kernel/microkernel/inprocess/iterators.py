"""The responses of a request for its consumer: from a thread, or from an event loop."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeAlias

from microkernel.errors import InvalidArgument, Unavailable
from microkernel.inprocess.loop import STOPPED
from microkernel.inprocess.relay import ConsumerGone, Relay
from microkernel.inprocess.request import InferenceRequest
from microkernel.inprocess.response import InferenceResponse

Responses: TypeAlias = "SimpleQueue[InferenceResponse | None]"


class ThreadOutlet:
    """Hands responses to whatever thread asks, and to the request's queue."""

    def __init__(self, request: InferenceRequest) -> None:
        """Raises InvalidArgument for a queue of another kind."""
        self.queue = request.response_queue
        if self.queue is not None and not isinstance(self.queue, SimpleQueue):
            raise InvalidArgument("the response_queue of infer() must be a queue.SimpleQueue")
        self.bounded = self.queue is None
        self.responses: Responses = SimpleQueue()

    async def put(self, response: InferenceResponse) -> None:
        """See `Outlet.put`."""
        self.put_last(response)

    def put_last(self, response: InferenceResponse | None) -> None:
        """See `Outlet.put_last`."""
        self.responses.put(response)
        if self.queue is not None and response is not None:
            self.queue.put(response)


class LoopOutlet:
    """Hands responses to the event loop that it was made on, and to the request's queue."""

    def __init__(self, request: InferenceRequest) -> None:
        """Raises InvalidArgument for a queue of another kind."""
        self.queue = request.response_queue
        if self.queue is not None and not isinstance(self.queue, asyncio.Queue):
            raise InvalidArgument("the response_queue of async_infer() must be an asyncio.Queue")
        self.bounded = self.queue is None
        self.responses: asyncio.Queue[InferenceResponse | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    async def put(self, response: InferenceResponse) -> None:
        """See `Outlet.put`."""
        self._post(self.responses, response)
        if self.queue is None:
            return
        if self.queue.maxsize <= 0:
            self._post(self.queue, response)
            return
        try:
            waiting = asyncio.run_coroutine_threadsafe(self.queue.put(response), self._loop)
        except RuntimeError:
            raise ConsumerGone from None
        await asyncio.wrap_future(waiting)

    def put_last(self, response: InferenceResponse | None) -> None:
        """See `Outlet.put_last`."""
        self._post(self.responses, response)
        if self.queue is not None and response is not None:
            self._post(self.queue, response)

    def _post(
        self, queue: "asyncio.Queue[InferenceResponse | None]", response: InferenceResponse | None
    ) -> None:
        try:
            self._loop.call_soon_threadsafe(_put, queue, response)
        except RuntimeError:
            raise ConsumerGone from None


def _put(
    queue: "asyncio.Queue[InferenceResponse | None]", response: InferenceResponse | None
) -> None:
    if not queue.full():  # else its reader has what it wanted and left
        queue.put_nowait(response)


class _Progress:
    """How far a consumer has come."""

    def __init__(self, relay: Relay, *, leave: bool, raise_on_error: bool) -> None:
        self._relay = relay
        self._leave = leave
        self._raise = raise_on_error
        self.over = False

    def took(self, response: InferenceResponse | None) -> InferenceResponse | None:
        """What the consumer gets for what came; None where that was all."""
        if response is None or response.final:
            self.over = True
        else:
            self._relay.taken()
        if response is not None and response.error is not None and self._raise:
            raise response.error
        return response

    def cancel(self) -> None:
        """Abandon the request."""
        if not self.over:
            self._relay.cancel()

    def __del__(self) -> None:
        if self._leave:
            self.cancel()


class ResponseIterator(Iterator[InferenceResponse]):
    """Iterates over the responses of a request; ends after the final one. Each step waits for the
    next response, and raises its error unless the caller wants errors as responses.

    Dropping the iterator before its end abandons the request, unless a `response_queue` takes the
    responses.
    """

    def __init__(self, outlet: ThreadOutlet, relay: Relay, *, raise_on_error: bool) -> None:
        self._outlet = outlet
        self._progress = _Progress(relay, leave=outlet.bounded, raise_on_error=raise_on_error)

    def __next__(self) -> InferenceResponse:
        """The next response."""
        if self._progress.over:
            raise StopIteration
        response = self._progress.took(self._outlet.responses.get())
        if response is None:
            raise StopIteration
        return response

    def cancel(self) -> None:
        """Abandon the request; the iteration ends with what has come already."""
        self._progress.cancel()


class AsyncResponseIterator(AsyncIterator[InferenceResponse]):
    """The same for an event loop, the one it was made on. The first step raises where the request
    was refused."""

    def __init__(
        self, outlet: LoopOutlet, relay: Relay, opened: "Future[None]", *, raise_on_error: bool
    ) -> None:
        self._outlet = outlet
        self._opened: Future[None] | None = opened
        self._progress = _Progress(relay, leave=outlet.bounded, raise_on_error=raise_on_error)

    async def __anext__(self) -> InferenceResponse:
        """The next response. Cancelling the wait leaves the iterator as it is."""
        if self._opened is not None:
            await self._accepted(self._opened)
        if self._progress.over:
            raise StopAsyncIteration
        response = self._progress.took(await self._outlet.responses.get())
        if response is None:
            raise StopAsyncIteration
        return response

    async def _accepted(self, opened: "Future[None]") -> None:
        waiting = asyncio.wrap_future(opened)
        await asyncio.wait({waiting})
        self._opened = None
        if waiting.cancelled():
            self._progress.over = True
            raise Unavailable(STOPPED)
        if error := waiting.exception():
            self._progress.over = True
            raise error

    def cancel(self) -> None:
        """Abandon the request; the iteration ends with what has come already."""
        self._progress.cancel()
