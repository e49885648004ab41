"""A connection that does not wait for its client for ever, and answers what is no HTTP in JSON."""

import asyncio
from typing import Any, cast

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import StreamReader

from microkernel_http.answers import status_answer
from microkernel_http.bounds import MAX_LINE, Bounds, Late, Waits
from microkernel_http.encode import JSON
from microkernel_http.status import error_body

GRACE = 0.5
"""Seconds that the requests of a client go on which has closed its sending side. It may have closed
both sides; nothing tells until something is sent to it."""
_HEAD_END = b"\r\n\r\n"

log = structlog.get_logger(__name__)


class BodyStalled(TimeoutError):
    """Too long nothing came of a body. What reads it gets this; aiohttp, where it drops the rest
    of a body, takes it for the end of its patience."""


class Connection(web.RequestHandler):
    """One connection. `check` is to be called now and then; it ends the connection where the
    client takes too long."""

    __slots__ = (
        *("_bounds", "_head_since", "_leaving", "_lost", "_payload", "_received"),
        *("_unsent", "_upgrade_left", "_wire"),
    )

    def __init__(self, server: web.Server, bounds: Bounds, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._bounds = bounds
        self._head_since: float | None = None
        self._received: float | None = None
        self._payload: StreamReader | None = None
        self._unsent = (0, 0.0)
        self._upgrade_left: int | None = None
        self._lost = False
        self._leaving: asyncio.TimerHandle | None = None
        self._wire: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        self._head_since = self._loop.time()
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wire = self._payload = None
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        known = len(self._messages)
        super().data_received(data)
        if len(self._messages) > known or self._upgrade_left is not None:
            self._look_for_lost(data, len(self._messages) - known)
        waiter = self._waiter
        if data and (waiter is None or not waiter.done()):  # else `begun` is next
            self._received = self._loop.time()
            if waiter is not None and self._head_since is None:
                self._head_since = self._received

    def resume_reading(self, *given: Any, **named: Any) -> None:
        """aiohttp calls this twice for every body, and reading was hardly ever paused."""
        if self._reading_paused:
            super().resume_reading(*given, **named)

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio asks whether to stay open
        """A client that sends nothing more may still wait for the answers to what it has sent."""
        wire, body = self._wire, self._payload
        if wire is None or wire.get_extra_info("sslcontext") is not None:
            return False  # TLS cannot be closed on one side
        if self._idle() or (body is not None and not body.is_eof()):
            return False
        if not self._messages:
            self.close()  # at once after the last answer
        self._leaving = self._loop.call_later(GRACE, wire.close)
        return True

    def begun(self, payload: StreamReader) -> None:
        """The head of a request is whole; its body comes, or has come, in `payload`."""
        self._head_since = None
        self._payload = payload
        if not payload.is_eof():
            self._received = self._loop.time()
        if (self._leaving is not None or self._lost) and not self._messages:
            self.close()

    def _look_for_lost(self, data: bytes, messages: int) -> None:
        """aiohttp drops what comes behind a request to upgrade to what it does not know, so the
        connection has to end with the answer to that, for a client to send the rest again."""
        if self._upgrade_left is not None:
            self._upgrade_left -= len(data)
        else:
            last = self._messages[-1][0]
            if getattr(last, "upgrade", False) and not _known_upgrade(last):
                self._upgrade_left = _left(last, data) if messages == 1 else -1
        if self._upgrade_left is not None and self._upgrade_left <= 0:
            self._lost, self._upgrade_left = self._upgrade_left < 0, None
        if self._lost and not self._messages:
            self.close()

    def check(self, now: float) -> None:
        """End the connection, with an answer where one is due, if the client is late."""
        if self._wire is None:
            return
        late = self._waits(self._wire, now).late(now, self._bounds)
        if late is Late.READER:
            self._wire.abort()
        elif late is Late.BODY:
            cast(StreamReader, self._payload).set_exception(BodyStalled())
            self._payload = None
        elif late is Late.HEAD:
            self._refuse_late_head(self._wire)

    def _waits(self, wire: asyncio.Transport, now: float) -> Waits:
        unsent, body = wire.get_write_buffer_size(), self._payload
        if unsent != self._unsent[0]:
            self._unsent = unsent, now
        # A body that is not read from the socket waits for us.
        awaited = body is not None and not body.is_eof() and wire.is_reading()
        return Waits(
            head=self._head_since,
            body=self._received if awaited else None,
            reader=self._unsent[1] if unsent else None,
        )

    def _idle(self) -> bool:
        """Whether aiohttp waits for the next request."""
        return self._waiter is not None and not self._waiter.done()

    def _refuse_late_head(self, wire: asyncio.Transport) -> None:
        if self._received is not None and not wire.is_closing():
            body = error_body("the head of the request took too long")
            wire.write(
                b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)
            )
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, and to what the handler let out; the connection is closed
        after it. Raises ConnectionError where there can be no answer any more."""
        if isinstance(exc, ConnectionError):
            raise exc
        if status != 400:
            log.error("request failed unexpectedly", path=request.raw_path, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        answer = _malformed(exc, message) if status == 400 else _failed()
        answer.force_close()
        return answer


def _known_upgrade(message: Any) -> bool:
    """Whether aiohttp keeps what comes behind a request that asks for an upgrade."""
    asked: str = message.headers.get("Upgrade", "")
    return bool(message.method == "CONNECT") or asked.lower() == "websocket"


def _left(message: Any, data: bytes) -> int:
    """How many bytes of a request are to come behind those that ended its head; below 0 where more
    than the request has come, or may have."""
    end, size = data.find(_HEAD_END), message.headers.get("Content-Length", "0")
    if end < 0 or message.chunked or not size.isdigit():
        return -1
    return end + len(_HEAD_END) + int(size) - len(data)


def _malformed(error: BaseException | None, message: str | None) -> web.Response:
    if isinstance(error, LineTooLong):
        told = f"the request line and each header may have at most {MAX_LINE} bytes"
        return status_answer(431, told, JSON)
    reason = (message or "").partition("\n")[0].rstrip(":")
    return status_answer(400, f"malformed HTTP request: {reason}", JSON)


def _failed() -> web.Response:
    return status_answer(500, "internal error, see the server's log", JSON)
