"""A loaded model version: its configuration, its scheduler, its crew and its counters."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from microkernel.classification import Labels, classify_outputs
from microkernel.config.model import ModelConfig
from microkernel.errors import Cancelled, MicrokernelError, Unavailable
from microkernel.models.checking import Checked, RequestChecker, turn
from microkernel.models.crew import Crew, CrewEvents
from microkernel.models.reshape import reshapers
from microkernel.models.streams import Delivery, Stalls, StreamReply, only_response
from microkernel.request import Answer, InferRequest, InferResponse
from microkernel.responses import ResponseStream
from microkernel.scheduling.choice import is_keeper, scheduler_of
from microkernel.scheduling.pending import Pending, Reply, Runner
from microkernel.stats import Failure, ModelStats
from microkernel.tensor import Tensor
from microkernel.tracing import marks
from microkernel.workers.contract import Result, Worker
from microkernel.workers.parts import Part

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
        self._decoupled = config.decoupled
        self._unanswered = 0
        self._stalls = Stalls()
        self._drained = asyncio.Event()
        self._scheduler = scheduler_of(config, self)
        self._keeper = self._scheduler if is_keeper(self._scheduler) else None
        self._crew = make_crew(
            CrewEvents(self._scheduler.wake, self.give_up, self._joined, self._left)
        )

    async def start(self, first: Worker) -> None:
        """Start the workers; `first` is one that runs already. Raises what the backend raised."""
        await self._crew.start(first)

    @property
    def ready(self) -> bool:
        """Whether an instance is alive."""
        return self._crew.alive > 0

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request. See `Port.infer` for what it raises. One of a decoupled model is
        answered where the model gives exactly one response; else it is Unsupported."""
        if self._decoupled:
            return await only_response(await self.stream(request))
        checked = await self._read(request) if self._checker.takes_long(request) else None
        reply: asyncio.Future[InferResponse] = self._loop.create_future()
        pending = self._accept(request, reply, checked)
        try:
            if request.classifications:
                return await self._classified(request, await reply)
            return await reply
        except asyncio.CancelledError:
            self._abandon(pending)
            raise
        finally:
            self._settled()

    async def stream(self, request: InferRequest) -> ResponseStream:
        """Accept one request; its responses come on the stream. See `Port.stream`."""

        def throttle(hold: bool) -> None:
            self._stalls.throttle(pending, stream, failed, hold=hold)

        failed = partial(self._failed, request)
        checked = await self._read(request) if self._checker.takes_long(request) else None
        stream = ResponseStream(lambda: self._abandon(pending), throttle)
        pending = self._accept(request, StreamReply(stream, failed, self._settled), checked)
        if request.classifications:
            stream.then(partial(self._classified, request))
        return stream

    def _failed(self, request: InferRequest, error: MicrokernelError) -> InferResponse:
        """The error as a response."""
        return InferResponse(self.config.name, self.version, request.id, (), error=error)

    async def _read(self, request: InferRequest) -> Checked:
        """Check a request of very many elements while others go on."""
        looking = self._checker.look(request)
        while True:
            if (checked := turn(looking)) is not None:
                return checked
            await asyncio.sleep(0)

    def _accept(self, request: InferRequest, reply: Reply, checked: Checked | None) -> Pending:
        """Queue a request, which may be checked already. Raises where it is refused."""
        if request.trace is not None:
            request.trace.mark("REQUEST_START")
        checked = checked or self._checker.check(request)
        now = time.monotonic_ns()
        pending = Pending(checked.request, checked.size, checked.key, reply, self._loop.time(), now)
        self.stats.pending += 1
        self._unanswered += 1  # first, for it may be answered at once
        try:
            self._scheduler.submit(pending)
        except MicrokernelError:
            self.stats.pending -= 1  # refused, which no other counter shows
            self._settled()
            raise
        if request.trace is not None:
            marks.queued(request, now)
        return pending

    def _settled(self) -> None:
        self._unanswered -= 1
        if self._unanswered == 0:
            self._drained.set()

    def _abandon(self, pending: Pending) -> None:
        """The caller has gone: forget a request that waits, tell the instance of one that runs."""
        self._stalls.forget(pending)
        if self._scheduler.abandon(pending):
            self.reject(pending, Cancelled("the request was cancelled"), Failure.CANCELED)
        elif pending.instance is not None:
            pending.instance.cancel(pending.number)

    async def _classified(self, request: InferRequest, response: InferResponse) -> InferResponse:
        """The response with the classes that were asked for; where they may be many, found in a
        thread."""
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

    def _joined(self, instance: Runner) -> None:
        if self._keeper is not None:
            self._keeper.joined(instance)

    def _left(self, instance: Runner) -> None:
        if self._keeper is not None:
            self._keeper.left(instance)

    def idle(self, on: Runner | None = None) -> bool:
        """See `Executor.idle`."""
        return self._crew.idle(on)

    def execute(self, batch: Sequence[Pending], on: Runner | None = None) -> None:
        """See `Executor.execute`."""
        self.stats.pending -= sum(not pending.null for pending in batch)
        requests = [pending.request for pending in batch]
        sizes = [pending.size for pending in batch]
        if self._decoupled:
            spared = partial(self._stalls.give_up, batch)
            receiver = Delivery(
                batch, self.stats, self._responded, self._scheduler.wake, self._stalls
            )
            instance, number = self._crew.stream(requests, sizes, receiver, spared, on)
        else:
            done = partial(self._finished, batch)
            instance, number = self._crew.execute(requests, sizes, done, on)
        for pending in batch:
            pending.instance, pending.number = instance, number
            number += 1

    def _finished(self, batch: Sequence[Pending], result: Result) -> None:
        self._scheduler.wake()  # the instance goes on while its results are handed out
        now, total = time.monotonic_ns(), 0
        for pending, answer in zip(batch, result.answers, strict=True):
            total += pending.size
            if pending.request.trace is not None:
                outputs = () if isinstance(answer, MicrokernelError) else answer.outputs
                marks.executed(pending.request, result.times)
                marks.answered(pending.request, outputs, now)
            self.stats.first_response(now - pending.arrived_ns)
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

    def _responded(self, request: InferRequest, part: Part) -> InferResponse:
        if isinstance(part.answer, MicrokernelError):
            response = self._failed(request, part.answer)
        elif part.answer is not None:
            response = self._response(request, part.answer)
        else:
            response = InferResponse(self.config.name, self.version, request.id, ())
            response.flag_only = True
        response.final = part.final
        return response

    def _reshaped(self, tensor: Tensor) -> Tensor:
        reshaper = self._reshapers.get(tensor.name)
        if reshaper is None:
            return tensor
        return replace(tensor, shape=reshaper.outward(tensor.shape))

    def give_up(self, error: MicrokernelError) -> None:
        """No instance is left and none came back: answer what waits."""
        text = f"no instance of model '{self.config.name}' is alive: {error}"
        for pending in self._scheduler.take_all():
            self.reject(pending, Unavailable(text), Failure.OTHER)

    def reject(self, pending: Pending, error: MicrokernelError, reason: Failure) -> None:
        """See `Executor.reject`."""
        self._forget(pending, reason)
        if not pending.reply.done():
            pending.reply.set_exception(error)

    def _forget(self, pending: Pending, reason: Failure) -> None:
        self.stats.pending -= 1
        now = time.monotonic_ns()
        self.stats.failed(pending.arrived_ns, now, reason)
        if pending.request.trace is not None:
            marks.over(pending.request, now)

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
