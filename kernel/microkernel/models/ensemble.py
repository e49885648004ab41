"""A loaded version of an ensemble: takes requests, runs their steps, answers and counts them."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from microkernel.caching.lookups import ModelCache
from microkernel.classification import Labels
from microkernel.config.model import EnsembleScheduling, ModelConfig
from microkernel.ensembles.flow import NOTHING, Value
from microkernel.ensembles.graph import Graph
from microkernel.ensembles.steps import passed, sequence_parameters
from microkernel.errors import Internal, MicrokernelError, Unavailable
from microkernel.models.checking import Checked, RequestChecker
from microkernel.models.classifying import classified
from microkernel.models.ensemble_accounts import Accepted, Accounts, no_answer
from microkernel.models.ensemble_gates import Gate
from microkernel.models.ensemble_run import Circumstances, EnsembleRun
from microkernel.models.reshape import reshapers
from microkernel.models.serving import Company, Held, Holds, Served
from microkernel.models.streams import Stalls, StreamReply, only_response
from microkernel.request import InferRequest, InferResponse
from microkernel.responses import ResponseStream
from microkernel.scheduling.pending import Pending
from microkernel.stats import ModelStats
from microkernel.tensor import Tensor
from microkernel.tracing import marks
from microkernel.tracing.tracer import Tracer
from microkernel.workers.readiness import Readiness

log = structlog.get_logger()

Find = Callable[[str, int], Served]
"""Gives the version of a model that serves now, whether it would answer or not. Raises NotFound and
Unavailable."""


@dataclass(frozen=True, slots=True)
class Equipment:
    """What an ensemble may have beside its steps: the labels of its outputs, who traces its
    requests, and what keeps its responses, None where they are not kept."""

    labels: Labels = field(default_factory=dict)
    tracer: Tracer | None = None
    cache: ModelCache | None = None


class EnsembleVersion:
    """An ensemble, which serves as a model does. The models of its steps are found anew for every
    request, and are held until it is answered."""

    def __init__(
        self,
        config: ModelConfig,
        version: int,
        graph: Graph,
        find: Find,
        equipment: Equipment | None = None,
    ) -> None:
        """`config` is normalised and `graph` what it fits to."""
        equipment = equipment or Equipment()
        cache = equipment.cache
        self.config = config
        self.version = version
        self.graph = graph
        self.labels = equipment.labels
        self.stats = ModelStats(cached=cache is not None)
        self._accounts = Accounts(self.stats)
        self._cache = cache
        self._find = find
        self._batches = config.max_batch_size > 0
        self._checker = RequestChecker(config)
        self._reshapers = reshapers(config.output, batches=self._batches)
        limit = (config.ensemble_scheduling or EnsembleScheduling()).max_inflight_requests
        gates = tuple(Gate(limit) for _ in graph.steps) if limit else ()
        self._about = Circumstances(graph, equipment.tracer or Tracer(), gates)
        self._loop = asyncio.get_running_loop()
        self._stalls = Stalls()
        self._holds = Holds()
        self._refusing = False
        self._runs: set[EnsembleRun] = set()
        self._playing: set[asyncio.Task[None]] = set()
        self._unanswered = 0
        self._drained = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether every model of its steps would answer. However ensembles are nested, each model
        is looked at once."""
        try:
            return all(model.ready for model in self._models())
        except MicrokernelError:
            return False

    def readiness(self) -> Sequence[Readiness]:
        """See `Served.readiness`; the instances of every model of its steps."""
        with suppress(MicrokernelError):
            return [asked for model in self._models() for asked in model.readiness()]
        return ()

    def _models(self) -> Iterator[Served]:
        """Every model of its steps, and of ensembles among them, once each. Raises as `composing`
        does."""
        seen: set[Served] = set()
        waiting = [self]
        while waiting:
            for model in waiting.pop().composing():
                if model in seen:
                    continue
                seen.add(model)
                if isinstance(model, EnsembleVersion):
                    waiting.append(model)
                else:
                    yield model

    def composing(self) -> Iterator[Served]:
        """The model of each step as it serves now. Raises NotFound and Unavailable on the way."""
        for step in self.graph.steps:
            yield self._find(step.model, step.version)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request. See `Port.infer`. One of a decoupled ensemble is answered where it
        gives exactly one response; else it is Unsupported."""
        self._check_open(request)
        return await self.infer_by(request, None)

    async def stream(self, request: InferRequest) -> ResponseStream:
        """Accept one request; its responses come on the stream. See `Port.stream`."""
        self._check_open(request)
        return await self.stream_by(request, None)

    def _check_open(self, request: InferRequest) -> None:
        if self._refusing:
            raise Unavailable(
                f"{request.tag()}Server is stopping, scheduler for model has stopped accepting new "
                "inference requests"
            )

    async def infer_by(
        self, request: InferRequest, models: tuple[Held, ...] | None
    ) -> InferResponse:
        """Answer one request by models that are held already, or by those that serve now."""
        if self.config.decoupled:
            return await only_response(await self.stream_by(request, models))
        accepted = self._accept(await self._checked(request), models)
        try:
            response = await self._answer(accepted)
        finally:
            self._settle(accepted)
        if request.classifications:
            return await self._classified(request, response)
        return response

    async def stream_by(
        self, request: InferRequest, models: tuple[Held, ...] | None
    ) -> ResponseStream:
        """As `infer_by`, with the responses on a stream."""

        def throttle(hold: bool) -> None:
            self._stalls.throttle(pending, stream, failed, hold=hold)

        def abandon() -> None:
            self._stalls.forget(pending)
            task.cancel()

        failed = partial(self._error_response, request)
        accepted = self._accept(await self._checked(request), models)
        stream = ResponseStream(abandon, throttle)
        reply = StreamReply(stream, failed, lambda: self._stalls.forget(pending))
        arrived = self._loop.time()
        pending = Pending(
            accepted.request, accepted.size, None, reply, arrived, accepted.arrived_ns
        )
        run = None
        if self.config.decoupled:
            run = pending.instance = self._new_run(accepted, reply.set_result)
            work = self._play(accepted, run, reply)
        else:
            work = self._play_once(accepted, reply)
        task = asyncio.ensure_future(work)
        self._playing.add(task)
        task.add_done_callback(partial(self._played, accepted, run, reply))
        if request.classifications:
            stream.then(partial(self._classified, request))
        return stream

    async def _checked(self, request: InferRequest) -> Checked:
        if request.trace is not None:
            request.trace.mark("REQUEST_START")
        if not self._checker.takes_long(request):
            return self._checker.check(request)
        return await self._checker.check_in_turns(request)

    def _accept(self, checked: Checked, models: tuple[Held, ...] | None) -> Accepted:
        """Take a request that was checked. Raises MicrokernelError where a model of its steps does
        not serve."""
        request, now = checked.request, time.monotonic_ns()
        if request.trace is not None:
            marks.queued(request, now)
        company = Company() if models is None else None
        accepted = Accepted(request, checked.size, now, models or (), company)
        if company is not None:
            try:
                accepted.models = self._compose(company)
            except MicrokernelError as error:
                company.release()
                self._accounts.failed(accepted)
                raise self._named(error) from None
        self._unanswered += 1
        return accepted

    def _compose(self, company: Company) -> tuple[Held, ...]:
        """The models that serve now, one for each step, held. Raises NotFound and Unavailable."""
        return tuple([company.hold(model) for model in self.composing()])

    def _new_run(
        self, accepted: Accepted, answer: Callable[[InferResponse], object]
    ) -> EnsembleRun:
        def give(values: Mapping[str, Value], last: bool) -> None:
            response = self._response(accepted, values, last=last)
            if last:  # counted before anybody can know of it
                self._accounts.succeeded(accepted)
            answer(response)

        run = EnsembleRun(self._about, accepted.request, accepted.models, give, accepted.spent)
        self._runs.add(run)
        return run

    async def _run(self, accepted: Accepted, run: EnsembleRun) -> None:
        """Run the steps and count the request. Raises the error of a step, in Triton's form."""
        accepted.began = time.monotonic_ns()
        given = {tensor.name: Value(tensor) for tensor in accepted.request.inputs}
        inputs = {entry.name: given.get(entry.name, NOTHING) for entry in self.config.input}
        del given
        try:
            error = await run.run(inputs)
        except asyncio.CancelledError:
            if not accepted.counted:
                self._accounts.failed(accepted)
            raise
        finally:
            self._runs.discard(run)
        if accepted.counted:  # one that failed, too, was abandoned right after its last answer
            return
        if error is None and not (accepted.answers or self.config.decoupled):
            error = no_answer(accepted.request)
        if error is not None:
            self._accounts.failed(accepted)
            raise self._named(error)
        self._accounts.succeeded(accepted)

    async def _answer(self, accepted: Accepted) -> InferResponse:
        """The only answer, from the cache or by running the steps. Raises the error of a step, in
        Triton's form."""
        lookup = None
        if self._cache is not None and self._cache.covers(accepted.request):
            lookup = await self._cache.look(accepted.request)
            if lookup.outputs is not None:
                self._accounts.found(accepted, lookup.began, lookup.outputs)
                return self._answered(accepted, lookup.outputs)
        answers: list[InferResponse] = []
        await self._run(accepted, self._new_run(accepted, answers.append))
        if lookup is not None:
            self.stats.missed(await lookup.keep(answers[0].outputs))
        return answers[0]

    async def _play_once(self, accepted: Accepted, reply: StreamReply) -> None:
        try:
            reply.set_result(await self._answer(accepted))
        except MicrokernelError as error:
            reply.set_exception(error)

    async def _play(self, accepted: Accepted, run: EnsembleRun, reply: StreamReply) -> None:
        try:
            await self._run(accepted, run)
        except MicrokernelError as error:
            reply.set_exception(error)
            return
        if not reply.done():
            last = self._answered(accepted, ())
            last.flag_only = True
            reply.set_result(last)

    def _played(
        self,
        accepted: Accepted,
        run: EnsembleRun | None,
        reply: StreamReply,
        task: "asyncio.Task[None]",
    ) -> None:
        self._playing.discard(task)
        if run is not None:
            self._runs.discard(run)
        if task.cancelled() and not accepted.began:  # the reader left before the first step
            self._accounts.failed(accepted)
        self._settle(accepted)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an ensemble failed", model=self.config.name, exc_info=error)
            reply.set_exception(Internal(f"ensemble '{self.config.name}' failed: {error!r}"))

    def _settle(self, accepted: Accepted) -> None:
        if accepted.company is not None:
            accepted.company.release()
        self._unanswered -= 1
        if self._unanswered == 0:
            self._drained.set()

    def _named(self, error: MicrokernelError) -> MicrokernelError:
        return type(error)(f"in ensemble '{self.config.name}', {error}")

    def _error_response(self, request: InferRequest, error: MicrokernelError) -> InferResponse:
        return InferResponse(self.config.name, self.version, request.id, (), error=error)

    def _response(
        self, accepted: Accepted, values: Mapping[str, Value], *, last: bool
    ) -> InferResponse:
        sequence = None
        outputs: list[Tensor] = []
        for feed in self.graph.outputs:
            value = values.get(feed.tensor, NOTHING)
            if value.tensor is not None:
                outputs.append(self._reshaped(passed(value.tensor, feed)))
                sequence = value.sequence or sequence
        self._accounts.answered(accepted, outputs)
        response = self._answered(accepted, tuple(outputs))
        if sequence is not None:
            response.parameters = sequence_parameters(sequence)
        response.final = last
        return response

    def _answered(self, accepted: Accepted, outputs: tuple[Tensor, ...]) -> InferResponse:
        return InferResponse(self.config.name, self.version, accepted.request.id, outputs)

    def _reshaped(self, tensor: Tensor) -> Tensor:
        reshaper = self._reshapers.get(tensor.name)
        if reshaper is None:
            return tensor
        return replace(tensor, shape=reshaper.outward(tensor.shape))

    async def _classified(self, request: InferRequest, response: InferResponse) -> InferResponse:
        return await classified(request, response, self.labels, batches=self._batches)

    def check_ahead(self, request: InferRequest) -> None:
        """See `Served.check_ahead`."""
        self._checker.check_ahead(request)

    @property
    def identity(self) -> bytes | None:
        """See `Served.identity`. What its answers are depends on more than itself."""
        return None

    def hold(self, company: Company) -> Held:
        """See `Served.hold`; the models of its steps are held with it."""
        models = self._compose(company)
        return HeldEnsemble(self, models, self._holds.take(self, self.version))

    async def drain(self) -> None:
        """See `Served.drain`."""
        self._refusing = True
        await self._holds.gone()
        while self._unanswered:
            self._drained.clear()
            await self._drained.wait()

    def abandon(self, reason: str) -> None:
        """See `Served.abandon`."""
        for run in tuple(self._runs):
            run.fail(Unavailable(reason))

    async def stop(self) -> None:
        """See `Served.stop`; what it runs on belongs to others."""


class HeldEnsemble:
    """A hold on an ensemble that runs on the models of its steps as they were when it was taken;
    they are held in the same company."""

    def __init__(self, ensemble: EnsembleVersion, models: tuple[Held, ...], hold: Held) -> None:
        self.version = ensemble.version
        self._ensemble = ensemble
        self._models = models
        self._hold = hold

    async def infer(self, request: InferRequest) -> InferResponse:
        """See `Answering.infer`."""
        return await self._ensemble.infer_by(request, self._models)

    async def stream(self, request: InferRequest) -> ResponseStream:
        """See `Answering.stream`."""
        return await self._ensemble.stream_by(request, self._models)

    def release(self) -> None:
        """See `Held.release`."""
        self._hold.release()
