"""The V2 protocol over HTTP: from a request line to an answer."""

from collections.abc import Mapping

import structlog
from aiohttp import web

from microkernel import MicrokernelError, Port
from microkernel_http.answers import EndpointCall, error_answer, status_answer
from microkernel_http.control import Control
from microkernel_http.decode import Limits
from microkernel_http.encode import JSON, TEXT
from microkernel_http.forwarding import Forwarding
from microkernel_http.generation import Generation
from microkernel_http.infer import InferEndpoint
from microkernel_http.listener import Listener
from microkernel_http.queries import Queries
from microkernel_http.restricted import restrictions
from microkernel_http.routes import Endpoint, find
from microkernel_http.settings import HttpSettings

_TEXT_ERRORS = frozenset({Endpoint.INFER, Endpoint.LIVE, Endpoint.READY, Endpoint.MODEL_READY})
"""Triton declares the errors of these as plain text and those of all others as JSON."""

log = structlog.get_logger(__name__)


class HttpFrontend:
    """Serves the V2 protocol over HTTP."""

    def __init__(self, server: Port, settings: HttpSettings) -> None:
        """Raises InvalidArgument naming the flag for settings that cannot be right."""
        self._allowed = settings.allow_http
        self._restrictions = restrictions(settings.restricted_api)
        forwarding = Forwarding(settings.header_forward_pattern)
        self._listener = Listener(
            self._handle, settings.address, settings.port, reuse_port=settings.reuse_port
        )
        limits = Limits(json_size=settings.max_input_size)
        self._endpoints: Mapping[Endpoint, EndpointCall] = {
            Endpoint.INFER: InferEndpoint(server, limits, forwarding),
            **Generation(server, limits).endpoints(),
            **Queries(server).endpoints(),
            **Control(server).endpoints(),
        }

    @property
    def port(self) -> int:
        """The port of the settings; once started, the one that is bound."""
        return self._listener.port

    async def start(self) -> str | None:
        """Listen. Returns the line to log, None when HTTP is switched off. Raises Unavailable
        naming the address when the port is taken."""
        if not self._allowed:
            return None
        await self._listener.start()
        return f"Started HTTPService at {self._listener.address}:{self.port}"

    async def stop(self, timeout: float) -> None:
        """Stop accepting, let the requests in flight finish for at most `timeout` seconds, then
        close."""
        await self._listener.stop(timeout)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        route = find(request.method, request.raw_path)
        if route is None:
            return status_answer(404, "Not Found")
        restriction = self._restrictions.get(route.endpoint)
        if restriction is not None and not restriction.admits(request.headers):
            return status_answer(403, restriction.refusal)
        if not route.allowed:
            return status_answer(405, "Method Not Allowed")
        error_type = TEXT if route.endpoint in _TEXT_ERRORS else JSON
        try:
            return await self._endpoints[route.endpoint](route, request)
        except MicrokernelError as error:
            return error_answer(error, error_type)
        except ConnectionError:  # the client is gone, nobody waits for an answer
            raise
        except Exception:
            log.exception("request failed unexpectedly", path=request.raw_path)
            return status_answer(500, "internal error, see the server's log", error_type)
