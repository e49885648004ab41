"""Ordinary answers: successful, small, and with nothing to be said about the connection.

They are put together and written here, since aiohttp takes longer over the head of an answer than
all else that a health probe needs.
"""

from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from time import time
from typing import TypeGuard

from aiohttp import HttpVersion11, web

from microkernel_http.exchange import Exchange


class Written(web.StreamResponse):
    """An answer that has been written: what aiohttp and the log still ask of it. `size` are its
    bytes, head and body."""

    def __init__(self, size: int) -> None:
        # Not aiohttp's own: there are no headers to keep.
        self._size = size

    @property
    def prepared(self) -> bool:
        """The head has been written."""
        return True

    @property
    def status(self) -> int:
        """Only successful answers are ordinary."""
        return 200

    @property
    def keep_alive(self) -> bool:
        """The connection goes on."""
        return True

    @property
    def body_length(self) -> int:
        """What was written, as aiohttp counts it."""
        return self._size

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to be done."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to be done."""


async def succeed(
    request: web.BaseRequest, headers: Mapping[str, str], body: bytes
) -> web.StreamResponse:
    """A successful answer. Names and values of `headers` are this server's own; a length is added
    to them. Where it is ordinary it has been written when this returns."""
    transport = request.transport
    if transport is None or transport.is_closing() or not _ordinary(request):
        return web.Response(body=body, headers=headers)
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    head = (
        f"HTTP/1.1 200 OK\r\n{lines}Content-Length: {len(body)}\r\n"
        f"Date: {_date(int(time()))}\r\n\r\n"
    )
    written = head.encode("latin-1") + body
    request.writer.output_size = len(written)
    transport.write(written)
    if transport.get_write_buffer_size():
        request.status = 200
        await request.writer.drain()
    return Written(len(written))


def _ordinary(request: web.BaseRequest) -> TypeGuard[Exchange]:
    """Whether there is nothing to be added to a successful answer to a request."""
    return (
        isinstance(request, Exchange)
        and request.added is None
        and request.restated is None
        and not request.last
        and request.keep_alive
        and request.version == HttpVersion11
        and request.content.is_eof()
    )


@lru_cache(1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
