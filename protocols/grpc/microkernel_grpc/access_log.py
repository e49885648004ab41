"""A line of the log for each call; nothing here knows grpc's classes but the status codes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

import structlog
from google.protobuf.message import DecodeError
from grpc import StatusCode

from microkernel import InferRequest, MicrokernelError, Trace
from microkernel_grpc.decode import parse_short
from microkernel_grpc.restricted import Metadata
from microkernel_grpc.schema import Method
from microkernel_grpc.stream import Read, Write

Serve: TypeAlias = Callable[[Read, Write, Metadata], Awaitable[None]]
"""Answers a stream; see `Streams.serve`."""
Behaviour: TypeAlias = Callable[[Any, Any], Awaitable[Any]]
"""What gRPC calls with a request, or a stream of them, and its context."""

_LONGEST = 256
_SHORT = 64 << 10
_CODES: Mapping[Any, str] = {code.value[0]: code.name for code in StatusCode}
_MODELS: Mapping[str, str] = {
    **dict.fromkeys(("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"), "name"),
    **dict.fromkeys(("RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting"), "model_name"),
}
"""The member of a request that names its model."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Call:
    """What is known of a call: how many messages came and went, their bytes, and whom the first
    infer request was for."""

    requests: int = 0
    responses: int = 0
    received: int = 0
    sent: int = 0
    about: "_About | None" = None


@dataclass(frozen=True, slots=True)
class _About:
    request_id: str = ""
    model: str = ""
    trace_id: str = ""


_CALL: ContextVar[_Call | None] = ContextVar("call", default=None)


def note(request: InferRequest, trace: Trace | None) -> None:
    """Say which infer request the call, or the first one of the stream, turned out to be."""
    call = _CALL.get()
    if call is not None and call.about is None:
        trace_id = "" if trace is None else trace.shown_id
        call.about = _About(request.id, request.model_name, trace_id)


def telling(method: Method, behaviour: Behaviour) -> Behaviour:
    """A behaviour that logs a line when it has ended: the call, its code, the messages and their
    bytes in both directions, how long it took, who asked, and the id of the infer request, its
    model and its trace; those of the first on a stream."""

    async def told(request: Any, context: Any) -> Any:
        call, began = _Call(), time.monotonic()
        _CALL.set(call)
        if not method.streams:
            call.requests, call.received = 1, len(request)
        code = None
        try:
            answer = await behaviour(request, context)
        except asyncio.CancelledError:
            code = StatusCode.CANCELLED.name
            raise
        else:
            if not method.streams:
                call.responses, call.sent = 1, len(answer)
            return answer
        finally:
            about = call.about or (_About() if method.streams else _about(method, request))
            request = None  # this frame may be kept, as the one of the behaviour
            ended = code or _code_name(context.code())
            _tell(method.name, call, about, (ended, time.monotonic() - began, context.peer()))

    return told


def counting(serve: Serve) -> Serve:
    """The same, with the messages of the stream counted."""

    async def counted(read: Read, write: Write, metadata: Metadata) -> None:
        call = _CALL.get() or _Call()

        async def counted_read() -> bytes | None:
            packed = await read()
            if packed is not None:
                call.requests += 1
                call.received += len(packed)
            return packed

        async def counted_write(packed: bytes) -> None:
            await write(packed)
            call.responses += 1
            call.sent += len(packed)

        await serve(counted_read, counted_write, metadata)

    return counted


def _tell(rpc: str, call: _Call, about: _About, ended: tuple[str, float, str]) -> None:
    code, seconds, peer = ended
    log.info(
        "answered",
        rpc=rpc,
        code=code,
        requests=call.requests,
        responses=call.responses,
        received=call.received,
        sent=call.sent,
        ms=round(seconds * 1000, 3),
        client=client_of(peer),
        id=_shown(about.request_id),
        model=_shown(about.model),
        trace_id=about.trace_id,
    )


def _code_name(code: Any) -> str:
    """The name of what a context says of its code: with older versions of grpc a number, else a
    member, and None where nobody has set one."""
    if isinstance(code, StatusCode):
        name: str = code.name
        return name
    return _CODES.get(code or 0, "UNKNOWN")


def _about(method: Method, packed: bytes) -> _About:
    """Whom a request was for that was not accepted, or is no infer request; nothing where it takes
    long to tell."""
    if len(packed) > _SHORT:
        return _About()
    if method.name == "ModelInfer":
        identity, model = subject(packed)
        return _About(identity, model)
    request = method.request()
    try:
        request.ParseFromString(packed)
    except DecodeError:
        return _About()
    return _About(model=getattr(request, _MODELS.get(method.name, ""), ""))


def subject(packed: bytes) -> tuple[str, str]:
    """The id of an infer request and its model, for the log; nothing where it takes long to
    tell."""
    try:
        parsed = parse_short(packed)
    except MicrokernelError:
        return "", ""
    return ("", "") if parsed is None else (parsed[0].id, parsed[0].model_name)


def client_of(peer: str) -> str:
    """The address in what gRPC calls a peer, `unix` for one of a Unix-domain socket."""
    kind, _, place = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    return unquote(place).rpartition(":")[0].strip("[]")


def _shown(text: str) -> str:
    """A client's text as it may be written to a terminal: not too long, with nothing that
    controls it."""
    text = text[:_LONGEST]
    return text if text.isprintable() else text.encode("unicode_escape").decode()
