"""What the front ends over HTTP have in common: where they listen, and what becomes of errors."""

from collections.abc import Awaitable, Mapping

import structlog
from aiohttp import web

from microkernel import MicrokernelError
from microkernel_http.answers import error_answer, status_answer
from microkernel_http.encode import JSON, TEXT
from microkernel_http.exchange import stated, told_of
from microkernel_http.listener import Listener
from microkernel_http.restricted import Restriction
from microkernel_http.routes import Endpoint

_TEXT_ERRORS = frozenset({Endpoint.INFER, Endpoint.LIVE, Endpoint.READY, Endpoint.MODEL_READY})
"""Triton declares the errors of these as plain text and those of all others as JSON."""

log = structlog.get_logger(__name__)


class Served:
    """A front end that listens in one place, where it is `allowed` to. `title` is what the operator
    is told that has started."""

    def __init__(self, title: str, listener: Listener, *, allowed: bool) -> None:
        self._title = title
        self._listener = listener
        self._allowed = allowed

    @property
    def port(self) -> int:
        """The port of the settings; once started, the one that is bound."""
        return self._listener.port

    async def start(self) -> str | None:
        """Listen. Returns the line to log, None when switched off. Raises Unavailable naming the
        address when the port is taken."""
        if not self._allowed:
            return None
        await self._listener.start()
        return f"Started {self._title} at {self._listener.name}"

    async def stop(self, timeout: float) -> None:
        """Stop accepting, let the requests in flight finish for at most `timeout` seconds, then
        close."""
        await self._listener.stop(timeout)


def error_type(endpoint: Endpoint) -> str:
    """The type of the errors of an endpoint."""
    return TEXT if endpoint in _TEXT_ERRORS else JSON


async def settled(
    answering: Awaitable[web.StreamResponse], request: web.BaseRequest, error_type: str
) -> web.StreamResponse:
    """The answer to a request. Where answering fails that is an error, of the type given."""
    try:
        answer = await answering
    except Exception as error:  # noqa: BLE001 - raised again where it has no answer
        answer = failed(error, request, error_type)
    return stated(request, answer)


def failed(error: Exception, request: web.BaseRequest, error_type: str) -> web.Response:
    """The answer, of the type given, to a request for which answering raised an error. Raises it
    again where the client is gone and nobody waits for an answer."""
    if isinstance(error, MicrokernelError):
        return error_answer(error, error_type)
    if isinstance(error, ConnectionError):
        raise error
    identity, model, trace = told_of(request)
    log.error(
        "request failed unexpectedly",
        exc_info=error,
        path=request.raw_path,
        model=model,
        request_id=identity,
        trace_id=trace,
    )
    return status_answer(500, "internal error, see the server's log", error_type)


def forbidden(
    restrictions: Mapping[Endpoint, Restriction], endpoint: Endpoint, headers: Mapping[str, str]
) -> web.Response | None:
    """The answer to a request with these headers where it may not pass, None where it may.
    `headers` ignores case."""
    restriction = restrictions.get(endpoint)
    if restriction is None or restriction.admits(headers):
        return None
    return status_answer(403, restriction.refusal)
