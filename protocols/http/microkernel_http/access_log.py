"""A line of the log for each request."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from microkernel_http.exchange import Exchange, told_of

_LONGEST = 256

log = structlog.get_logger(__name__)


class AccessLog(AbstractAccessLogger):
    """Logs method, path, status, the bytes of the request's body and of the whole answer, how long
    it took from the head of the request to the end of the answer, who asked, the id of the V2
    request, its model and its trace.

    The query string is left out: it means nothing here and may hold a secret.
    """

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        _tell("answered", request, (response.status, response.body_length), time)


def telling(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """A handler that logs a line too, `cut short`, where the answer is not sent whole, as when the
    client leaves; aiohttp knows only of the others. Its status is 0 where no answer was begun."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        began = time.monotonic()
        try:
            return await handler(request)
        except BaseException as error:
            sent = request.writer.output_size
            if sent or isinstance(error, asyncio.CancelledError | ConnectionError):
                status = request.status if isinstance(request, Exchange) else 0
                _tell("cut short", request, (status, sent), time.monotonic() - began)
            raise

    return handle


def _tell(event: str, request: web.BaseRequest, answer: tuple[int, int], seconds: float) -> None:
    """Log a line about a request and its answer, of which the status and the bytes are given."""
    identity, model, trace = told_of(request)
    status, sent = answer
    log.info(
        event,
        method=request.method,
        path=_shown(request.raw_path.partition("?")[0]),
        status=status,
        received=request.content.total_bytes,
        sent=sent,
        ms=round(seconds * 1000, 3),
        client=request.remote or "unix",
        id=_shown(identity),
        model=_shown(model),
        trace_id=trace,
    )


def _shown(text: str) -> str:
    """A client's text as it may be written to a terminal: not too long, with nothing that
    controls it."""
    text = text[:_LONGEST]
    return text if text.isprintable() else text.encode("unicode_escape").decode()
