"""Carries the responses of one request from the server's loop to a consumer elsewhere."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol, TypeAlias

import structlog

from microkernel.errors import Internal, MicrokernelError, Unavailable
from microkernel.inprocess.loop import STOPPED, LoopThread
from microkernel.inprocess.response import InferenceResponse
from microkernel.port import Port
from microkernel.request import InferRequest, InferResponse
from microkernel.responses import ResponseStream

log = structlog.get_logger()

WINDOW = 8
"""Responses that may wait for a consumer; more stay in the stream, which slows the model down. Some
must, or every response would cost two changes of thread."""

Respond: TypeAlias = Callable[[InferResponse], InferenceResponse]


class ConsumerGone(Exception):
    """The loop of the consumer has been closed."""


class Outlet(Protocol):
    """Where a consumer takes its responses from; used on the server's loop."""

    bounded: bool
    """Whether only so many responses may wait as the window says."""

    async def put(self, response: InferenceResponse) -> None:
        """Hand a response over. Raises ConsumerGone."""
        ...

    def put_last(self, response: InferenceResponse | None) -> None:
        """Hand over what needs no waiting: a response that ends everything, or the news that there
        are no more. Raises ConsumerGone."""
        ...


class Relay:
    """One request on its way: `run` it on the server's loop; the rest may be called from any
    thread."""

    def __init__(
        self, thread: LoopThread, request: InferRequest, outlet: Outlet, respond: Respond
    ) -> None:
        self._thread = thread
        self._request = request
        self._outlet = outlet
        self._respond = respond
        self._stream: ResponseStream | None = None
        self._waiting = 0
        self._room: asyncio.Future[None] | None = None
        self._left = False

    def cancel(self) -> None:
        """Abandon the request and give out nothing more; without effect after its end."""
        self._thread.post(self._leave)

    def taken(self) -> None:
        """The consumer has taken a response."""
        self._thread.post(self._taken)

    async def open(self, port: Port, own: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        """Submit the request; `own` is given the work of carrying its responses. Raises what
        `Port.stream` raises for a request that is refused; the outlet is told too."""
        try:
            self._stream = await port.stream(self._request)
        except BaseException as error:
            told = error if isinstance(error, MicrokernelError) else Unavailable(STOPPED)
            self._finish(self._failed(told))
            raise
        if self._left:
            self._stream.close()
        own(self._run(self._stream))

    async def _run(self, stream: ResponseStream) -> None:
        last: InferenceResponse | None = None
        try:
            async for response in stream:
                await self._outlet.put(self._respond(response))
                response = None  # type: ignore[assignment]  # its memory is the consumer's now
                await self._wait_for_room()
        except ConsumerGone:
            pass
        except asyncio.CancelledError:
            last = self._failed(Unavailable(STOPPED))
            raise
        except Exception:
            log.exception("responses could not be handed over")
            last = self._failed(Internal("internal error, see the server's log"))
        finally:
            self._stream = None  # which keeps the memory of the last response
            stream.close()
            self._finish(last)

    def _failed(self, error: MicrokernelError) -> InferenceResponse:
        request = self._request
        return self._respond(
            InferResponse(request.model_name, request.version, request.id, (), error=error)
        )

    def _finish(self, last: InferenceResponse | None) -> None:
        with suppress(ConsumerGone):
            self._outlet.put_last(last)

    async def _wait_for_room(self) -> None:
        if not self._outlet.bounded:
            return
        self._waiting += 1
        while self._waiting >= WINDOW and not self._left:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def _taken(self) -> None:
        self._waiting -= 1
        self._wake()

    def _leave(self) -> None:
        self._left = True
        if self._stream is not None:
            self._stream.close()
        self._wake()

    def _wake(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
