"""The endpoints that only look: health, metadata, configuration, statistics, shared memory."""

from collections.abc import Mapping

from aiohttp import web

from microkernel import Port, config_to_json, statistics_document
from microkernel_http.answers import EndpointCall, health_answer, json_answer, status_answer
from microkernel_http.encode import (
    cuda_regions,
    model_metadata,
    server_metadata,
    system_regions,
)
from microkernel_http.routes import Endpoint, Route


class Queries:
    """Answers from the port what a client may ask about the server and its models."""

    def __init__(self, server: Port) -> None:
        self._server = server

    def endpoints(self) -> Mapping[Endpoint, EndpointCall]:
        """What answers each endpoint."""
        return {
            Endpoint.LIVE: self._live,
            Endpoint.READY: self._ready,
            Endpoint.MODEL_READY: self._model_ready,
            Endpoint.SERVER_METADATA: self._server_metadata,
            Endpoint.MODEL_METADATA: self._model_metadata,
            Endpoint.MODEL_CONFIG: self._model_config,
            Endpoint.STATISTICS: self._statistics,
            Endpoint.REGION_STATUS: self._regions,
        }

    async def _live(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        return await health_answer(request, good=await self._server.live())

    async def _ready(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        return await health_answer(request, good=await self._server.ready())

    async def _model_ready(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        if await self._server.model_ready(route.model, route.version()):
            return await health_answer(request, good=True)
        return status_answer(400, "Model version not ready")

    async def _server_metadata(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        return json_answer(server_metadata(await self._server.metadata()))

    async def _model_metadata(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        about = await self._server.model_metadata(route.model, route.version())
        return json_answer(model_metadata(about))

    async def _model_config(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        config = await self._server.model_config(route.model, route.version())
        return json_answer(config_to_json(config))

    async def _statistics(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        found = await self._server.statistics(route.model, route.version())
        return json_answer(statistics_document(found))

    async def _regions(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        if route.kind == "system":
            found = await self._server.system_shared_memory(route.region)
            return json_answer(system_regions(found))
        return json_answer(cuda_regions(await self._server.cuda_shared_memory(route.region)))
