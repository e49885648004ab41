"""Bodies in and out of aiohttp: read once, written without joining what is large."""

from collections.abc import Mapping, Sequence

from aiohttp import web

from microkernel import InvalidArgument
from microkernel_http.document import LARGE as LARGE_TEXT
from microkernel_http.encode import Buffer
from microkernel_http.exchange import end_with_answer
from microkernel_http.plain import succeed
from microkernel_http.status import TimedOut

MAX_CHUNKS = 65536
JOINED = 64 << 10
"""Up to so many bytes a body is joined and sent together with its headers."""
LARGE = LARGE_TEXT
"""Work on more bytes than this is done in a thread."""
_PIECE = 256 << 10


async def read(request: web.BaseRequest) -> bytes:
    """The whole body.

    Raises InvalidArgument for a malformed one, and, after which the connection is closed, for one
    over the request's `client_max_size` bytes or over MAX_CHUNKS chunks; TimedOut, after which it
    is closed too, where the client does not go on with it.
    """
    if not request.body_exists:
        return b""
    announced = request.content_length or 0
    if announced > request.client_max_size:
        raise _too_large(request)
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    try:
        if announced and request.content.is_eof():
            return request.content.read_nowait()  # all of it has come, which is quite ordinary
        return await (_read_plain(request) if announced else _read_chunked(request))
    except web.RequestPayloadError as error:
        raise InvalidArgument(f"failed to read the request body: {error}") from None
    except TimeoutError:
        end_with_answer(request)
        raise TimedOut("the body of the request took too long") from None


async def _read_plain(request: web.BaseRequest) -> bytes:
    content = request.content
    parts = []
    while part := await content.readany():
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _read_chunked(request: web.BaseRequest) -> bytes:
    parts, size, chunks = [], 0, 0
    async for part, ended in request.content.iter_chunks():
        parts.append(part)
        size += len(part)
        chunks += ended
        if size > request.client_max_size:
            raise _too_large(request)
        if chunks > MAX_CHUNKS:
            message = f"Chunked request body exceeds maximum of {MAX_CHUNKS} chunks"
            raise _refused(request, message)
    return b"".join(parts)


def _too_large(request: web.BaseRequest) -> InvalidArgument:
    limit = request.client_max_size
    return _refused(request, f"request body exceeds the maximum of {limit} bytes")


def _refused(request: web.BaseRequest, message: str) -> InvalidArgument:
    """The error, with the connection closed after its answer: the rest of the body is in the
    way."""
    end_with_answer(request)
    return InvalidArgument(message)


async def send(
    request: web.BaseRequest, headers: Mapping[str, str], buffers: Sequence[Buffer]
) -> web.StreamResponse:
    """A successful answer of several buffers. When this returns they have been copied or handed to
    the operating system, and may be reused."""
    size = sum(map(len, buffers))
    if size <= JOINED:
        return await succeed(request, headers, b"".join(buffers))
    response = web.StreamResponse(headers=headers)
    response.content_length = size
    await response.prepare(request)
    if request.transport is not None:
        # The transport then reports itself full until all it was given is sent, so that the last
        # drain waits for the very last byte. TLS copies, and counts the limit itself as full.
        secure = request.transport.get_extra_info("sslcontext") is not None
        request.transport.set_write_buffer_limits(high=int(secure))
    for buffer in buffers:
        for start in range(0, len(buffer), _PIECE):
            await response.write(memoryview(buffer)[start : start + _PIECE])
    await request.writer.drain()
    await response.write_eof()
    return response
