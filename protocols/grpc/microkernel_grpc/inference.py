"""How an infer request is decoded and put to the port, alone or on a stream; nothing here knows
grpc."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias

from microkernel import (
    NO_CONTEXT,
    InferRequest,
    InferResponse,
    MicrokernelError,
    ModelConfig,
    Port,
    ResponseStream,
    Trace,
    Unsupported,
    parse_version,
)
from microkernel_grpc.decode import NOTHING_FORWARDED, Parsed, decode, parse, parse_short
from microkernel_grpc.encode import encode
from microkernel_grpc.forward import Forward
from microkernel_grpc.heads import Heads
from microkernel_grpc.parameters import wants_empty_final
from microkernel_grpc.restricted import Metadata
from microkernel_grpc.traces import (
    SEND_END,
    SEND_START,
    WAITREAD_END,
    WAITREAD_START,
    context_of,
)

Asked: TypeAlias = Callable[[InferRequest, Trace | None], None]

_DECOUPLED = "doesn't support models with decoupled transaction policy"


class Exchange(Protocol):
    """A call that is being answered."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Have something done when the answer is sent, or the call has ended otherwise."""
        ...


@dataclass(slots=True)
class Accepted:
    """A request of a stream that runs. `empty_final` is whether the client wants to be told of an
    end without a response."""

    request: InferRequest
    responses: ResponseStream
    empty_final: bool


class Inference:
    """Infer requests on their way to the port. `forward` makes parameters of their metadata;
    `continues` is whether the metadata may say which trace a request belongs to. `asked` is told of
    each request that can be put to the port, and of its trace."""

    def __init__(
        self,
        server: Port,
        forward: Forward | None,
        *,
        continues: bool = False,
        asked: Asked | None = None,
    ) -> None:
        self._server = server
        self._asked = asked
        self._forward = forward
        self._continues = continues
        self._heads = Heads()
        # One at a time, for what a message is parsed to can take ten times its size.
        self._long = ThreadPoolExecutor(1, "long-grpc")
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def reads_metadata(self) -> bool:
        """Whether requests need their metadata."""
        return self._forward is not None or self._continues

    async def unary(self, packed: bytes, exchange: Exchange, metadata: Metadata) -> bytes:
        """ModelInfer: a serialised response for a serialised request. Raises what `decode` and
        `Port.infer` raise."""
        arrived = time.monotonic_ns()
        request = self._heads.again(packed) if self._forward is None else None
        if request is None:
            request = await self._accept(packed, metadata)
        request = await self._traced(request, metadata, arrived)
        trace = request.trace
        if trace is None:
            return encode(await self._infer(request))
        try:
            response = await self._infer(request)
        finally:
            trace.mark(SEND_START)
            exchange.add_done_callback(partial(self._sent, trace))
        return encode(response)

    async def parse_long(self, packed: bytes) -> Parsed:
        """`parse` for what `parse_short` has left, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._long, parse, packed)

    async def open(
        self, parsed: Parsed, metadata: Metadata, arrived: int, *, aside: bool
    ) -> Accepted:
        """Start the request of a message of a stream, for which the stream began to wait at
        `arrived`; decoded in a thread where `aside`. Raises what `decode` and `Port.stream`
        raise."""
        infer, _ = parsed
        request = await self._decode(parsed, metadata, aside=aside)
        request = await self._traced(request, metadata, arrived)
        try:
            responses = await self._server.stream(request)
        except BaseException:
            if request.trace is not None:
                await self._server.end_trace(request.trace)
            raise
        return Accepted(request, responses, wants_empty_final(infer.parameters))

    async def finish_trace(self, trace: Trace) -> None:
        """The last answer to a traced request of a stream is sent."""
        trace.mark(SEND_END)
        await self._server.end_trace(trace)

    async def finish(self) -> None:
        """Wait until every trace is handed in; after the last call."""
        await asyncio.gather(*self._ending)

    async def config(self, infer: Any) -> ModelConfig:
        """The configuration of the model that a message asks for. Raises NotFound and Unavailable
        where it does not serve."""
        version = parse_version(infer.model_version)
        return await self._server.model_config(infer.model_name, version)

    async def _accept(self, packed: bytes, metadata: Metadata) -> InferRequest:
        """The request of a serialised message. A model that cannot be asked at all is reported
        before faults of the request, as in Triton."""
        short = parse_short(packed)
        parsed = short or await self.parse_long(packed)
        try:
            request = await self._decode(parsed, metadata, aside=short is None)
        except MicrokernelError:
            await self.config(parsed[0])
            raise
        if self._forward is None:
            self._heads.remember(packed, request)
        return request

    async def _decode(self, parsed: Parsed, metadata: Metadata, *, aside: bool) -> InferRequest:
        infer, raw = parsed
        given = NOTHING_FORWARDED if self._forward is None else self._forward(metadata)
        if aside:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._long, decode, infer, raw, given)
        return decode(infer, raw, given)

    async def _traced(
        self, request: InferRequest, metadata: Metadata, arrived: int
    ) -> InferRequest:
        """The request with its trace where it is sampled."""
        context = context_of(metadata) if self._continues else NO_CONTEXT
        trace = await self._server.begin_trace(request, context)
        if self._asked is not None:
            self._asked(request, trace)
        if trace is None:
            return request
        trace.mark(WAITREAD_START, arrived)
        trace.mark(WAITREAD_END)
        return replace(request, trace=trace)

    def _sent(self, trace: Trace, exchange: Any) -> None:
        task = asyncio.ensure_future(self.finish_trace(trace))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _infer(self, request: InferRequest) -> InferResponse:
        try:
            return await self._server.infer(request)
        except Unsupported as error:
            _, found, reason = str(error).partition(_DECOUPLED)
            if not found:
                raise
            raise Unsupported(f"ModelInfer RPC {_DECOUPLED}{reason}") from None
