"""A request, and what is added to every answer to it."""

import re
from collections.abc import Callable, Mapping

from aiohttp import web

from microkernel_http.routes import find

RETRY_AFTER = "1"
"""Seconds after which to ask again what could not be done now. Queues empty at such a pace; who
must wait longer is told so again by the next answer."""


_AUTHORITY = re.compile("[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


class Exchange(web.BaseRequest):
    """A request. `request_id` is that of the V2 body, once it is known, `trace_id` that of its
    trace where it has one, and `model` the one it is for where its path does not say so. `status`
    is that of the answer whose head was sent, 0 before. `added` are headers for its answer, and
    `last` says that the connection ends with that. `restated` gives the status that is sent in
    place of the answer's own."""

    request_id: str = ""
    trace_id: str = ""
    model: str = ""
    status: int = 0
    added: Mapping[str, str] | None = None
    last: bool = False
    restated: Callable[[web.StreamResponse], int] | None = None

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """aiohttp calls this before it sends the head of an answer, also of one that is streamed
        or is an error of its own."""
        self.status = response.status
        response.headers.pop("Server", None)  # names versions, which is of use to attackers only
        if response.status == 503:
            response.headers.setdefault("Retry-After", RETRY_AFTER)
        if self.added is not None:
            response.headers.update(self.added)
        # A client that was to be asked for its body may leave it out after another answer.
        if self.last or (not self.content.is_eof() and "Expect" in self.headers):
            response.headers["Connection"] = "close"
            response.force_close()


def origin_form(target: str) -> str:
    """A target that names the server as well, as a client of a proxy sends it, without that part;
    any other as it is."""
    found = _AUTHORITY.match(target)
    if found is None:
        return target
    path = target[found.end() :]
    return path if path.startswith("/") else f"/{path}"


def identify(request: web.BaseRequest, request_id: str) -> None:
    """Say which id the V2 body gave its request."""
    if request_id and isinstance(request, Exchange):
        request.request_id = request_id


def address(request: web.BaseRequest, model: str) -> None:
    """Say which model a request is for whose path is none of the V2 protocol."""
    if isinstance(request, Exchange):
        request.model = model


def told_of(request: web.BaseRequest) -> tuple[str, str, str]:
    """What the log tells of a request, as far as it is known: its id, its model, and the id of its
    trace."""
    if not isinstance(request, Exchange):
        return "", "", ""
    model = request.model
    if not model and (route := find(request.method, request.raw_path)) is not None:
        model = route.model
    return request.request_id, model, request.trace_id


def restate(request: web.BaseRequest, restated: Callable[[web.StreamResponse], int]) -> None:
    """Send the status that this gives for an answer in place of the answer's own."""
    if isinstance(request, Exchange):
        request.restated = restated


def stated(request: web.BaseRequest, answer: web.StreamResponse) -> web.StreamResponse:
    """The answer with the status that is to be sent; who prepares an answer does this before."""
    if isinstance(request, Exchange) and request.restated is not None and not answer.prepared:
        answer.set_status(request.restated(answer))
    return answer


def end_with_answer(request: web.BaseRequest) -> None:
    """Read nothing more from the connection, and close it after the answer to this request."""
    if isinstance(request, Exchange):
        request.last = True
    request.protocol.close()
