"""ModelStreamInfer: many requests and answers on one stream; nothing here knows grpc."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import structlog

from microkernel import Internal, MicrokernelError, Unavailable
from microkernel_grpc.decode import parse
from microkernel_grpc.encode import encode_streamed, failure, refusal
from microkernel_grpc.inference import Inference, precedes_inference
from microkernel_grpc.restricted import Metadata

Read: TypeAlias = Callable[[], Awaitable[bytes | None]]
"""The next serialised request, None when the client will send no more."""
Write: TypeAlias = Callable[[bytes], Awaitable[None]]
"""Sends a serialised answer. Raises a `MicrokernelError` where it cannot."""

SHUTTING_DOWN = "GRPC server is shutting down and has stopped accepting new requests."
_MAX_UNWRITTEN = 1024
"""How many requests of a stream may be without a written answer before no more are read."""

log = structlog.get_logger(__name__)


class Streams:
    """The streams that are open."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._open: set[_Stream] = set()

    async def serve(self, read: Read, write: Write, metadata: Metadata) -> None:
        """Answer a stream until the client has sent its last request and got its last answer.

        Requests run concurrently; answers keep the order of the requests, and what fails is
        answered in band. Raises, to end the stream with it, the first error of inference where the
        client asked for that with the metadata `triton_grpc_error`, what `write` raises, and
        Unavailable once a stream that was told to stop has written every answer. Cancelling the
        call cancels every request of the stream.
        """
        stream = _Stream(self._inference, metadata)
        self._open.add(stream)
        try:
            ending = await stream.run(read, write)
        finally:
            self._open.remove(stream)
        if ending is not None:
            raise ending

    def stop(self) -> None:
        """Refuse new requests on the open streams, and end each when it has nothing to answer."""
        for stream in self._open:
            stream.stop()


class _Stream:
    def __init__(self, inference: Inference, metadata: Metadata) -> None:
        self._inference = inference
        self._metadata = metadata
        self._strict = ("triton_grpc_error", "true") in metadata
        self._unwritten: deque[asyncio.Task[bytes]] = deque()
        self._room = asyncio.Semaphore(_MAX_UNWRITTEN)
        self._changed = asyncio.Event()
        self._half_closed = False
        self._stopping = False
        self._fatal: MicrokernelError | None = None

    def stop(self) -> None:
        """Refuse requests from now on, and end when every answer is written."""
        self._stopping = True
        self._changed.set()

    async def run(self, read: Read, write: Write) -> MicrokernelError | None:
        """Serve the stream; the error to end it with, None for success."""
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read(read, group))
            try:
                ending = await self._write(write)
            except MicrokernelError as error:  # a group would wrap it
                ending = error
            reading.cancel()
            for answer in self._unwritten:
                answer.cancel()
        return ending

    async def _read(self, read: Read, group: asyncio.TaskGroup) -> None:
        while (packed := await read()) is not None:
            await self._room.acquire()
            answer = group.create_task(self._answer(packed))
            answer.add_done_callback(lambda _: self._changed.set())
            self._unwritten.append(answer)
        self._half_closed = True
        self._changed.set()

    async def _write(self, write: Write) -> MicrokernelError | None:
        """Write answers in the order of their requests, each as soon as it may be."""
        while self._fatal is None:
            if self._unwritten and self._unwritten[0].done():
                await write(self._unwritten.popleft().result())
                self._room.release()
            elif self._half_closed and not self._unwritten:
                return None
            elif self._stopping and not self._unwritten:
                return Unavailable(SHUTTING_DOWN)
            else:
                self._changed.clear()
                await self._changed.wait()
        return self._fatal

    async def _answer(self, packed: bytes) -> bytes:
        """The serialised answer of one request. It raises nothing: its siblings go on."""
        try:
            return await self._response(packed)
        except Exception:
            log.exception("call failed unexpectedly", rpc="ModelStreamInfer")
            return refusal("", Internal("internal error, see the server's log"))

    async def _response(self, packed: bytes) -> bytes:
        identity = ""
        try:
            infer, raw = parse(packed)
            identity = infer.id
            if self._stopping:
                raise Unavailable(SHUTTING_DOWN)
            request = await self._inference.accept(infer, raw, self._metadata)
        except MicrokernelError as error:
            return refusal(identity, error)
        try:
            return encode_streamed(await self._inference.infer(request))
        except MicrokernelError as error:
            if precedes_inference(error):
                return refusal(identity, error)
            if self._strict and self._fatal is None:
                self._fatal = error
            return failure(request, error)
