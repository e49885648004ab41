"""The metrics page on a port of its own."""

from aiohttp import web

from microkernel import AccessKeys, Port
from microkernel_http.answers import key_answer, method_answer
from microkernel_http.authentication import admits
from microkernel_http.bounds import Bounds
from microkernel_http.encode import TEXT
from microkernel_http.listener import Listener, Place
from microkernel_http.served import Served, settled
from microkernel_http.settings import HttpSettings

_PATHS = frozenset({"/metrics", "/metrics/"})
_PAGE = {"Content-Type": "text/plain; charset=utf-8"}


class MetricsFrontend(Served):
    """Serves `/metrics`. Any other path is an empty page, as in Triton."""

    def __init__(self, server: Port, settings: HttpSettings) -> None:
        """Raises InvalidArgument naming the flag for settings that cannot be right."""
        self._server = server
        allowed = settings.allow_metrics
        tls = settings.metrics_tls() if allowed else None
        place = Place(settings.page_address(), settings.metrics_port, tls=tls)
        listener = Listener(self._handle, place, Bounds.of(settings))
        super().__init__("Metrics Service", listener, allowed=allowed)
        file = settings.metrics_auth_file if allowed else ""
        self._keys = AccessKeys.read(file, "--metrics-auth-file")

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if not admits(self._keys, request.headers):
            return key_answer()
        if request.method != "GET":
            return method_answer(["GET"])
        if request.raw_path.partition("?")[0] not in _PATHS:
            return web.Response(headers=_PAGE)
        return await settled(page(self._server), request, TEXT)


async def page(server: Port) -> web.StreamResponse:
    """The answer that holds the metrics page."""
    return web.Response(body=await server.metrics(), headers=_PAGE)
