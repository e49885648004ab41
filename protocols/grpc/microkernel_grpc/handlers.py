"""The RPCs as gRPC calls them: generic handlers on raw bytes."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import grpc
import grpc.aio
import structlog

from microkernel import AccessKeys, Cancelled, MicrokernelError
from microkernel_grpc.access import OPEN, KeyGuard
from microkernel_grpc.calls import Calls
from microkernel_grpc.decode import parse
from microkernel_grpc.inference import Inference
from microkernel_grpc.reflection import Reflections
from microkernel_grpc.restricted import Guard, Metadata
from microkernel_grpc.schema import Method, methods
from microkernel_grpc.status import details_of, status_of
from microkernel_grpc.stream import Read, Streams, Write

_Work: TypeAlias = Callable[[Any, Any, Metadata], Awaitable[Any]]
"""Takes the request or the stream of requests, gRPC's context, and the metadata."""
_Serve: TypeAlias = Callable[[Read, Write, Metadata], Awaitable[None]]

log = structlog.get_logger(__name__)


class _Check(Protocol):
    def check(self, metadata: Metadata) -> None: ...


@dataclass(frozen=True, slots=True)
class Doors:
    """What a call must show before it is looked at: one of the keys, if there are any, and what the
    guard of its name wants."""

    keys: AccessKeys
    guards: Mapping[str, Guard]

    def of(self, name: str) -> Sequence[_Check]:
        """The checks of a call, in their order. Probes need no key."""
        keys = [KeyGuard(self.keys)] if self.keys and name not in OPEN else []
        return (*keys, *([self.guards[name]] if name in self.guards else []))


class Handlers:
    """Makes the handlers, which are all that knows gRPC's side of a call."""

    def __init__(
        self, calls: Calls, inference: Inference, streams: Streams, reflections: Reflections
    ) -> None:
        self._calls = calls
        self._inference = inference
        self._streams: Mapping[str, _Serve] = {
            "ModelStreamInfer": streams.serve,
            "ServerReflectionInfo": reflections.serve,
        }

    def by_service(self, doors: Doors) -> list[Any]:
        """A handler per service, behind its doors; they work on bytes, for `Calls` knows the
        messages."""
        by_service: dict[str, dict[str, Any]] = {}
        for path, method in methods().items():
            service = path.split("/")[1]
            by_service.setdefault(service, {})[method.name] = self._handler(method, doors)
        return [
            grpc.method_handlers_generic_handler(service, handlers)
            for service, handlers in by_service.items()
        ]

    def _handler(self, method: Method, doors: Doors) -> Any:
        name, checks = method.name, doors.of(method.name)
        if method.streams:
            work = _conversation(self._streams[name])
            return grpc.stream_stream_rpc_method_handler(
                _behaviour(name, work, checks, reads_metadata=True)
            )
        if name == "ModelInfer":
            reads = self._inference.reads_metadata
            return grpc.unary_unary_rpc_method_handler(
                _behaviour(name, self._inference.unary, checks, reads_metadata=reads)
            )
        call = self._calls.call(method)

        async def work_alone(packed: bytes, context: Any, metadata: Metadata) -> bytes:
            return await call(packed)

        return grpc.unary_unary_rpc_method_handler(
            _behaviour(name, work_alone, checks, reads_metadata=False)
        )


def _behaviour(name: str, work: _Work, checks: Sequence[_Check], *, reads_metadata: bool) -> Any:
    """What gRPC calls: the checks, the work, and errors as status codes. Metadata is read only
    where somebody needs it, for that costs a microsecond or more."""
    reads_metadata = reads_metadata or bool(checks)

    async def behaviour(request: Any, context: Any) -> Any:
        try:
            metadata = context.invocation_metadata() if reads_metadata else ()
            for each in checks:
                each.check(metadata)
            return await work(request, context, metadata)
        except MicrokernelError as error:
            code, details = status_of(error), details_of(error)
        except Exception:
            log.exception("call failed unexpectedly", rpc=name, **_subject(name, request))
            code, details = grpc.StatusCode.INTERNAL, "internal error, see the server's log"
        # gRPC keeps what abort raises, and so this frame, until garbage is collected.
        request = None
        await context.abort(code, details)
        raise AssertionError  # abort has raised

    return behaviour


def _subject(name: str, request: Any) -> dict[str, str]:
    """Which request a call is, for the log."""
    if name != "ModelInfer":
        return {}
    try:
        infer, _ = parse(request)
    except MicrokernelError:
        return {}
    return {"model": infer.model_name, "request_id": infer.id}


def _conversation(serve: _Serve) -> _Work:
    async def work(requests: Any, context: Any, metadata: Metadata) -> None:
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

        await serve(read, write, metadata)

    return work
