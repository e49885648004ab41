"""The paths of Vertex AI: health, and predictions, which may stand for other calls."""

from collections.abc import Mapping

from aiohttp import web

from microkernel import AccessKeys, InvalidArgument, Port
from microkernel_http.answers import EndpointCall, key_answer, method_answer, status_answer
from microkernel_http.authentication import admits
from microkernel_http.bounds import Bounds
from microkernel_http.control import Control
from microkernel_http.decode import Limits
from microkernel_http.encode import JSON, TEXT
from microkernel_http.exchange import address
from microkernel_http.framing import SizedType
from microkernel_http.infer import InferEndpoint
from microkernel_http.listener import Listener, Place
from microkernel_http.metrics import page
from microkernel_http.queries import Queries
from microkernel_http.restricted import restrictions
from microkernel_http.routes import Endpoint, Route
from microkernel_http.served import Served, error_type, forbidden, settled
from microkernel_http.vertex_ai.routes import FORBIDDEN, REDIRECT, redirected
from microkernel_http.vertex_ai.settings import Paths, VertexAiSettings

_METRICS = "metrics"


class VertexAiFrontend(Served):
    """Serves what Vertex AI asks of a container."""

    def __init__(
        self, server: Port, settings: VertexAiSettings, environment: Mapping[str, str]
    ) -> None:
        """Raises InvalidArgument naming the flag or the variable for what cannot be right."""
        allowed = settings.allow_vertex_ai
        listener = Listener(
            self._handle,
            Place(settings.address, settings.port),
            Bounds.of(settings),
            access_log=settings.access_log,
        )
        super().__init__("Vertex AI HTTPService", listener, allowed=allowed)
        self._server = server
        self._model = settings.default_model
        self._paths = Paths.of(environment) if allowed else Paths("", "")
        self._restrictions = restrictions(settings.restricted_api)
        self._page = settings.allow_metrics
        file = settings.metrics_auth_file if allowed and self._page else ""
        self._keys = AccessKeys.read(file, "--metrics-auth-file")
        limits = Limits(json_size=settings.max_input_size)
        self._endpoints: Mapping[Endpoint, EndpointCall] = {
            **Control(server).endpoints(),
            **Queries(server).endpoints(),
            Endpoint.INFER: InferEndpoint(server, limits, framing=SizedType("vertex-ai-triton")),
        }

    async def start(self) -> str | None:
        """Listen; see `Frontend.start`. Raises InvalidArgument too, where it is not clear which
        model predicts."""
        if self._allowed:
            await self._choose()
        return await super().start()

    async def _choose(self) -> None:
        """Find the model of a prediction that names none."""
        ready = {line.name for line in await self._server.repository_index(ready=True)}
        if not self._model and len(ready) != 1:
            raise InvalidArgument(
                "Expect the model repository contains only a single model if default model is not "
                "specified by --vertex-ai-default-model"
            )
        self._model = self._model or next(iter(ready))
        if self._model not in ready:
            raise InvalidArgument(
                f"Expect the default model '{self._model}' of --vertex-ai-default-model is loaded"
            )

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        redirect = request.headers.get(REDIRECT)
        if path == self._paths.health:
            return await self._call(Route(Endpoint.READY, request.method == "GET"), request, "GET")
        if path != self._paths.predict:
            return web.Response(status=400)
        allowed = request.method == "POST"
        if redirect == _METRICS and allowed and self._page:
            return await self._metrics(request)
        if redirect is None:
            route: Route | None = Route(Endpoint.INFER, allowed, self._model)
        else:
            route = redirected(redirect, allowed=allowed)
        return web.Response(status=400) if route is None else await self._call(route, request)

    async def _call(
        self, route: Route, request: web.BaseRequest, method: str = "POST"
    ) -> web.StreamResponse:
        address(request, route.model)
        refusal = forbidden(self._restrictions, route.endpoint, request.headers)
        if refusal is not None:
            return refusal
        if not route.allowed:
            return method_answer([method])
        if route.endpoint in FORBIDDEN:
            return status_answer(403, "This API is not available through Vertex AI", JSON)
        answering = self._endpoints[route.endpoint](route, request)
        return await settled(answering, request, error_type(route.endpoint))

    async def _metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        if not admits(self._keys, request.headers):
            return key_answer()
        return await settled(page(self._server), request, TEXT)
