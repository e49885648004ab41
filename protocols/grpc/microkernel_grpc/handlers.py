"""The RPCs as gRPC calls them: generic handlers on raw bytes."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog

from microkernel import Cancelled, MicrokernelError, Unsupported
from microkernel_grpc.calls import Call, Calls
from microkernel_grpc.restricted import Guard, Metadata
from microkernel_grpc.schema import Method, methods
from microkernel_grpc.status import details_of, status_of
from microkernel_grpc.stream import Streams

_Work: TypeAlias = Callable[[Any, Any, Metadata], Awaitable[Any]]
"""Takes the request or the stream of requests, gRPC's context, and the metadata."""

log = structlog.get_logger(__name__)


class Handlers:
    """Makes the handlers. `guards` are by call; `forwards` is whether infer requests need their
    metadata."""

    def __init__(
        self, calls: Calls, streams: Streams, guards: Mapping[str, Guard], *, forwards: bool
    ) -> None:
        self._calls = calls
        self._streams = streams
        self._guards = guards
        self._forwards = forwards

    def by_service(self) -> list[Any]:
        """A handler per service; they work on bytes, for `Calls` knows the messages."""
        by_service: dict[str, dict[str, Any]] = {}
        for path, method in methods().items():
            service = path.split("/")[1]
            by_service.setdefault(service, {})[method.name] = self._handler(method)
        return [
            grpc.method_handlers_generic_handler(service, handlers)
            for service, handlers in by_service.items()
        ]

    def _handler(self, method: Method) -> Any:
        if method.streams:
            return grpc.stream_stream_rpc_method_handler(
                self._behaviour(method.name, self._serve_stream, reads_metadata=True)
            )
        call = self._calls.call(method) or _not_served(method.name)
        forwards = self._forwards and method.name == "ModelInfer"

        async def work(packed: bytes, context: Any, metadata: Metadata) -> bytes:
            return await call(packed, metadata)

        return grpc.unary_unary_rpc_method_handler(
            self._behaviour(method.name, work, reads_metadata=forwards)
        )

    def _behaviour(self, name: str, work: _Work, *, reads_metadata: bool) -> Any:
        """What gRPC calls: the guard, the work, and errors as status codes."""
        guard = self._guards.get(name)
        reads_metadata = reads_metadata or guard is not None

        async def behaviour(request: Any, context: Any) -> Any:
            try:
                metadata = context.invocation_metadata() if reads_metadata else ()
                if guard is not None:
                    guard.check(metadata)
                return await work(request, context, metadata)
            except MicrokernelError as error:
                code, details = status_of(error), details_of(error)
            except Exception:
                log.exception("call failed unexpectedly", rpc=name)
                code, details = grpc.StatusCode.INTERNAL, "internal error, see the server's log"
            await context.abort(code, details)
            raise AssertionError  # abort has raised

        return behaviour

    async def _serve_stream(self, requests: Any, context: Any, metadata: Metadata) -> None:
        async def read() -> bytes | None:
            try:
                packed: bytes | None = await anext(requests, None)
            except grpc.aio.BaseError:  # the client has gone, or the server has stopped
                return None
            return packed

        async def write(packed: bytes) -> None:
            try:
                await context.write(packed)
            except grpc.aio.BaseError:
                raise Cancelled("an answer could not be sent to the client") from None

        await self._streams.serve(read, write, metadata)


def _not_served(name: str) -> Call:
    async def refuse(packed: bytes, metadata: Metadata) -> bytes:
        raise Unsupported(f"{name} is not served by this version")

    return refuse
