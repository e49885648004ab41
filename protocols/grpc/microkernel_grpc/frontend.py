"""The V2 protocol over gRPC: generic handlers on raw bytes."""

import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog

from microkernel import MicrokernelError, Server, Unavailable, Unsupported
from microkernel_grpc.calls import Call, Calls
from microkernel_grpc.encode import MAX_MESSAGE
from microkernel_grpc.schema import Method, methods
from microkernel_grpc.settings import GrpcSettings
from microkernel_grpc.status import details_of, status_of

_Behaviour: TypeAlias = Callable[[Any, Any], Awaitable[bytes]]

log = structlog.get_logger(__name__)


class GrpcFrontend:
    """Serves the V2 protocol over gRPC. `port` is that of the settings; once started, the one that
    is bound."""

    def __init__(self, server: Server, settings: GrpcSettings) -> None:
        self.port = settings.port
        self._settings = settings
        self._calls = Calls(server)
        self._running: Any = None

    async def start(self) -> str | None:
        """Listen. Returns the line to log, None when gRPC is switched off. Raises Unavailable
        naming the address when the port is taken."""
        if not self._settings.allow_grpc:
            return None
        address = self._settings.address
        running = grpc.aio.server(options=_options(self._settings))
        running.add_generic_rpc_handlers(_generic_handlers(self._calls))
        self.port = _bind(running, address, self._settings.port)
        await running.start()
        self._running = running
        return f"Started GRPCInferenceService at {address}:{self.port}"

    async def stop(self, timeout: float) -> None:
        """Stop accepting, let the calls in flight finish for at most `timeout` seconds, then
        close."""
        if self._running is not None:
            await self._running.stop(timeout)


def _options(settings: GrpcSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
        ("grpc.so_reuseport", int(settings.reuse_port)),
    ]


def _bind(running: Any, address: str, port: int) -> int:
    host = f"[{address}]" if ":" in address else address
    try:
        bound: int = running.add_insecure_port(f"{host}:{port}")
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


def _generic_handlers(calls: Calls) -> list[Any]:
    """A handler per service; they work on bytes, for `Calls` knows the messages."""
    by_service: dict[str, dict[str, Any]] = {}
    for path, method in methods().items():
        service = path.split("/")[1]
        by_service.setdefault(service, {})[method.name] = _handler(method, calls.call(method))
    return [
        grpc.method_handlers_generic_handler(service, handlers)
        for service, handlers in by_service.items()
    ]


def _handler(method: Method, call: Call | None) -> Any:
    if call is not None:
        return grpc.unary_unary_rpc_method_handler(_answer(method.name, call))
    refuse = _answer(method.name, _not_served(method.name))
    if method.streams:
        return grpc.stream_stream_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)


def _answer(name: str, call: Call) -> _Behaviour:
    async def behaviour(packed: Any, context: Any) -> bytes:
        try:
            return await call(packed)
        except MicrokernelError as error:
            code, details = status_of(error), details_of(error)
        except Exception:
            log.exception("call failed unexpectedly", rpc=name)
            code, details = grpc.StatusCode.INTERNAL, "internal error, see the server's log"
        await context.abort(code, details)
        raise AssertionError  # abort has raised

    return behaviour


def _not_served(name: str) -> Call:
    async def refuse(packed: Any) -> bytes:
        raise Unsupported(f"{name} is not served by this version")

    return refuse
