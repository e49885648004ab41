"""The infer endpoint.

The type of an error's body follows Triton, which declares JSON once it has found the model and
starts to read the request, and plain text where the error comes before that or from the model.

Beyond Triton, a client that accepts an event stream gets one, from any model; and a decoupled model
is served as long as it answers exactly once.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from aiohttp import web

from microkernel import (
    InferRequest,
    InferResponse,
    InvalidArgument,
    MicrokernelError,
    NotFound,
    Port,
    ResponseStream,
    Unsupported,
)
from microkernel_http import traced
from microkernel_http.answers import error_answer, status_answer
from microkernel_http.body import LARGE, read, send
from microkernel_http.compression import CODINGS, IDENTITY, PIECE, choose, deflate, inflate
from microkernel_http.decode import (
    ALL_BINARY,
    ALL_JSON,
    Limits,
    OutputForms,
    decode,
)
from microkernel_http.encode import JSON, Buffer, Encoded, encode, json_size
from microkernel_http.events import EVENT_STREAM, send_events, wants_events
from microkernel_http.exchange import identify
from microkernel_http.forwarding import NOTHING_FORWARDED, Forwarding
from microkernel_http.framing import LENGTH_HEADER, Framing
from microkernel_http.heads import Heads
from microkernel_http.raw import decode_raw
from microkernel_http.routes import Route

_Given = TypeVarTuple("_Given")
_Made = TypeVar("_Made")
_DECOUPLED = "doesn't support models with decoupled transaction policy"


class InferEndpoint:
    """Answers `POST /v2/models/<model>/infer`. The errors it raises are sent as plain text."""

    def __init__(
        self,
        server: Port,
        limits: Limits,
        forwarding: Forwarding = NOTHING_FORWARDED,
        framing: Framing = LENGTH_HEADER,
    ) -> None:
        self._server = server
        self._limits = limits
        self._forwarding = forwarding
        self._framing = framing
        self._heads = Heads(limits)
        # One at a time, for a parsed text, or one to be written, can take thirty times its size.
        self._large = ThreadPoolExecutor(1, "large-json")

    async def __call__(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        start, version, headers = traced.now_ns(), route.version(), request.headers
        coding = (headers.get("Content-Encoding") or IDENTITY).lower()
        if coding != IDENTITY and coding not in CODINGS:
            return _unknown_compression()
        try:
            body = await read(request)
            if coding != IDENTITY:
                body = await _inflated(body, self._limits.json_size)
            length = self._framing.json_length(headers, len(body))
        except MicrokernelError:
            await self._check_model(route.model, version)
            raise
        end, events = traced.now_ns(), wants_events(headers.get("Accept"))
        try:
            if 0 < length <= LARGE:
                decoded, forms = self._heads.decode(body, length, route.model, version)
            else:
                decoded, forms = await self._decode(body, length, route.model, version)
            decoded = self._forwarding.onto(decoded, request.raw_headers)
            if events and length:
                _check_forms(forms)
        except MicrokernelError as error:
            await self._check_model(route.model, version)
            return error_answer(error, JSON)
        identify(request, decoded.id)
        trace = await traced.begin(self._server, decoded, request, start, end)
        answering = (
            self._many(request, decoded) if events else self._single(request, decoded, forms)
        )
        if trace is None:
            return await answering
        return await traced.finish(self._server, trace, request, answering, route.endpoint)

    async def _many(self, request: web.BaseRequest, decoded: InferRequest) -> web.StreamResponse:
        """Answer with an event for each response."""
        try:
            responses: ResponseStream = await self._server.stream(decoded)
        except (InvalidArgument, NotFound, Unsupported) as error:
            return await self._refused(decoded, error)
        return await send_events(request, decoded, responses, _as_json)

    async def _single(
        self, request: web.BaseRequest, decoded: InferRequest, forms: OutputForms
    ) -> web.StreamResponse:
        """Answer with the only response."""
        try:
            response = await self._server.infer(decoded)
        except (InvalidArgument, NotFound, Unsupported) as error:
            return await self._refused(decoded, error)
        if json_size(response, forms) > LARGE:
            encoded = await self._aside(encode, response, forms, self._framing)
        else:
            encoded = encode(response, forms, self._framing)
        chosen = choose(request.headers.get("Accept-Encoding"))
        if chosen != IDENTITY:
            encoded = await _deflated(response, encoded, chosen)
        traced.sending(decoded)
        # `response` owns what the buffers show and lives until they are sent.
        return await send(request, encoded.headers, encoded.buffers)

    async def _decode(
        self, body: bytes, length: int, model: str, version: int
    ) -> tuple[InferRequest, OutputForms]:
        """The request of a body with much JSON or none."""
        if length:
            return await self._aside(decode, body, length, model, version, self._limits)
        config = await self._server.model_config(model, version)
        return decode_raw(body, config, model, version, self._limits), ALL_BINARY

    async def _aside(self, work: Callable[[*_Given], _Made], *given: *_Given) -> _Made:
        """Do what takes long in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._large, work, *given)

    async def _refused(self, request: InferRequest, error: MicrokernelError) -> web.Response:
        """The answer where the request was at fault; raises what is about the model. A region that
        is not found is a fault of the request, for Triton looks for it while it reads."""
        if isinstance(error, InvalidArgument):
            return error_answer(error, JSON)
        if isinstance(error, Unsupported) and str(error).startswith(_DECOUPLED):
            raise Unsupported(f"HTTP end point {error}")
        await self._check_model(request.model_name, request.version)
        if isinstance(error, NotFound) and (request.shared_inputs or request.shared_outputs):
            return error_answer(error, JSON)
        raise error

    async def _check_model(self, model: str, version: int) -> None:
        """Raise what Triton would have raised before it looked at the body."""
        await self._server.model_config(model, version)


def _as_json(response: InferResponse) -> Buffer:
    return encode(response, ALL_JSON).buffers[0]


def _check_forms(forms: OutputForms) -> None:
    if forms.everything or forms.binary:
        raise InvalidArgument(
            "outputs in an event stream are JSON: ask for no binary data, or do not accept "
            f"'{EVENT_STREAM}'"
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
