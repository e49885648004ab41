"""The V2 protocol over gRPC: where it listens, and when it starts and stops."""

import errno
import socket
from typing import Any

import grpc.aio
import structlog

from microkernel import AccessKeys, Port, Unavailable, UnixSocket
from microkernel_grpc.access_log import note
from microkernel_grpc.calls import Calls
from microkernel_grpc.forward import forwarder
from microkernel_grpc.handlers import Doors, Handlers
from microkernel_grpc.inference import Inference
from microkernel_grpc.reflection import Reflections
from microkernel_grpc.restricted import guards
from microkernel_grpc.settings import GrpcSettings
from microkernel_grpc.stream import Streams
from microkernel_grpc.traces import continues_traces
from microkernel_grpc.transport import channel_options, credentials

log = structlog.get_logger(__name__)


class GrpcFrontend:
    """Serves the V2 protocol over gRPC. `port` is that of the settings; once started, the one that
    is bound, 0 for a Unix-domain socket."""

    def __init__(self, server: Port, settings: GrpcSettings) -> None:
        """Raises InvalidArgument naming the flag for a setting that cannot be right."""
        self.port = settings.port
        self._server = server
        self._settings = settings
        self._unix = UnixSocket.of(settings.address)
        self._forward = forwarder(settings.header_forward_pattern)
        self._doors = Doors(
            AccessKeys.read(settings.auth_file if settings.allow_grpc else "", "--grpc-auth-file"),
            guards(settings.restricted_protocol),
        )
        self._credentials = credentials(settings) if settings.allow_grpc else None
        self._running: _Running | None = None

    async def start(self) -> str | None:
        """Listen. Returns the line to log, None when gRPC is switched off. Raises Unavailable
        naming the address when it is taken."""
        if not self._settings.allow_grpc:
            return None
        continues = await continues_traces(self._server)
        asked = note if self._settings.access_log else None
        inference = Inference(self._server, self._forward, continues=continues, asked=asked)
        running = _Running(self._settings, inference, Calls(self._server), self._doors)
        address = self._settings.address
        if self._unix is None:
            self.port = running.bind(address, self._settings.port, self._credentials)
            address = f"{address}:{self.port}"
        else:
            running.bind_unix(self._unix, self._credentials)
            self.port = 0
        await running.start()
        self._running = running
        return f"Started GRPCInferenceService at {address}"

    async def stop(self, timeout: float) -> None:
        """Stop accepting, let the calls in flight finish for at most `timeout` seconds, then close.
        Streams end as soon as nothing on them waits for an answer."""
        if self._running is not None:
            await self._running.stop(timeout)


class _Running:
    """gRPC's server with everything that lives as long as it listens."""

    def __init__(
        self, settings: GrpcSettings, inference: Inference, calls: Calls, doors: Doors
    ) -> None:
        self._inference = inference
        self._streams = Streams(inference)
        self._reflections = Reflections()
        handlers = Handlers(
            *(calls, inference, self._streams, self._reflections), access_log=settings.access_log
        )
        self._grpc: Any = grpc.aio.server(options=channel_options(settings))
        self._grpc.add_generic_rpc_handlers(handlers.by_service(doors))
        self._unix: UnixSocket | None = None

    def bind(self, address: str, port: int, tls: Any) -> int:
        """Listen on a port; the one that is bound. Raises Unavailable naming the address."""
        host = f"[{address}]" if ":" in address else address
        bound = self._bind(f"{host}:{port}", tls)
        if not bound:
            raise _why_not(address, port)
        return bound

    def bind_unix(self, unix: UnixSocket, tls: Any) -> None:
        """Listen on a Unix-domain socket that only this user can open. Raises Unavailable naming
        the path. gRPC binds it itself, without a look at who listens there, nor saying why it
        cannot; so it is bound here first."""
        unix.bind().close()
        unix.remove()
        if not self._bind(str(unix), tls):
            raise Unavailable(f"failed to listen on '{unix}'")
        unix.secure()
        self._unix = unix

    def _bind(self, target: str, tls: Any) -> int:
        """What gRPC gives for a target, 0 where it cannot."""
        try:
            bound: int = (
                self._grpc.add_insecure_port(target)
                if tls is None
                else self._grpc.add_secure_port(target, tls)
            )
        except RuntimeError:  # older versions of grpc answer 0
            return 0
        return bound

    async def start(self) -> None:
        """Begin to answer."""
        await self._grpc.start()

    async def stop(self, timeout: float) -> None:
        """See `GrpcFrontend.stop`."""
        self._streams.stop()
        self._reflections.stop()
        await self._grpc.stop(timeout)
        await self._inference.finish()
        if self._unix is not None:
            self._unix.remove()


def _why_not(address: str, port: int) -> Unavailable:
    """Why a port cannot be listened on. gRPC does not say; binding a plain socket does."""
    try:
        socket.create_server((address, port)).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return Unavailable(f"Socket '{address}:{port}' already in use")
        return Unavailable(f"failed to listen on '{address}:{port}': {error.strerror or error}")
    return Unavailable(f"failed to listen on '{address}:{port}'")
