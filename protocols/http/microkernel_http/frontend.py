"""The V2 protocol over HTTP: from a request line to an answer."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import structlog
from aiohttp import web

from microkernel import InvalidArgument, MicrokernelError, Server, config_to_json
from microkernel_http.answers import error_answer, health_answer, json_answer, status_answer
from microkernel_http.body import read
from microkernel_http.decode import Limits
from microkernel_http.document import MISSING, member, parse
from microkernel_http.encode import (
    JSON,
    TEXT,
    model_metadata,
    repository_index,
    server_metadata,
)
from microkernel_http.infer import InferEndpoint
from microkernel_http.listener import Listener
from microkernel_http.routes import Endpoint, Route, find
from microkernel_http.settings import HttpSettings

_Endpoint: TypeAlias = Callable[[Route, web.BaseRequest], Awaitable[web.StreamResponse]]

log = structlog.get_logger(__name__)


class HttpFrontend:
    """Serves the V2 protocol over HTTP."""

    def __init__(self, server: Server, settings: HttpSettings) -> None:
        self._server = server
        self._allowed = settings.allow_http
        self._listener = Listener(
            self._handle, settings.address, settings.port, reuse_port=settings.reuse_port
        )
        infer = InferEndpoint(server, Limits(json_size=settings.max_input_size))
        self._endpoints: Mapping[Endpoint, tuple[_Endpoint, str]] = {
            Endpoint.INFER: (infer, TEXT),
            Endpoint.LIVE: (self._live, TEXT),
            Endpoint.READY: (self._ready, TEXT),
            Endpoint.MODEL_READY: (self._model_ready, TEXT),
            Endpoint.SERVER_METADATA: (self._server_metadata, JSON),
            Endpoint.MODEL_METADATA: (self._model_metadata, JSON),
            Endpoint.MODEL_CONFIG: (self._model_config, JSON),
            Endpoint.REPOSITORY_INDEX: (self._repository_index, JSON),
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
        if not route.allowed:
            return status_answer(405, "Method Not Allowed")
        endpoint, error_type = self._endpoints[route.endpoint]
        try:
            return await endpoint(route, request)
        except MicrokernelError as error:
            return error_answer(error, error_type)
        except ConnectionError:  # the client is gone, nobody waits for an answer
            raise
        except Exception:
            log.exception("request failed unexpectedly", path=request.raw_path)
            return status_answer(500, "internal error, see the server's log", error_type)

    async def _live(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        return health_answer(good=await self._server.live())

    async def _ready(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        return health_answer(good=await self._server.ready())

    async def _model_ready(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        if await self._server.model_ready(route.model, route.version()):
            return health_answer(good=True)
        return status_answer(400, "Model version not ready")

    async def _server_metadata(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        return json_answer(server_metadata(await self._server.metadata()))

    async def _model_metadata(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        about = await self._server.model_metadata(route.model, route.version())
        return json_answer(model_metadata(about))

    async def _model_config(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        config = await self._server.model_config(route.model, route.version())
        return json_answer(config_to_json(config))

    async def _repository_index(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        lines = await self._server.repository_index(ready=_only_ready(await read(request)))
        return json_answer(repository_index(lines))


def _only_ready(body: bytes) -> bool:
    """Whether an index request asks for ready models only; an empty body asks for all."""
    ready = member(parse(body), "ready") if body else MISSING
    if ready is MISSING:
        return False
    if type(ready) is not bool:
        raise InvalidArgument(
            "Unable to parse 'ready': attempt to access JSON non-boolean as boolean"
        )
    return ready
