"""A loaded model version: its configuration, its scheduler, its crew and its counters."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import structlog

from microkernel.classification import Labels, classify_outputs
from microkernel.config.model import ModelConfig
from microkernel.errors import Internal, MicrokernelError, Unavailable
from microkernel.models.checking import RequestChecker
from microkernel.models.crew import Crew, CrewEvents
from microkernel.models.reshape import reshapers
from microkernel.request import InferRequest, InferResponse
from microkernel.responses import ResponseStream
from microkernel.scheduling.pending import Pending, Scheduler
from microkernel.scheduling.queue import QueueScheduler
from microkernel.stats import Failure, ModelStats
from microkernel.tensor import Tensor
from microkernel.workers.contract import Result, Worker
from microkernel.workers.descriptors import Answer

log = structlog.get_logger()

_MANY = 64 << 10
"""The most bytes of an output whose classes are found at once."""


class ModelVersion:
    """Answers requests. Every request it accepts gets exactly one answer, whatever happens."""

    def __init__(
        self,
        config: ModelConfig,
        version: int,
        make_crew: Callable[[CrewEvents], Crew],
        labels: Labels | None = None,
    ) -> None:
        """`config` is complete and normalised, `labels` are those of its outputs; the crew is made
        with this version's events and started by the caller."""
        self.config = config
        self._labels = labels or {}
        self.version = version
        self.stats = ModelStats()
        self._checker = RequestChecker(config)
        self._reshapers = reshapers(config.output, batches=config.max_batch_size > 0)
        self._loop = asyncio.get_running_loop()
        self._unanswered = 0
        self._streamed: set[asyncio.Task[InferResponse]] = set()
        self._drained = asyncio.Event()
        self._crew = make_crew(CrewEvents(freed=self._wake, given_up=self.give_up))
        self._scheduler: Scheduler = QueueScheduler.of(config, self)

    async def start(self, first: Worker) -> None:
        """Start the workers; `first` is one that runs already. Raises what the backend raised."""
        await self._crew.start(first)

    @property
    def ready(self) -> bool:
        """Whether an instance is alive."""
        return self._crew.alive > 0

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request. See `Port.infer` for what it raises."""
        return await self._answer(request, self._accept(request))

    async def stream(self, request: InferRequest) -> ResponseStream:
        """Accept one request; its responses come on the stream. See `Port.stream`."""
        answer = self._loop.create_task(self._answer(request, self._accept(request)))
        stream = ResponseStream(answer.cancel)
        self._streamed.add(answer)

        def answered(answer: "asyncio.Task[InferResponse]") -> None:
            self._streamed.discard(answer)
            if not answer.cancelled():
                stream.put(self._told(request, answer))

        answer.add_done_callback(answered)
        return stream

    def _told(self, request: InferRequest, answer: "asyncio.Task[InferResponse]") -> InferResponse:
        """The response, or the error as a response."""
        error = answer.exception()
        if error is None:
            return answer.result()
        if not isinstance(error, MicrokernelError):
            log.error("a request failed unexpectedly", exc_info=error)
            error = Internal("internal error, see the server's log")
        return InferResponse(self.config.name, self.version, request.id, (), error=error)

    def _accept(self, request: InferRequest) -> Pending:
        """Queue a request. Raises where it is refused."""
        checked = self._checker.check(request)
        reply: asyncio.Future[InferResponse] = self._loop.create_future()
        now = time.monotonic_ns()
        pending = Pending(checked.request, checked.size, checked.key, reply, self._loop.time(), now)
        self.stats.pending += 1
        try:
            self._scheduler.submit(pending)
        except MicrokernelError:
            self.stats.pending -= 1  # refused, which no other counter shows
            raise
        self._unanswered += 1
        return pending

    async def _answer(self, request: InferRequest, pending: Pending) -> InferResponse:
        try:
            if request.classifications:
                return await self._classified(request, pending.reply)
            return await pending.reply
        except asyncio.CancelledError:
            if self._scheduler.abandon(pending):
                self._forget(pending, Failure.CANCELED)
            raise
        finally:
            self._unanswered -= 1
            if self._unanswered == 0:
                self._drained.set()

    async def _classified(
        self, request: InferRequest, reply: "asyncio.Future[InferResponse]"
    ) -> InferResponse:
        """The response with the classes that were asked for; where they may be many, found in a
        thread."""
        response = await reply
        work = partial(
            classify_outputs,
            response,
            request.classifications,
            self._labels,
            batches=self.config.max_batch_size > 0,
        )
        if any(tensor.nbytes > _MANY for tensor in response.outputs):
            return await asyncio.to_thread(work)
        return work()

    def _wake(self) -> None:
        self._scheduler.wake()

    def idle(self) -> bool:
        """Whether an instance is free."""
        return self._crew.idle()

    def execute(self, batch: Sequence[Pending]) -> None:
        """Run a batch that the scheduler formed."""
        self.stats.pending -= len(batch)
        self._crew.execute(
            [pending.request for pending in batch],
            [pending.size for pending in batch],
            lambda result: self._finished(batch, result),
        )

    def _finished(self, batch: Sequence[Pending], result: Result) -> None:
        self._scheduler.wake()  # the instance goes on while its results are handed out
        now, total = time.monotonic_ns(), 0
        for pending, answer in zip(batch, result.answers, strict=True):
            total += pending.size
            reply = pending.reply
            if isinstance(answer, MicrokernelError):
                self.stats.failed(pending.arrived_ns, now, Failure.BACKEND)
                if not reply.done():
                    reply.set_exception(answer)
                continue
            self.stats.succeeded(pending.arrived_ns, now, pending.size, result.times)
            if not reply.done():  # else its caller has gone
                reply.set_result(self._response(pending.request, answer))
        self.stats.executed(result.times, total)

    def _response(self, request: InferRequest, answer: Answer) -> InferResponse:
        outputs = answer.outputs
        if self._reshapers:
            outputs = tuple(self._reshaped(tensor) for tensor in outputs)
        return InferResponse(self.config.name, self.version, request.id, outputs, answer.parameters)

    def _reshaped(self, tensor: Tensor) -> Tensor:
        reshaper = self._reshapers.get(tensor.name)
        if reshaper is None:
            return tensor
        return replace(tensor, shape=reshaper.outward(tensor.shape))

    def give_up(self, error: MicrokernelError) -> None:
        """No instance is left and none came back: answer what waits."""
        text = f"no instance of model '{self.config.name}' is alive: {error}"
        for pending in self._scheduler.take_all():
            self._forget(pending, Failure.OTHER)
            if not pending.reply.done():
                pending.reply.set_exception(Unavailable(text))

    def _forget(self, pending: Pending, reason: Failure) -> None:
        self.stats.pending -= 1
        self.stats.failed(pending.arrived_ns, time.monotonic_ns(), reason)

    async def drain(self) -> None:
        """Refuse new requests and wait until everything accepted is answered."""
        self._scheduler.close()
        while self._unanswered:
            self._drained.clear()
            await self._drained.wait()

    def abandon(self, reason: str) -> None:
        """Answer everything that waits or runs with an error, now."""
        self.give_up(Unavailable(reason))
        self._crew.abandon(reason)

    async def stop(self) -> None:
        """Stop the workers; after `drain` or `abandon`."""
        await self._crew.stop()
