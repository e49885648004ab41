"""The V2 protocol over gRPC: where it listens, and when it starts and stops."""

import errno
import socket
from typing import Any

import grpc.aio
import structlog

from microkernel import Port, Unavailable
from microkernel_grpc.calls import Calls
from microkernel_grpc.forward import forwarder
from microkernel_grpc.handlers import Handlers
from microkernel_grpc.inference import Inference
from microkernel_grpc.restricted import guards
from microkernel_grpc.settings import GrpcSettings
from microkernel_grpc.stream import Streams
from microkernel_grpc.transport import channel_options, credentials, without_effect

log = structlog.get_logger(__name__)


class GrpcFrontend:
    """Serves the V2 protocol over gRPC. `port` is that of the settings; once started, the one that
    is bound."""

    def __init__(self, server: Port, settings: GrpcSettings) -> None:
        """Raises InvalidArgument naming the flag for a setting that cannot be right."""
        self.port = settings.port
        self._settings = settings
        inference = Inference(server, forwarder(settings.header_forward_pattern))
        self._streams = Streams(inference)
        self._handlers = Handlers(
            Calls(server, inference),
            self._streams,
            guards(settings.restricted_protocol),
            forwards=inference.reads_metadata,
        )
        self._credentials = credentials(settings) if settings.allow_grpc else None
        self._running: Any = None

    async def start(self) -> str | None:
        """Listen. Returns the line to log, None when gRPC is switched off. Raises Unavailable
        naming the address when the port is taken."""
        if not self._settings.allow_grpc:
            return None
        for warning in without_effect(self._settings):
            log.warning(warning)
        address = self._settings.address
        running = grpc.aio.server(options=channel_options(self._settings))
        running.add_generic_rpc_handlers(self._handlers.by_service())
        self.port = _bind(running, address, self._settings.port, self._credentials)
        await running.start()
        self._running = running
        return f"Started GRPCInferenceService at {address}:{self.port}"

    async def stop(self, timeout: float) -> None:
        """Stop accepting, let the calls in flight finish for at most `timeout` seconds, then close.
        Streams end as soon as nothing on them waits for an answer."""
        if self._running is not None:
            self._streams.stop()
            await self._running.stop(timeout)


def _bind(running: Any, address: str, port: int, tls: Any) -> int:
    host = f"[{address}]" if ":" in address else address
    try:
        bound: int = (
            running.add_insecure_port(f"{host}:{port}")
            if tls is None
            else running.add_secure_port(f"{host}:{port}", tls)
        )
    except RuntimeError:
        bound = 0  # as older versions of grpc answer
    if bound:
        return bound
    raise _why_not(address, port)


def _why_not(address: str, port: int) -> Unavailable:
    """gRPC does not say why it cannot listen; binding a plain socket does."""
    try:
        socket.create_server((address, port)).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return Unavailable(f"Socket '{address}:{port}' already in use")
        return Unavailable(f"failed to listen on '{address}:{port}': {error.strerror or error}")
    return Unavailable(f"failed to listen on '{address}:{port}'")
