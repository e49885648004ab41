"""A loaded model version: its configuration, its scheduler, its crew and its counters."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

from microkernel.caching.lookups import Lookup, ModelCache
from microkernel.classification import Labels
from microkernel.config.model import ModelConfig
from microkernel.errors import Cancelled, InvalidArgument, MicrokernelError, Unavailable
from microkernel.models.checking import Checked, RequestChecker
from microkernel.models.classifying import classified
from microkernel.models.crew import Crew, CrewEvents
from microkernel.models.keeping import settle
from microkernel.models.looked import Keeping, LookedReply
from microkernel.models.padding import Padding
from microkernel.models.reshape import reshapers
from microkernel.models.serving import Company, Held, Holds, charge
from microkernel.models.streams import Delivery, Stalls, StreamReply, only_response
from microkernel.models.table import no_instance
from microkernel.request import Answer, Answered, InferRequest, InferResponse, Reschedule
from microkernel.responses import ResponseStream
from microkernel.scheduling.choice import is_keeper, learner, scheduler_of
from microkernel.scheduling.ordering import Line, Place
from microkernel.scheduling.pending import Pending, Reply, Runner
from microkernel.scheduling.policy import Joins
from microkernel.scheduling.sequences import NOT_ITERATIVE
from microkernel.stats import Execution, Failure, ModelStats
from microkernel.tensor import Tensor
from microkernel.tracing import marks
from microkernel.workers.contract import Result, Worker
from microkernel.workers.parts import Part
from microkernel.workers.readiness import Readiness

Own: TypeAlias = asyncio.Future[InferResponse] | LookedReply | StreamReply
"""The reply that a request came with."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a model's directory holds beside its configuration and its versions: the labels of its
    outputs, and what its states begin as where that is not zeros, by the name of their input."""

    labels: Labels = field(default_factory=dict)
    initial_states: Mapping[str, Tensor] = field(default_factory=dict)


class ModelVersion:
    """Answers requests. Every request it accepts gets exactly one answer, whatever happens."""

    def __init__(
        self,
        config: ModelConfig,
        version: int,
        make_crew: Callable[[CrewEvents], Crew],
        files: ModelFiles | None = None,
        open_batch: Callable[[], Joins] | None = None,
        cache: ModelCache | None = None,
    ) -> None:
        """`config` is complete and normalised, `files` what was read beside it; the crew is made
        with this version's events and started by the caller. `open_batch` is what the dynamic
        batcher asks beside its own rules. `cache` keeps its responses, None where they are not
        kept. Raises InvalidArgument where it could never run."""
        self.config = config
        files = files or ModelFiles()
        self.labels = files.labels
        self.version = version
        self.stats = ModelStats(cached=cache is not None)
        self._cache = cache
        self._checker = RequestChecker(config)
        self._padding = Padding.of(config)
        if self._padding is not None:
            open_batch = self._padding.limited(open_batch)
        self._reshapers = reshapers(config.output, batches=config.max_batch_size > 0)
        self._loop = asyncio.get_running_loop()
        self._decoupled = config.decoupled
        self._unanswered = 0
        self._keeping = Keeping(self.stats)
        self._holds = Holds()
        self._stalls = Stalls()
        self._drained = asyncio.Event()
        self._line = Line.of(config)
        self._scheduler = scheduler_of(config, self, open_batch, files.initial_states)
        self.stats.learn = learner(self._scheduler)
        self._keeper = self._scheduler if is_keeper(self._scheduler) else None
        self._crew = make_crew(
            CrewEvents(self._scheduler.wake, self.give_up, self._joined, self._left, self.stats)
        )

    async def start(self, first: Worker) -> None:
        """Start the workers; `first` is one that runs already. Raises what the backend raised."""
        await self._crew.start(first)

    @property
    def ready(self) -> bool:
        """Whether an instance is alive."""
        return self._crew.alive > 0

    def readiness(self) -> Sequence[Readiness]:
        """See `Served.readiness`."""
        return self._crew.readiness()

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request. See `Port.infer` for what it raises. One of a decoupled model is
        answered where the model gives exactly one response; else it is Unsupported."""
        if self._decoupled:
            return await only_response(await self.stream(request))
        checked: Checked | None = None
        if self._checker.takes_long(request):
            checked = await self._checker.check_in_turns(request)
        own: asyncio.Future[InferResponse] = self._loop.create_future()
        reply: Own | Place = own
        looked: LookedReply | None = None
        lookup: Lookup | None = None
        if self._cache is not None and self._cache.covers(request):
            checked = checked or self._checker.check(request)
            looked = LookedReply(own, self._keeping)
            reply, lookup = await self._look(self._cache, checked.request, looked)
            looked.lookup = lookup
        pending = self._accept(request, reply, checked, lookup)
        try:
            if lookup is not None:
                await self._keeping.kept(lookup, await own)
            if request.classifications:
                return await self._classified(request, await own)
            return await own
        except asyncio.CancelledError:
            self._abandon(pending)
            if looked is not None:
                looked.left()
            raise
        finally:
            self._settled()
            # An error knows this frame: with its own reply in it, it would keep the whole request.
            del own, reply, looked, pending

    async def stream(self, request: InferRequest) -> ResponseStream:
        """Accept one request; its responses come on the stream. See `Port.stream`."""

        def throttle(hold: bool) -> None:
            self._stalls.throttle(pending, stream, failed, hold=hold)

        failed = partial(self._failed, request)
        checked: Checked | None = None
        if self._checker.takes_long(request):
            checked = await self._checker.check_in_turns(request)
        stream = ResponseStream(lambda: self._abandon(pending), throttle)
        own = StreamReply(stream, failed, self._settled)
        reply: Own | Place = own
        lookup: Lookup | None = None
        if self._cache is not None and self._cache.covers(request):
            checked = checked or self._checker.check(request)
            reply, lookup = await self._look(self._cache, checked.request, own)
            stream.then(partial(self._keeping.kept, lookup))
            stream.unread(partial(self._keeping.unread, lookup))
        pending = self._accept(request, reply, checked, lookup)
        if request.classifications:
            stream.then(partial(self._classified, request))
        return stream

    def _failed(self, request: InferRequest, error: MicrokernelError) -> InferResponse:
        """The error as a response."""
        return InferResponse(self.config.name, self.version, request.id, (), error=error)

    async def _look(
        self, cache: ModelCache, request: InferRequest, own: Own
    ) -> tuple[Own | Place, Lookup]:
        """Look for the response in the cache, which takes a place in the line first."""
        reply = own if self._line is None else self._line.place(own)
        try:
            return reply, await cache.look(request)
        except BaseException:
            if isinstance(reply, Place):
                reply.leave()
            raise

    def _accept(
        self,
        request: InferRequest,
        own: Own | Place,
        checked: Checked | None,
        lookup: Lookup | None = None,
    ) -> Pending:
        """Queue a request, which may be checked already, or answer it with what was found. Raises
        where it is refused."""
        if request.trace is not None:
            request.trace.mark("REQUEST_START", 0 if lookup is None else lookup.began)
        checked = checked or self._checker.check(request)
        reply: Reply = own
        if self._line is not None and not isinstance(own, Place):
            reply = self._line.place(own)
        now = time.monotonic_ns()
        pending = Pending(checked.request, checked.size, checked.key, reply, self._loop.time(), now)
        self._unanswered += 1  # first, for it may be answered at once
        if lookup is not None and lookup.outputs is not None:
            self._found(pending, lookup.began, lookup.outputs)
            return pending
        self.stats.pending += 1
        try:
            self._scheduler.submit(pending)
        except MicrokernelError:
            self.stats.pending -= 1  # refused, which no other counter shows
            self._leave(pending)
            self._settled()
            raise
        if request.trace is not None:
            marks.queued(request, now)
        return pending

    def _found(self, pending: Pending, began: int, outputs: tuple[Tensor, ...]) -> None:
        """Answer from the cache."""
        request, now = pending.request, time.monotonic_ns()
        if request.trace is not None:
            marks.queued(request, began)
            marks.answered(request, outputs, now)
        self.stats.first_response(now - began)
        self.stats.hit(began, now)
        response = InferResponse(self.config.name, self.version, request.id, outputs)
        pending.reply.set_result(response)

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
        self._leave(pending)

    def _leave(self, pending: Pending) -> None:
        """Nobody waits for the answer: others need not wait for it either."""
        if isinstance(pending.reply, Place):
            pending.reply.leave()

    async def _classified(self, request: InferRequest, response: InferResponse) -> InferResponse:
        return await classified(
            request, response, self.labels, batches=self.config.max_batch_size > 0
        )

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
        if self._keeper is None:
            self.stats.pending -= len(batch)
        else:
            self.stats.pending -= sum(not (pending.null or pending.again) for pending in batch)
        requests: Sequence[InferRequest] = [pending.request for pending in batch]
        if self._padding is not None:
            requests = self._padding.pad(requests)
        sizes = [pending.size for pending in batch]
        if self._decoupled:
            spared = partial(self._stalls.give_up, batch)
            receiver = Delivery(
                batch, self.stats, self._responded, self._scheduler.wake, self._stalls, self._keeper
            )
            instance, number = self._crew.stream(requests, sizes, receiver, spared, on)
        else:
            done = partial(self._finished, batch, sum(sizes))
            instance, number = self._crew.execute(requests, sizes, done, on)
        for pending in batch:
            pending.instance, pending.number = instance, number
            number += 1

    def _finished(self, batch: Sequence[Pending], total: int, result: Result) -> None:
        pairs: Iterable[tuple[Pending, Answered]] = zip(batch, result.answers, strict=True)
        if self._keeper is not None:
            pairs = settle(self._keeper, batch, result, self.stats)
        self.stats.executed(result.times, total)  # first, for the scheduler may learn from it
        self._scheduler.wake()  # the instance goes on while its results are handed out
        now = time.monotonic_ns()
        for pending, given in pairs:
            answer = InvalidArgument(NOT_ITERATIVE) if isinstance(given, Reschedule) else given
            if pending.request.trace is not None:
                _mark(pending.request, answer, result.times, now)
            reply = pending.reply
            if isinstance(answer, MicrokernelError):
                self.stats.first_response(now - pending.arrived_ns)
                self.stats.failed(pending.arrived_ns, now, Failure.BACKEND)
                if not reply.done():
                    reply.set_exception(answer)
                continue
            self.stats.succeeded(pending.arrived_ns, now, pending.size, result.times, first=True)
            if pending.request.spent is not None:
                charge(pending.request.spent, result.times)
            if not reply.done():  # else its caller has gone
                reply.set_result(self._response(pending.request, answer))

    def _response(self, request: InferRequest, answer: Answer) -> InferResponse:
        outputs = answer.outputs
        if self._padding is not None:
            outputs = self._padding.cut(request, outputs)
        if self._reshapers:
            outputs = tuple(self._reshaped(tensor) for tensor in outputs)
        return InferResponse(self.config.name, self.version, request.id, outputs, answer.parameters)

    def _responded(self, request: InferRequest, part: Part) -> InferResponse:
        if isinstance(part.answer, MicrokernelError):
            response = self._failed(request, part.answer)
        elif isinstance(part.answer, Answer):
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
        if not pending.again:
            self.stats.pending -= 1
        now = time.monotonic_ns()
        self.stats.failed(pending.arrived_ns, now, reason)
        if pending.request.trace is not None:
            marks.over(pending.request, now)

    def check_ahead(self, request: InferRequest) -> None:
        """See `Served.check_ahead`."""
        self._checker.check_ahead(request)

    @property
    def identity(self) -> bytes | None:
        """See `Served.identity`."""
        return None if self._cache is None else self._cache.identity

    def hold(self, company: Company) -> Held:
        """See `Served.hold`."""
        if not self.ready:
            raise no_instance(self.config.name, self.version)
        return self._holds.take(self, self.version)

    async def drain(self) -> None:
        """See `Served.drain`."""
        try:
            await self._holds.gone()
            if self._cache is not None:
                await self._cache.settled()  # who looks there may still be queued
        finally:
            self._scheduler.close()
        while self._unanswered:
            self._drained.clear()
            await self._drained.wait()
        await self._crew.drained()  # a caller that has gone leaves what runs for it
        await self._keeping.settled()

    def abandon(self, reason: str) -> None:
        """Answer everything that waits or runs with an error, now."""
        self.give_up(Unavailable(reason))
        self._crew.abandon(reason)

    async def stop(self) -> None:
        """Stop the workers; after `drain` or `abandon`."""
        await self._crew.stop()


def _mark(
    request: InferRequest, answer: Answer | MicrokernelError, times: Execution, now: int
) -> None:
    """Record the execution of a traced request and its answer."""
    marks.executed(request, times)
    marks.answered(request, answer.outputs if isinstance(answer, Answer) else (), now)
