"""A request, and what is added to every answer to it."""

from collections.abc import Callable, Mapping

from aiohttp import web

RETRY_AFTER = "1"
"""Seconds after which to ask again what could not be done now. Queues empty at such a pace; who
must wait longer is told so again by the next answer."""


class Exchange(web.BaseRequest):
    """A request. `request_id` is that of the V2 body, once it is known. `added` are headers for
    its answer, and `last` says that the connection ends with that. `restated` gives the status
    that is sent in place of the answer's own."""

    request_id: str = ""
    added: Mapping[str, str] | None = None
    last: bool = False
    restated: Callable[[web.StreamResponse], int] | None = None

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """aiohttp calls this before it sends the head of an answer, also of one that is streamed
        or is an error of its own."""
        response.headers.pop("Server", None)  # names versions, which is of use to attackers only
        if response.status == 503:
            response.headers.setdefault("Retry-After", RETRY_AFTER)
        if self.added is not None:
            response.headers.update(self.added)
        # A client that was to be asked for its body may leave it out after another answer.
        if self.last or (not self.content.is_eof() and "Expect" in self.headers):
            response.headers["Connection"] = "close"
            response.force_close()


def identify(request: web.BaseRequest, request_id: str) -> None:
    """Say which id the V2 body gave its request."""
    if request_id and isinstance(request, Exchange):
        request.request_id = request_id


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
