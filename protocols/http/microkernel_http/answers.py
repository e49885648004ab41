"""Answers as aiohttp responses."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

from aiohttp import web

from microkernel import REFUSAL, MicrokernelError
from microkernel_http.encode import JSON, TEXT, to_bytes
from microkernel_http.routes import Route
from microkernel_http.status import error_body, status_of

EndpointCall: TypeAlias = Callable[[Route, web.BaseRequest], Awaitable[web.StreamResponse]]
"""What answers the requests of an endpoint."""


def json_answer(document: Any) -> web.Response:
    """A successful answer that holds a document."""
    return web.Response(body=to_bytes(document), headers={"Content-Type": JSON})


def done_answer() -> web.Response:
    """What was asked for is done, and there is nothing to tell."""
    return web.Response(headers={"Content-Type": JSON})


def health_answer(*, good: bool) -> web.Response:
    """200 or 400 with an empty body: clients look at the status only."""
    return web.Response(status=200 if good else 400, headers={"Content-Type": TEXT})


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
