"""The generate endpoints: a flat JSON object in, and one out, whole or as a stream of events.

A stream carries the status of the model's first response, an error of the model included, which is
an event; an error from before the model runs is an ordinary JSON error.
"""

import asyncio
from collections.abc import Mapping

from aiohttp import web

from microkernel import (
    InferRequest,
    InvalidArgument,
    MicrokernelError,
    NotFound,
    Port,
    Unavailable,
    Unsupported,
)
from microkernel_http.answers import EndpointCall, json_answer
from microkernel_http.body import LARGE, read
from microkernel_http.compression import IDENTITY
from microkernel_http.decode import Limits
from microkernel_http.generate import event, from_response, to_request
from microkernel_http.routes import Endpoint, Route
from microkernel_http.status import status_of

_EVENTS: Mapping[str, str] = {"Content-Type": "text/event-stream; charset=utf-8"}
_BEFORE_THE_MODEL = (NotFound, InvalidArgument, Unavailable, Unsupported)
"""What the server answers to a request that does not reach its model."""


class Generation:
    """Answers `generate` and `generate_stream` of a model."""

    def __init__(self, server: Port, limits: Limits) -> None:
        self._server = server
        self._limits = limits

    def endpoints(self) -> Mapping[Endpoint, EndpointCall]:
        """What answers each endpoint."""
        return {Endpoint.GENERATE: self._whole, Endpoint.GENERATE_STREAM: self._stream}

    async def _whole(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        decoded = await self._request(route, request)
        return json_answer(from_response(await self._server.infer(decoded)))

    async def _stream(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        decoded = await self._request(route, request)
        status = 200
        try:
            answer = event(from_response(await self._server.infer(decoded)))
        except _BEFORE_THE_MODEL:
            raise
        except MicrokernelError as error:
            status, answer = status_of(error), event({"error": str(error)})
        response = web.StreamResponse(status=status, headers=_EVENTS)
        await response.prepare(request)
        await response.write(answer)
        await response.write_eof()
        return response

    async def _request(self, route: Route, request: web.BaseRequest) -> InferRequest:
        version = route.version()
        if (request.headers.get("Content-Encoding") or IDENTITY) != IDENTITY:
            raise InvalidArgument("Unsupported content-encoding, only 'identity' is supported")
        config = await self._server.model_config(route.model, version)
        body = await read(request)
        work = (body, config, version, self._limits)
        if len(body) > LARGE:
            return await asyncio.to_thread(to_request, *work)
        return to_request(*work)
