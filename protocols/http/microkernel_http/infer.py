"""The infer endpoint.

The type of an error's body follows Triton, which declares JSON once it has found the model and
starts to read the request, and plain text where the error comes before that or from the model.
"""

import asyncio

from aiohttp import web

from microkernel import (
    InferRequest,
    InferResponse,
    InvalidArgument,
    MicrokernelError,
    NotFound,
    Port,
    Unsupported,
)
from microkernel_http.answers import error_answer, status_answer
from microkernel_http.body import LARGE, read, send
from microkernel_http.compression import CODINGS, IDENTITY, PIECE, choose, deflate, inflate
from microkernel_http.decode import (
    ALL_BINARY,
    HEADER_LENGTH,
    Limits,
    OutputForms,
    decode,
    header_length,
)
from microkernel_http.encode import JSON, Encoded, encode
from microkernel_http.forwarding import Forwarding
from microkernel_http.raw import decode_raw
from microkernel_http.routes import Route


class InferEndpoint:
    """Answers `POST /v2/models/<model>/infer`. The errors it raises are sent as plain text."""

    def __init__(self, server: Port, limits: Limits, forwarding: Forwarding) -> None:
        self._server = server
        self._limits = limits
        self._forwarding = forwarding

    async def __call__(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        version = route.version()
        coding = request.headers.get("Content-Encoding", IDENTITY) or IDENTITY
        if coding != IDENTITY and coding not in CODINGS:
            return _unknown_compression()
        try:
            body, length = await self._received(request, compressed=coding != IDENTITY)
        except MicrokernelError:
            await self._check_model(route.model, version)
            raise
        try:
            decoded, forms = await self._decode(body, length, route.model, version)
            decoded = self._forwarding.onto(decoded, request.raw_headers)
        except MicrokernelError as error:
            await self._check_model(route.model, version)
            return error_answer(error, JSON)
        try:
            response = await self._server.infer(decoded)
        except (InvalidArgument, NotFound, Unsupported) as error:
            return await self._refused(decoded, error)
        encoded = encode(response, forms)
        chosen = choose(request.headers.get("Accept-Encoding"))
        if chosen != IDENTITY:
            encoded = await _deflated(response, encoded, chosen)
        # `response` owns what the buffers show and lives until they are sent.
        return await send(request, encoded.headers, encoded.buffers)

    async def _received(self, request: web.BaseRequest, *, compressed: bool) -> tuple[bytes, int]:
        """The body, and the length of its JSON part."""
        body = await read(request)
        if compressed:
            body = await _inflated(body, self._limits.json_size)
        return body, header_length(request.headers.get(HEADER_LENGTH), len(body))

    async def _decode(
        self, body: bytes, length: int, model: str, version: int
    ) -> tuple[InferRequest, OutputForms]:
        if length:
            return decode(body, length, model, version, self._limits)
        config = await self._server.model_config(model, version)
        return decode_raw(body, config, model, version, self._limits), ALL_BINARY

    async def _refused(self, request: InferRequest, error: MicrokernelError) -> web.Response:
        """The answer where the request was at fault; raises what is about the model. A region that
        is not found is a fault of the request, for Triton looks for it while it reads."""
        if isinstance(error, InvalidArgument):
            return error_answer(error, JSON)
        await self._check_model(request.model_name, request.version)
        if isinstance(error, NotFound) and (request.shared_inputs or request.shared_outputs):
            return error_answer(error, JSON)
        raise error

    async def _check_model(self, model: str, version: int) -> None:
        """Raise what Triton would have raised before it looked at the body."""
        config = await self._server.model_config(model, version)
        if config.decoupled:
            raise Unsupported(
                "HTTP end point doesn't support models with decoupled transaction policy"
            )


def _unknown_compression() -> web.Response:
    answer = status_answer(501, "Unsupported compression type")
    answer.headers["Accept-Encoding"] = "gzip, deflate"
    return answer


async def _inflated(body: bytes, limit: int) -> bytes:
    """The contents of a compressed body. What is large, or turns out to be, is done in a
    thread."""
    pieces = inflate(body, limit)
    if len(body) > LARGE:
        return await asyncio.to_thread(b"".join, pieces)
    first = next(pieces, b"")
    if len(first) < PIECE:
        return b"".join([first, *pieces])
    return first + await asyncio.to_thread(b"".join, pieces)


async def _deflated(response: InferResponse, encoded: Encoded, coding: str) -> Encoded:
    """The same answer compressed. What is large is done in a thread, which holds on to `response`,
    the owner of the buffers, even where the request is cancelled meanwhile."""

    def work(owner: InferResponse) -> bytes:
        return deflate(encoded.buffers, coding)

    large = sum(map(len, encoded.buffers)) > LARGE
    body = await asyncio.to_thread(work, response) if large else work(response)
    return Encoded({**encoded.headers, "Content-Encoding": coding}, (body,))
