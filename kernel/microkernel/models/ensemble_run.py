"""One request on its way through the steps of an ensemble."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from microkernel.ensembles.flow import Flow, Progress, Start, Value
from microkernel.ensembles.graph import Graph
from microkernel.ensembles.steps import overridden, sequence_of, step_request
from microkernel.errors import Cancelled, MicrokernelError
from microkernel.models.ensemble_gates import Gate
from microkernel.models.serving import Held
from microkernel.port import NO_CONTEXT
from microkernel.request import InferRequest, InferResponse, Sequence, Spent
from microkernel.responses import ResponseStream
from microkernel.tracing.tracer import Tracer

Give: TypeAlias = Callable[[Mapping[str, Value], bool], None]
"""Takes the values of the outputs of one answer, and whether it is the last."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the requests of one ensemble share: its graph, who traces, and a gate for each step
    where the requests under way are limited."""

    graph: Graph
    tracer: Tracer
    gates: tuple[Gate, ...] = ()


@dataclass(slots=True)
class _Going:
    """What of a request is under way beside the coroutine that runs it."""

    branches: list[asyncio.Task[None]] = field(default_factory=list)
    streams: set[ResponseStream] = field(default_factory=set)


class EnsembleRun:
    """Runs the steps that a request needs, each when its tensors are there.

    A chain of steps runs in one coroutine; where several can run at once, each of the others gets a
    task.
    """

    name = ""

    def __init__(
        self,
        about: Circumstances,
        request: InferRequest,
        models: tuple[Held, ...],
        give: Give,
        spent: Spent,
    ) -> None:
        """`models` are those of the steps, held by the caller until the run is over; what the steps
        take is added to `spent`. `give` must not know the run, or its tensors outlive it."""
        self._about = about
        self._request = request
        self._models = models
        self._give = give
        self._spent = spent
        self._flow = Flow(about.graph, about.graph.route(request.outputs))
        self._going = _Going()
        self._error: MicrokernelError | None = None
        self._flowing: asyncio.Event | None = None

    async def run(self, inputs: Mapping[str, Value]) -> MicrokernelError | None:
        """Run the steps from the request's own tensors on, until nothing is under way.

        Returns the first error that a step gave, when the steps that were running then are done.
        One who cancels this cancels them.
        """
        branches = self._going.branches
        try:
            await self._advance(self._took(self._flow.begin(inputs)))
            while branches:
                await branches.pop(0)
        except MicrokernelError as error:
            self.fail(error)
        finally:
            if branches:
                await _end(branches)
        return self._error

    def fail(self, error: MicrokernelError) -> None:
        """Start no more steps; the run ends with this error, unless it has failed before."""
        if self._error is None:
            # Without the frames that it came through, which hold this run and all its tensors.
            self._error = error.with_traceback(None)
        for stream in tuple(self._going.streams):
            stream.close()
        self.resume()

    async def _advance(self, starts: list[Start]) -> None:
        """Run steps that can run at once, and what follows from each."""
        while starts and self._error is None:
            first = starts.pop(0)
            await self._branch_off(starts)
            if not await self._entered(first):
                return
            try:
                starts = await self._step(first)
            except MicrokernelError as error:
                self.fail(error)

    async def _branch_off(self, starts: list[Start]) -> None:
        while starts:
            start = starts.pop(0)
            if await self._entered(start):
                branch = asyncio.ensure_future(self._branch(start))
                if self._about.gates:
                    branch.add_done_callback(partial(self._branched, start))
                self._going.branches.append(branch)

    def _branched(self, start: Start, branch: "asyncio.Task[None]") -> None:
        """A branch is over. One that was cancelled before its first turn has run nothing, and has
        its place still."""
        if branch.cancelled() and start.values:
            self._about.gates[start.step].leave()

    async def _branch(self, start: Start) -> None:
        try:
            starts = await self._step(start)
        except MicrokernelError as error:
            self.fail(error)
            return
        del start
        await self._advance(starts)

    async def _entered(self, start: Start) -> bool:
        """Wait until the step may start; False where the request has failed meanwhile."""
        if self._about.gates:
            gate = self._about.gates[start.step]
            await gate.enter()
            if self._error is not None:
                gate.leave()
        return self._error is None

    async def _step(self, start: Start) -> list[Start]:
        """Run a step that has entered, unless the request has failed since; what may start after
        its last answer."""
        about, model = self._about, self._models[start.step]
        step = about.graph.steps[start.step]
        request = step_request(self._request, step, start, self._spent)
        belongs = sequence_of(step, start.values)
        start.values = {}
        self._begin_trace(request, model)
        try:
            if self._error is not None:
                return []
            if step.decoupled:
                return await self._follow(start, await model.stream(request), belongs)
            return self._arrived(start, await model.infer(request), belongs)
        finally:
            self._end_trace(request)
            if about.gates:
                about.gates[start.step].leave()

    async def _follow(
        self, start: Start, stream: ResponseStream, belongs: Sequence | None
    ) -> list[Start]:
        """Take the responses of a decoupled step as they come; what its last one starts."""
        self._going.streams.add(stream)
        try:
            if self._error is not None:  # which came while the step took the request
                return []
            async for response in stream:
                if response.error is not None:
                    raise response.error
                final = response.final
                starts = self._arrived(start, response, belongs)
                del response  # and its tensors, which may be needed no longer than until the next
                if final:
                    return starts
                await self._keep_up(stream, starts)
        finally:
            self._going.streams.discard(stream)
            stream.close()
        return []

    async def _keep_up(self, stream: ResponseStream, starts: list[Start]) -> None:
        """Start what a response has led to, and read no further while that has to wait or the
        answers are not read."""
        if self._flowing is None and not self._about.gates:
            await self._branch_off(starts)
            return
        stream.hold()  # it is not the reader's fault
        try:
            await self._branch_off(starts)
            if self._flowing is not None:
                await self._flowing.wait()
        finally:
            stream.release()

    def _arrived(
        self, start: Start, response: InferResponse, belongs: Sequence | None
    ) -> list[Start]:
        if response.flag_only:
            self._flow.ended(start)
            return []
        belongs = overridden(response.parameters, belongs, self._request.sequence)
        values = {tensor.name: Value(tensor, belongs) for tensor in response.outputs}
        progress = self._flow.arrived(start, values, final=response.final)
        return [] if self._error is not None else self._took(progress)

    def _took(self, progress: Progress) -> list[Start]:
        """Give the answers that are complete; what may start."""
        for index, answer in enumerate(progress.answers, 1):
            if not self._about.graph.decoupled and all(v.tensor is None for v in answer.values()):
                continue  # which leaves the request without any
            over = self._flow.running == 0 and index == len(progress.answers)
            last = over or not self._about.graph.decoupled
            self._give(answer, last)
        return progress.starts

    def _begin_trace(self, request: InferRequest, model: Held) -> None:
        if self._request.trace is not None:
            request.trace = self._request.trace  # the child's parent
            request.trace = self._about.tracer.begin(request, model.version, NO_CONTEXT)

    def _end_trace(self, request: InferRequest) -> None:
        if request.trace is not None:
            self._about.tracer.end(request.trace)

    def pause(self, number: int = 0) -> None:
        """The answers are not read quickly enough; see `Runner.pause`."""
        if self._flowing is None:
            self._flowing = asyncio.Event()

    def resume(self, number: int = 0) -> None:
        """They are read again; see `Runner.resume`."""
        if self._flowing is not None:
            self._flowing.set()
            self._flowing = None

    def cancel(self, number: int = 0) -> None:
        """Nobody reads the answers any more; see `Runner.cancel`."""
        self.fail(Cancelled("the request was cancelled"))


async def _end(branches: list[asyncio.Task[None]]) -> None:
    for branch in branches:
        branch.cancel()
    await asyncio.gather(*branches, return_exceptions=True)
