"""The generate endpoints: a flat JSON object in, and one out, whole or as a stream of events.

The status is that of the model's first response, an error of the model included, which is an event
of a stream; an error from before the model runs is an ordinary JSON error.
"""

import asyncio
from collections.abc import Mapping

from aiohttp import web

from microkernel import InferRequest, InferResponse, InvalidArgument, Port, ResponseStream
from microkernel_http import traced
from microkernel_http.answers import EndpointCall, error_answer, status_answer
from microkernel_http.body import LARGE, read
from microkernel_http.compression import IDENTITY
from microkernel_http.decode import ALL_JSON, Limits
from microkernel_http.encode import JSON, flat_to_bytes, json_size
from microkernel_http.events import send_events
from microkernel_http.exchange import identify
from microkernel_http.generate import from_response, to_request
from microkernel_http.routes import Endpoint, Route
from microkernel_http.status import status_of

_NOT_ONE = (
    "generate expects model to produce exactly 1 response, use generate_stream for a model that "
    "produces another number of them"
)


class Generation:
    """Answers `generate` and `generate_stream` of a model."""

    def __init__(self, server: Port, limits: Limits) -> None:
        self._server = server
        self._limits = limits

    def endpoints(self) -> Mapping[Endpoint, EndpointCall]:
        """What answers each endpoint."""
        return {Endpoint.GENERATE: self._answer, Endpoint.GENERATE_STREAM: self._answer}

    async def _answer(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        start, version = traced.now_ns(), route.version()
        if (request.headers.get("Content-Encoding") or IDENTITY).lower() != IDENTITY:
            raise InvalidArgument("Unsupported content-encoding, only 'identity' is supported")
        config = await self._server.model_config(route.model, version)
        body = await read(request)
        end, work = traced.now_ns(), (body, config, version, self._limits)
        if len(body) > LARGE:
            decoded = await asyncio.to_thread(to_request, *work)
        else:
            decoded = to_request(*work)
        identify(request, decoded.id)
        trace = await traced.begin(self._server, decoded, request, start, end)
        if route.endpoint is Endpoint.GENERATE_STREAM:
            answering = self._many(request, decoded)
        else:
            answering = self._single(decoded, decoupled=config.decoupled)
        if trace is None:
            return await answering
        return await traced.finish(self._server, trace, request, answering, route.endpoint)

    async def _many(self, request: web.BaseRequest, decoded: InferRequest) -> web.StreamResponse:
        responses = await self._server.stream(decoded)
        return await send_events(request, decoded, responses, _as_json)

    async def _single(self, decoded: InferRequest, *, decoupled: bool) -> web.StreamResponse:
        if decoupled:
            return await _only(await self._server.stream(decoded))
        return await _whole(await self._server.infer(decoded))


def _as_json(response: InferResponse) -> bytes:
    return flat_to_bytes(from_response(response))


async def _whole(response: InferResponse) -> web.Response:
    """The answer that holds a response."""
    large = json_size(response, ALL_JSON) > LARGE
    body = await asyncio.to_thread(_as_json, response) if large else _as_json(response)
    return web.Response(body=body, headers={"Content-Type": JSON})


async def _only(responses: ResponseStream) -> web.Response:
    """The answer of a model that may give any number of responses. Other numbers than one are an
    error, under the status of the first response, as in Triton."""
    first: InferResponse | None = None
    try:
        async for response in responses:
            if response.flag_only:
                continue
            if first is not None:
                return status_answer(_status(first), _NOT_ONE, JSON)
            first = response
    finally:
        responses.close()
    if first is None:
        return status_answer(200, _NOT_ONE, JSON)
    if first.error is not None:
        return error_answer(first.error, JSON)
    return await _whole(first)


def _status(response: InferResponse) -> int:
    return 200 if response.error is None else status_of(response.error)
