"""Answers as aiohttp responses."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias

from aiohttp import web

from microkernel import REFUSAL, MicrokernelError
from microkernel_http.encode import JSON, TEXT, to_bytes
from microkernel_http.plain import succeed
from microkernel_http.routes import Route
from microkernel_http.status import error_body, status_of

EndpointCall: TypeAlias = Callable[[Route, web.BaseRequest], Awaitable[web.StreamResponse]]
"""What answers the requests of an endpoint."""
_TEXT_ONLY: Mapping[str, str] = {"Content-Type": TEXT}


def json_answer(document: Any) -> web.Response:
    """A successful answer that holds a document."""
    return web.Response(body=to_bytes(document), headers={"Content-Type": JSON})


def done_answer() -> web.Response:
    """What was asked for is done, and there is nothing to tell."""
    return web.Response(headers={"Content-Type": JSON})


async def health_answer(request: web.BaseRequest, *, good: bool) -> web.StreamResponse:
    """200 or 400 with an empty body: clients look at the status only."""
    if good:
        return await succeed(request, _TEXT_ONLY, b"")
    return web.Response(status=400, headers=_TEXT_ONLY)


def key_answer() -> web.Response:
    """A request without a key, or with a wrong one, where one is needed."""
    answer = status_answer(401, REFUSAL, JSON)
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def error_answer(error: MicrokernelError, content_type: str) -> web.Response:
    """An error with the status of its class."""
    return status_answer(status_of(error), str(error), content_type)


def method_answer(methods: Iterable[str]) -> web.Response:
    """A request whose method is none of those that its path knows; tells which those are."""
    answer = status_answer(405, "Method Not Allowed")
    answer.headers["Allow"] = ", ".join(sorted(methods))
    return answer


def status_answer(status: int, message: str, content_type: str = TEXT) -> web.Response:
    """An error that only HTTP knows."""
    headers = {"Content-Type": content_type}
    return web.Response(body=error_body(message), status=status, headers=headers)
