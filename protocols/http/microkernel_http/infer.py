"""The infer endpoint.

The type of an error's body follows Triton, which declares JSON once it has found the model and
starts to read the request, and plain text where the error comes before that or from the model.
"""

from aiohttp import web

from microkernel import (
    InferRequest,
    InvalidArgument,
    MicrokernelError,
    Server,
    Unsupported,
)
from microkernel_http.answers import error_answer, status_answer
from microkernel_http.body import read, send
from microkernel_http.decode import (
    ALL_BINARY,
    HEADER_LENGTH,
    Limits,
    OutputForms,
    decode,
    header_length,
)
from microkernel_http.encode import JSON, encode
from microkernel_http.raw import decode_raw
from microkernel_http.routes import Route

_NOT_COMPRESSED = frozenset({"", "identity"})


class InferEndpoint:
    """Answers `POST /v2/models/<model>/infer`. The errors it raises are sent as plain text."""

    def __init__(self, server: Server, limits: Limits) -> None:
        self._server = server
        self._limits = limits

    async def __call__(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        version = route.version()
        if request.headers.get("Content-Encoding", "") not in _NOT_COMPRESSED:
            return _unknown_compression()
        body = await read(request)
        length = header_length(request.headers.get(HEADER_LENGTH), len(body))
        try:
            decoded, forms = await self._decode(body, length, route.model, version)
        except MicrokernelError as error:
            await self._check_model(route.model, version)
            return error_answer(error, JSON)
        try:
            response = await self._server.infer(decoded)
        except InvalidArgument as error:
            return error_answer(error, JSON)
        except Unsupported:
            await self._check_model(route.model, version)
            raise
        encoded = encode(response, forms)
        # `response` owns what the buffers show and lives until they are sent.
        return await send(request, encoded.headers, encoded.buffers)

    async def _decode(
        self, body: bytes, length: int, model: str, version: int
    ) -> tuple[InferRequest, OutputForms]:
        if length:
            return decode(body, length, model, version, self._limits)
        config = await self._server.model_config(model, version)
        return decode_raw(body, config, model, version, self._limits), ALL_BINARY

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
