"""The V2 protocol over HTTP: from a request line to an answer."""

from collections.abc import Mapping

from aiohttp import web

from microkernel import AccessKeys, Port
from microkernel_http.answers import EndpointCall, key_answer, method_answer, status_answer
from microkernel_http.authentication import OPEN, admits
from microkernel_http.bounds import Bounds
from microkernel_http.control import Control
from microkernel_http.cors import Cors
from microkernel_http.decode import Limits
from microkernel_http.documentation import Documentation
from microkernel_http.exchange import Exchange
from microkernel_http.forwarding import Forwarding
from microkernel_http.generation import Generation
from microkernel_http.infer import InferEndpoint
from microkernel_http.listener import Listener, Place
from microkernel_http.openapi import Guards
from microkernel_http.queries import Queries
from microkernel_http.restricted import restrictions
from microkernel_http.routes import METHODS, Endpoint, Route, find
from microkernel_http.served import Served, error_type, failed, forbidden
from microkernel_http.settings import HttpSettings


class HttpFrontend(Served):
    """Serves the V2 protocol over HTTP."""

    def __init__(self, server: Port, settings: HttpSettings) -> None:
        """Raises InvalidArgument naming the flag for settings that cannot be right."""
        super().__init__("HTTPService", self._listening(settings), allowed=settings.allow_http)
        # Where nothing is served, the files do not matter.
        file = settings.auth_file if settings.allow_http else ""
        self._keys = AccessKeys.read(file, "--http-auth-file")
        self._cors = Cors(settings.cors_origin) if settings.cors_origin else None
        self._restrictions = restrictions(settings.restricted_api)
        self._guarded = bool(self._keys or self._restrictions)
        forwarding = Forwarding(settings.header_forward_pattern)
        limits = Limits(json_size=settings.max_input_size)
        headers = {endpoint: found.header for endpoint, found in self._restrictions.items()}
        guards = Guards(headers, keys=bool(self._keys))
        self._endpoints: Mapping[Endpoint, EndpointCall] = {
            Endpoint.INFER: InferEndpoint(server, limits, forwarding),
            **Generation(server, limits).endpoints(),
            **Queries(server).endpoints(),
            **Control(server).endpoints(),
            **Documentation(server, guards).endpoints(),
        }

    def _listening(self, settings: HttpSettings) -> Listener:
        tls = settings.tls() if settings.allow_http else None
        place = Place(settings.address, settings.port, settings.reuse_port, tls)
        log_each = settings.access_log
        return Listener(self._handle, place, Bounds.of(settings), access_log=log_each)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._cors is not None and (answer := _across(self._cors, request)) is not None:
            return answer
        route = find(request.method, request.raw_path)
        if self._guarded and (refusal := self._refusal(route, request)) is not None:
            return refusal  # nothing of the body has been read
        if route is None:
            return status_answer(404, "Not Found")
        if not route.allowed:
            return method_answer(METHODS[route.endpoint])
        try:
            return await self._endpoints[route.endpoint](route, request)
        except Exception as error:  # noqa: BLE001 - raised again where it has no answer
            return failed(error, request, error_type(route.endpoint))

    def _refusal(self, route: Route | None, request: web.BaseRequest) -> web.Response | None:
        """The answer to a request that may not pass, None where it may."""
        is_open = route is not None and route.endpoint in OPEN
        if not is_open and not admits(self._keys, request.headers):
            return key_answer()
        if route is None:
            return None
        return forbidden(self._restrictions, route.endpoint, request.headers)


def _across(cors: Cors, request: web.BaseRequest) -> web.Response | None:
    """See to a request from a page of another origin: the answer where a browser only asks whether
    it may send one, None for any other, whose answer says who may read it."""
    if isinstance(request, Exchange):
        request.added = cors.headers(request.headers.get("Origin"))
    found = cors.preflight(request.method, request.headers)
    return None if found is None else web.Response(status=204, headers=found)
