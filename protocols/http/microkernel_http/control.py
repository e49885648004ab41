"""The endpoints that change something: loading and unloading, the log, traces, shared memory."""

import asyncio
import contextlib
from collections.abc import Mapping

from aiohttp import web

from microkernel import InvalidArgument, Port, SystemRegion, Unavailable, Unsupported
from microkernel_http.answers import EndpointCall, done_answer, json_answer
from microkernel_http.body import LARGE, read
from microkernel_http.control_bodies import (
    cuda_region,
    load_request,
    log_changes,
    log_settings,
    only_ready,
    system_region,
    unload_dependents,
)
from microkernel_http.encode import repository_index
from microkernel_http.routes import Endpoint, Route
from microkernel_http.trace_bodies import trace_changes, trace_settings


class Control:
    """Carries out over the port what a client asks to be changed."""

    def __init__(self, server: Port) -> None:
        self._server = server

    def endpoints(self) -> Mapping[Endpoint, EndpointCall]:
        """What answers each endpoint."""
        return {
            Endpoint.REPOSITORY_INDEX: self._index,
            Endpoint.LOAD: self._load,
            Endpoint.UNLOAD: self._unload,
            Endpoint.LOGGING: self._logging,
            Endpoint.TRACE: self._trace,
            Endpoint.REGION_REGISTER: self._register,
            Endpoint.REGION_UNREGISTER: self._unregister,
        }

    async def _index(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        lines = await self._server.repository_index(ready=only_ready(await read(request)))
        return json_answer(repository_index(lines))

    async def _load(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        _refuse_repository(route)
        body = await read(request)
        if len(body) > LARGE:
            given = await asyncio.to_thread(load_request, body)
        else:
            given = load_request(body)
        await self._server.load_model(route.model, given.config, given.files)
        return done_answer()

    async def _unload(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        _refuse_repository(route)
        along = unload_dependents(await read(request))
        await self._server.unload_model(route.model, unload_dependents=along)
        return done_answer()

    async def _logging(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET":
            return json_answer(log_settings(await self._server.log_settings()))
        changes = log_changes(await read(request))
        try:
            settings = await self._server.log_settings(changes)
        except InvalidArgument as error:
            raise Unavailable(str(error)) from None  # Triton's class for a wrong format, over HTTP
        return json_answer(log_settings(settings))

    async def _trace(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        changes = None if request.method == "GET" else trace_changes(await read(request))
        return json_answer(trace_settings(await self._server.trace_settings(route.model, changes)))

    async def _register(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        await self._check_shared_memory()
        if not route.region:
            raise InvalidArgument(
                f"'region name' is necessary to register {route.kind} shared memory region"
            )
        body = await read(request)
        if route.kind == "cuda":
            await self._server.register_cuda_shared_memory(cuda_region(route.region, body))
        else:
            await self._server.register_system_shared_memory(system_region(route.region, body))
        return done_answer()

    async def _unregister(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        if route.kind == "cuda":
            await self._server.unregister_cuda_shared_memory(route.region)
        else:
            await self._server.unregister_system_shared_memory(route.region)
        return done_answer()

    async def _check_shared_memory(self) -> None:
        """Raise Unsupported where clients may not use shared memory. The port answers that before
        it looks at a region, so it is asked for one that can never be registered."""
        with contextlib.suppress(InvalidArgument):
            await self._server.register_system_shared_memory(SystemRegion("", "", 0))


def _refuse_repository(route: Route) -> None:
    if route.repository:
        raise Unsupported("'repository_name' specification is not supported")
