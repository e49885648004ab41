"""The RPCs as gRPC calls them: generic handlers on raw bytes."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import grpc
import grpc.aio
import structlog

from microkernel import AccessKeys, Cancelled, MicrokernelError
from microkernel_grpc.access import OPEN, KeyGuard
from microkernel_grpc.access_log import Behaviour, Serve, counting, subject, telling
from microkernel_grpc.calls import Calls
from microkernel_grpc.inference import Inference
from microkernel_grpc.reflection import Reflections
from microkernel_grpc.restricted import Guard, Metadata
from microkernel_grpc.schema import Method, methods
from microkernel_grpc.status import details_of, status_of
from microkernel_grpc.stream import Streams

_Work: TypeAlias = Callable[[Any, Any, Metadata], Awaitable[Any]]
"""Takes the request or the stream of requests, gRPC's context, and the metadata."""

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
        self,
        calls: Calls,
        inference: Inference,
        streams: Streams,
        reflections: Reflections,
        *,
        access_log: bool = False,
    ) -> None:
        self._calls = calls
        self._inference = inference
        self._streams: Mapping[str, Serve] = {
            "ModelStreamInfer": streams.serve,
            "ServerReflectionInfo": reflections.serve,
        }
        self._access_log = access_log

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
        work, reads = self._work(method)
        behaviour = _behaviour(method.name, work, doors.of(method.name), reads_metadata=reads)
        if self._access_log:
            behaviour = telling(method, behaviour)
        if method.streams:
            return grpc.stream_stream_rpc_method_handler(behaviour)
        return grpc.unary_unary_rpc_method_handler(behaviour)

    def _work(self, method: Method) -> tuple[_Work, bool]:
        """What a method does, and whether it reads the metadata."""
        if method.streams:
            serve = self._streams[method.name]
            return _conversation(counting(serve) if self._access_log else serve), True
        if method.name == "ModelInfer":
            return self._inference.unary, self._inference.reads_metadata
        call = self._calls.call(method)

        async def work_alone(packed: bytes, context: Any, metadata: Metadata) -> bytes:
            return await call(packed)

        return work_alone, False


def _behaviour(
    name: str, work: _Work, checks: Sequence[_Check], *, reads_metadata: bool
) -> Behaviour:
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
    """Which request a call is, for the log; nothing where it takes long to tell."""
    if name != "ModelInfer":
        return {}
    identity, model = subject(request)
    return {"model": model, "request_id": identity}


def _conversation(serve: Serve) -> _Work:
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
