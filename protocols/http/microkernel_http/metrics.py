"""The metrics page on a port of its own."""

import structlog
from aiohttp import web

from microkernel import MicrokernelError, Port
from microkernel_http.answers import error_answer, status_answer
from microkernel_http.encode import TEXT
from microkernel_http.listener import Listener
from microkernel_http.settings import HttpSettings

log = structlog.get_logger(__name__)

_PATHS = frozenset({"/metrics", "/metrics/"})
_PAGE = {"Content-Type": "text/plain; charset=utf-8"}


class MetricsFrontend:
    """Serves `/metrics`. Any other path is an empty page, as in Triton."""

    def __init__(self, server: Port, settings: HttpSettings) -> None:
        self._server = server
        self._allowed = settings.allow_metrics
        address = settings.metrics_address or settings.address
        self._listener = Listener(self._handle, address, settings.metrics_port, reuse_port=False)

    @property
    def port(self) -> int:
        """The port of the settings; once started, the one that is bound."""
        return self._listener.port

    async def start(self) -> str | None:
        """Listen. Returns the line to log, None when metrics are switched off. Raises Unavailable
        naming the address when the port is taken."""
        if not self._allowed:
            return None
        await self._listener.start()
        return f"Started Metrics Service at {self._listener.address}:{self.port}"

    async def stop(self, timeout: float) -> None:
        """Stop accepting, let the requests in flight finish for at most `timeout` seconds, then
        close."""
        await self._listener.stop(timeout)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method != "GET":
            return status_answer(405, "Method Not Allowed")
        if request.raw_path.partition("?")[0] not in _PATHS:
            return web.Response(headers=_PAGE)
        try:
            return web.Response(body=await self._server.metrics(), headers=_PAGE)
        except MicrokernelError as error:
            return error_answer(error, TEXT)
        except Exception:
            log.exception("the metrics page failed unexpectedly")
            return status_answer(500, "internal error, see the server's log")
