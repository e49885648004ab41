"""The responses of one request as they come."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from microkernel.request import InferResponse


class ResponseStream(AsyncIterator[InferResponse]):
    """Iterates over the responses of an accepted request; ends after the final one, whatever
    happens to the model. One consumer only."""

    def __init__(self, abandon: Callable[[], object]) -> None:
        """`abandon` is called once where the consumer leaves before the final response."""
        self._abandon = abandon
        self._responses: deque[InferResponse] = deque()
        self._arrived: asyncio.Future[None] | None = None
        self._ended = False
        self._closed = False

    def put(self, response: InferResponse) -> None:
        """A response has come; one that comes after the final one or after `close` is dropped."""
        if self._ended or self._closed:
            return
        self._ended = response.final
        self._responses.append(response)
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    @property
    def ended(self) -> bool:
        """Whether the final response has come, read or not."""
        return self._ended

    async def __anext__(self) -> InferResponse:
        """The next response. Cancelling the wait leaves the stream as it is."""
        while not self._responses:
            if self._ended or self._closed:
                raise StopAsyncIteration
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        return self._responses.popleft()

    def close(self) -> None:
        """Leave: a request that is not finished is abandoned, and nothing more is given out.
        Without effect after the final response was read and when called again."""
        if self._closed:
            return
        self._closed = True
        self._responses.clear()
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)
        if not self._ended:
            self._abandon()
