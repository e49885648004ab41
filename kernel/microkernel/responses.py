"""The responses of one request as they come."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TypeAlias

from microkernel.errors import MicrokernelError
from microkernel.request import InferResponse

HIGH_BYTES = 8 << 20
HIGH_COUNT = 1024
"""What may wait to be read before the model is asked to pause: enough to keep any connection busy
while the model is told to go on, and little enough for hundreds of clients that never read."""

LOW_BYTES = HIGH_BYTES // 4
LOW_COUNT = HIGH_COUNT // 4
"""How far a consumer must have come for the model to go on; far below the other mark, so that it is
not told at every response."""

Change: TypeAlias = Callable[[InferResponse], Awaitable[InferResponse]]


class ResponseStream(AsyncIterator[InferResponse]):
    """Iterates over the responses of an accepted request; ends after the final one, whatever
    happens to the model. One consumer only, who closes it when done."""

    def __init__(
        self, abandon: Callable[[], object], throttle: Callable[[bool], object] | None = None
    ) -> None:
        """`abandon` is called once where the consumer leaves before the final response has come.
        `throttle` is called with True when too much waits to be read, and with False when the
        consumer has caught up; neither is called after the final response has come."""
        self._abandon: Callable[[], object] | None = abandon
        self._throttle = throttle
        self._responses: deque[InferResponse] = deque()
        self._bytes = 0
        self._throttled = False
        self._changes: list[Change] = []
        self._unread: Callable[[InferResponse], object] | None = None
        self._arrived: asyncio.Future[None] | None = None
        self._ended = False
        self._closed = False
        self._held = False

    def put(self, response: InferResponse) -> None:
        """A response has come; one that comes after the final one or after `close` is dropped."""
        if self._ended or self._closed:
            if self._closed and self._unread is not None:
                self._unread(response)
            return
        self._responses.append(response)
        if response.final:
            self._ended = True
            self._abandon = self._throttle = None  # which refer to who refers to the stream
        elif self._throttle is not None:
            self._bytes += _size(response)
            self._hold_back(self._throttle)
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def then(self, change: Change) -> None:
        """Have every response that carries outputs pass through `change` when it is read, after
        those that were given before. A MicrokernelError that it raises stands in place of the
        outputs. It is called again for a response whose reader was cancelled."""
        self._changes.append(change)

    def unread(self, told: Callable[[InferResponse], object]) -> None:
        """Have `told` hear of every response that the consumer leaves unread."""
        self._unread = told

    def hold(self) -> None:
        """Give out nothing until `release`: what comes waits as if it were not read."""
        self._held = True

    def release(self) -> None:
        """Give out what has come and what will come."""
        self._held = False
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    @property
    def held(self) -> bool:
        """Whether it is not the consumer's fault that nothing is read."""
        return self._held

    @property
    def ended(self) -> bool:
        """Whether the final response has come, read or not."""
        return self._ended

    @property
    def buffered(self) -> int:
        """How many responses have come and have not been read."""
        return len(self._responses)

    async def __anext__(self) -> InferResponse:
        """The next response. Cancelling the wait leaves the stream as it is."""
        while self._held or not self._responses:
            if self._closed or (self._ended and not self._responses):
                raise StopAsyncIteration
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        response = given = self._responses[0]
        if self._changes and response.outputs:
            response = await self._changed(response)
            if not self._responses:  # closed meanwhile
                raise StopAsyncIteration
        self._responses.popleft()
        if self._throttle is not None:
            self._bytes -= _size(given)
            self._hold_back(self._throttle)
        elif given.final:
            self._changes.clear()  # and what they hold
        return response

    async def _changed(self, response: InferResponse) -> InferResponse:
        try:
            for change in self._changes:
                response = await change(response)
        except MicrokernelError as error:
            # Without the frames it came through, which hold the outputs and what they go to.
            return replace(response, outputs=(), error=error.with_traceback(None))
        return response

    def _hold_back(self, throttle: Callable[[bool], object]) -> None:
        """Say it when one of the marks is crossed."""
        if not self._throttled:
            if self._bytes > HIGH_BYTES or len(self._responses) > HIGH_COUNT:
                self._throttled = True
                throttle(True)
        elif self._bytes <= LOW_BYTES and len(self._responses) <= LOW_COUNT:
            self._throttled = False
            throttle(False)

    def close(self) -> None:
        """Leave: a request that is not finished is abandoned, and nothing more is given out.
        Without effect after the final response was read and when called again."""
        if self._closed:
            return
        self._closed = True
        if self._unread is not None:
            for response in self._responses:
                self._unread(response)
        self._responses.clear()
        self._changes.clear()
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)
        abandon, self._abandon, self._throttle = self._abandon, None, None
        if abandon is not None:
            abandon()


def _size(response: InferResponse) -> int:
    return sum(tensor.nbytes for tensor in response.outputs)
