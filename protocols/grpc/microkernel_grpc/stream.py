"""ModelStreamInfer: many requests and answers on one stream; nothing here knows grpc."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import structlog

from microkernel import InferResponse, Internal, MicrokernelError, Unavailable
from microkernel_grpc.decode import parse_short
from microkernel_grpc.encode import empty_final, encode_streamed, failure, refusal
from microkernel_grpc.inference import Accepted, Inference
from microkernel_grpc.restricted import Metadata
from microkernel_grpc.traces import SEND_START

Read: TypeAlias = Callable[[], Awaitable[bytes | None]]
"""The next serialised request, None when the client will send no more."""
Write: TypeAlias = Callable[[bytes], Awaitable[None]]
"""Sends a serialised answer. Raises a `MicrokernelError` where it cannot."""

SHUTTING_DOWN = "GRPC server is shutting down and has stopped accepting new requests."
_MAX_UNANSWERED = 1024
"""How many requests of a stream may be without their last answer before no more are read."""
_RPC, _FAILED = "ModelStreamInfer", "call failed unexpectedly"
_FAULT = "internal error, see the server's log"

log = structlog.get_logger(__name__)


class Streams:
    """The streams that are open."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._open: set[_Stream] = set()

    async def serve(self, read: Read, write: Write, metadata: Metadata) -> None:
        """Answer a stream until the client has sent its last request and got its last answer.

        Requests are accepted in their order and run concurrently. Answers of models that are not
        decoupled keep the order of the requests, those of decoupled models come as they are made,
        and what fails is answered in band. The next response of a request is not taken before its
        last one is written. Raises, to end the stream with it, the first error of inference where
        the client asked for that with the metadata `triton_grpc_error`, what `write` raises, and
        Unavailable once a stream that was told to stop has written every answer. Cancelling the
        call abandons every request of the stream.
        """
        stream = _Stream(self._inference, metadata, write)
        self._open.add(stream)
        try:
            ending = await stream.run(read)
        finally:
            self._open.remove(stream)
        if ending is not None:
            raise ending

    def stop(self) -> None:
        """Refuse new requests on the open streams, and end each when it has nothing to answer."""
        for stream in self._open:
            stream.stop()


@dataclass(slots=True)
class _Refused:
    """A request that failed before it was accepted, and its serialised answer."""

    packed: bytes


@dataclass(slots=True)
class _Turn:
    """The place of a request among those whose answers keep their order."""

    before: "asyncio.Future[None] | None"
    over: "asyncio.Future[None]"


class _Stream:
    def __init__(self, inference: Inference, metadata: Metadata, write: Write) -> None:
        self._inference = inference
        self._metadata = metadata
        self._write = write
        self._strict = ("triton_grpc_error", "true") in metadata
        self._loop = asyncio.get_running_loop()
        self._answering: set[asyncio.Task[None]] = set()
        self._unanswered = 0
        self._room = asyncio.Semaphore(_MAX_UNANSWERED)
        self._writing = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None
        self._last: asyncio.Future[None] | None = None
        self._half_closed = False
        self._stopping = False
        self._ending: asyncio.Future[MicrokernelError | None] = self._loop.create_future()

    def stop(self) -> None:
        """Refuse requests from now on, and end when every answer is written."""
        self._stopping = True
        self._settle()

    async def run(self, read: Read) -> MicrokernelError | None:
        """Serve the stream; the error to end it with, None for success."""
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read(read, group))
            ending = await self._ending
            reading.cancel()
            for answer in self._answering:
                # gRPC cannot take back a message, and refuses a status while one is on its way.
                if answer is not self._writer:
                    answer.cancel()
        return ending

    def _end(self, error: MicrokernelError | None) -> None:
        if not self._ending.done():
            self._ending.set_result(error)

    def _settle(self) -> None:
        """End the stream if there is nothing left to do on it."""
        if self._unanswered:
            return
        if self._half_closed:
            self._end(None)
        elif self._stopping:
            self._end(Unavailable(SHUTTING_DOWN))

    async def _read(self, read: Read, group: asyncio.TaskGroup) -> None:
        while True:
            waiting_since = time.monotonic_ns()
            packed = await read()
            if packed is None:
                break
            self._unanswered += 1
            await self._room.acquire()
            asked, ordered = await self._accept(packed, waiting_since)
            answer = group.create_task(self._answer(asked, self._turn() if ordered else None))
            self._answering.add(answer)
            answer.add_done_callback(self._answered)
        self._half_closed = True
        self._settle()

    def _turn(self) -> _Turn:
        before, self._last = self._last, self._loop.create_future()
        return _Turn(before, self._last)

    def _answered(self, answer: "asyncio.Task[None]") -> None:
        self._answering.discard(answer)
        self._unanswered -= 1
        self._room.release()
        self._settle()

    async def _accept(self, packed: bytes, waiting_since: int) -> tuple[Accepted | _Refused, bool]:
        """The request of a message, or its refusal, and whether its answers keep their order."""
        identity, model, ordered = "", "", True
        try:
            short = parse_short(packed)
            parsed = short or await self._inference.parse_long(packed)
            infer, _ = parsed
            identity, model = infer.id, infer.model_name
            self._check_stopping()
            ordered = not (await self._inference.config(infer)).decoupled
            opened = await self._inference.open(
                parsed, self._metadata, waiting_since, aside=short is None
            )
        except MicrokernelError as error:
            return _Refused(refusal(identity, error)), ordered
        except Exception:
            log.exception(_FAILED, rpc=_RPC, model=model, request_id=identity)
            return _Refused(refusal(identity, Internal(_FAULT))), ordered
        return opened, ordered

    def _check_stopping(self) -> None:
        if self._stopping:
            raise Unavailable(SHUTTING_DOWN)

    async def _answer(self, asked: Accepted | _Refused, turn: _Turn | None) -> None:
        """Write every answer to one request."""
        try:
            if isinstance(asked, Accepted):
                await self._respond(asked, turn)
            else:
                await self._send(lambda: asked.packed, turn)
        finally:
            if turn is not None and not turn.over.done():
                turn.over.set_result(None)

    async def _respond(self, asked: Accepted, turn: _Turn | None) -> None:
        trace = unsent = asked.request.trace
        try:
            async for response in asked.responses:
                if response.error is not None and self._strict:
                    self._end(response.error)
                    return
                if response.flag_only and not asked.empty_final:
                    continue
                if unsent is not None:
                    unsent.mark(SEND_START)
                    unsent = None
                if not await self._send(partial(_packed, asked, response), turn):
                    return
        finally:
            asked.responses.close()
            if trace is not None:
                await self._inference.finish_trace(trace)

    async def _send(self, pack: Callable[[], bytes], turn: _Turn | None) -> bool:
        """Write an answer when it is its turn, packed only then; whether more may follow."""
        if turn is not None and turn.before is not None:
            await turn.before
            turn.before = None
        async with self._writing:
            if self._ending.done():
                return False
            self._writer = asyncio.current_task()
            try:
                await self._write(pack())
            except MicrokernelError as error:
                self._end(error)
            finally:
                self._writer = None
        return not self._ending.done()


def _packed(asked: Accepted, response: InferResponse) -> bytes:
    """The serialised form of a response."""
    if response.error is not None:
        return failure(asked.request, response.error, final=response.final)
    if response.flag_only:
        return empty_final(asked.request)
    try:
        return encode_streamed(response)
    except MicrokernelError as error:
        return failure(asked.request, error, final=response.final)
    except Exception:
        about = asked.request
        log.exception(_FAILED, rpc=_RPC, model=about.model_name, request_id=about.id)
        return failure(about, Internal(_FAULT), final=response.final)
