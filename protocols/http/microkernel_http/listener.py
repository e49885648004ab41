"""A listening socket with an aiohttp server behind it."""

import errno
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from aiohttp import web

from microkernel import Unavailable

Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_READ_BUFFER = 1 << 20


class Listener:
    """Serves one handler on one address. `port` is the port it is bound to once started."""

    def __init__(self, handler: Handler, address: str, port: int, *, reuse_port: bool) -> None:
        self.address = address
        self.port = port
        self._reuse_port = reuse_port
        # A body is decoded by the endpoint that wants it; what nobody reads is never inflated.
        self._server = web.Server(
            handler,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            read_bufsize=_READ_BUFFER,
        )
        self._runner = web.ServerRunner(self._server)

    async def start(self) -> None:
        """Listen. Raises Unavailable naming the address where that fails."""
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, self.address, self.port, reuse_port=self._reuse_port or None
        )
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise _refused(self.address, self.port, error) from error
        self.port = self._runner.addresses[0][1]

    async def stop(self, timeout: float) -> None:
        """Close the socket and idle connections, give the requests in flight `timeout` seconds,
        then cancel them."""
        for site in self._runner.sites:
            await site.stop()
        self._server.pre_shutdown()
        await self._server.shutdown(timeout)
        await self._runner.cleanup()


def _refused(address: str, port: int, error: OSError) -> Unavailable:
    if error.errno == errno.EADDRINUSE:
        return Unavailable(f"Socket '{address}:{port}' already in use")
    return Unavailable(f"failed to listen on '{address}:{port}': {error.strerror or error}")
