"""A line of the log for each request that was answered."""

import structlog
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from microkernel_http.exchange import Exchange
from microkernel_http.routes import find

_LONGEST = 256

log = structlog.get_logger(__name__)


class AccessLog(AbstractAccessLogger):
    """Logs method, path, status, the bytes of the request's body and of the whole answer, how long
    it took from the head of the request to the end of the answer, who asked, the id of the V2
    request and its model.

    The query string is left out: it means nothing here and may hold a secret.
    """

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        route = find(request.method, request.raw_path)
        log.info(
            "answered",
            method=request.method,
            path=_shown(request.raw_path.partition("?")[0]),
            status=response.status,
            received=request.content.total_bytes,
            sent=response.body_length,
            ms=round(time * 1000, 3),
            client=request.remote or "unix",
            id=_shown(request.request_id) if isinstance(request, Exchange) else "",
            model="" if route is None else _shown(route.model),
        )


def _shown(text: str) -> str:
    """A client's text as it may be written to a terminal: not too long, with nothing that
    controls it."""
    text = text[:_LONGEST]
    return text if text.isprintable() else text.encode("unicode_escape").decode()
