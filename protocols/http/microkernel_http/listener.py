"""A listening socket with an aiohttp server behind it."""

import asyncio
import errno
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from aiohttp import web
from aiohttp.streams import StreamReader

from microkernel import TlsFiles, Unavailable, UnixSocket
from microkernel_http.access_log import AccessLog, telling
from microkernel_http.bounds import MAX_LINE, Bounds
from microkernel_http.connection import Connection
from microkernel_http.exchange import Exchange, origin_form

Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_READ_BUFFER = 1 << 20
_BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen: on a port of an address, or on `unix:PATH`; with `tls`, over TLS only."""

    address: str
    port: int
    reuse_port: bool = False
    tls: TlsFiles | None = None


class Listener:
    """Serves one handler in one place. `port` is the port it is bound to once started, 0 for a
    Unix-domain socket."""

    def __init__(
        self, handler: Handler, place: Place, bounds: Bounds, *, access_log: bool = False
    ) -> None:
        """Raises InvalidArgument naming flag and file for TLS files that are of no use."""
        self._place = place
        self._bounds = bounds
        self._unix = UnixSocket.of(place.address)
        self.port = place.port if self._unix is None else 0
        self._tls = None if place.tls is None else _context(place.tls)
        if access_log:
            handler = telling(handler)
        self._connections = web.Server(
            handler, handler_cancellation=True, request_factory=self._exchange
        )
        self._settings: dict[str, Any] = {
            "keepalive_timeout": bounds.keep_alive,
            "access_log": logging.getLogger(__name__) if access_log else None,
            "access_log_class": AccessLog,
            # A body is decoded by the endpoint that wants it; what nobody reads is never inflated.
            "auto_decompress": False,
            "read_bufsize": _READ_BUFFER,
            "max_line_size": MAX_LINE,
            "max_field_size": MAX_LINE,
        }
        self._socket: asyncio.Server | None = None
        self._checking: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """Where it listens, as an operator writes it."""
        return str(self._unix or f"{self._place.address}:{self.port}")

    async def start(self) -> None:
        """Listen. Raises Unavailable naming the address where that fails."""
        try:
            self._socket = await self._listen()
        except OSError as error:
            raise _refused(self.name, error) from error
        if self._unix is None:
            self.port = self._socket.sockets[0].getsockname()[1]
        self._check()

    async def stop(self, timeout: float) -> None:
        """Close the socket and idle connections, give the requests in flight `timeout` seconds,
        then cancel them."""
        if self._socket is None:
            return
        self._socket.close()
        if self._unix is not None:
            self._unix.remove()
        await asyncio.sleep(0)  # what has just arrived becomes a request in flight
        self._connections.pre_shutdown()
        await self._connections.shutdown(timeout)
        if self._checking is not None:
            self._checking.cancel()

    async def _listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        given: dict[str, Any] = {"ssl": self._tls, "backlog": _BACKLOG}
        if self._tls is not None:
            given["ssl_handshake_timeout"] = self._bounds.head
        if self._unix is not None:
            return await loop.create_server(self._connection, sock=self._unix.bind(), **given)
        reuse = self._place.reuse_port or None
        place = self._place.address, self._place.port
        return await loop.create_server(self._connection, *place, reuse_port=reuse, **given)

    def _connection(self) -> Connection:
        loop = asyncio.get_running_loop()
        return Connection(self._connections, self._bounds, loop=loop, **self._settings)

    def _exchange(
        self,
        message: Any,
        payload: StreamReader,
        connection: web.RequestHandler,
        writer: Any,
        task: "asyncio.Task[None]",
    ) -> Exchange:
        if isinstance(connection, Connection):
            connection.begun(payload)
        if message.path[:1] != "/":
            message = message._replace(path=origin_form(message.path))
        loop, size = asyncio.get_running_loop(), self._bounds.body_size
        return Exchange(message, payload, connection, writer, task, loop, client_max_size=size)

    def _check(self) -> None:
        """Look after the connections, now and again."""
        loop = asyncio.get_running_loop()
        self._checking = loop.call_later(self._bounds.interval, self._check)
        now = loop.time()
        for connection in self._connections.connections:
            if isinstance(connection, Connection):
                connection.check(now)


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = files.context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _refused(name: str, error: OSError) -> Unavailable:
    if error.errno == errno.EADDRINUSE:
        return Unavailable(f"Socket '{name}' already in use")
    return Unavailable(f"failed to listen on '{name}': {error.strerror or error}")
