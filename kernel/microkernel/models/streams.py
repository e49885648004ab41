"""Requests whose callers read their responses from a stream."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from microkernel.errors import Cancelled, MicrokernelError, Unavailable, Unsupported
from microkernel.models.keeping import heard, step_over
from microkernel.models.serving import charge
from microkernel.request import Answer, InferRequest, InferResponse, Reschedule
from microkernel.responses import ResponseStream
from microkernel.scheduling.pending import Pending, SequenceKeeper
from microkernel.stats import Execution, Failure, ModelStats
from microkernel.tracing import marks
from microkernel.workers.parts import Part

STALL_LIMIT = 60.0
"""Seconds in which a client that is too slow must read something; else its request is given up, for
it may be keeping an instance from others. Web servers grant as much between two writes."""


class StreamReply:
    """The reply of a request whose responses go to a stream; see `Reply`."""

    def __init__(
        self,
        stream: ResponseStream,
        failed: Callable[[MicrokernelError], InferResponse],
        settled: Callable[[], None],
    ) -> None:
        """`failed` makes a response of an error; `settled` is called once, with the final one."""
        self._stream = stream
        self._failed = failed
        self._settled: Callable[[], None] | None = settled
        self._done = False

    def done(self) -> bool:
        """Whether the final response was given; the caller may have gone before."""
        return self._done

    def hold(self) -> None:
        """See `StreamedReply.hold`."""
        self._stream.hold()

    def release(self) -> None:
        """See `StreamedReply.release`."""
        self._stream.release()

    def set_result(self, response: InferResponse) -> None:
        """Put a response on the stream."""
        if self._done:
            return
        self._stream.put(response)
        if response.final:
            self._done = True
            settled, self._settled = self._settled, None  # it may know this reply
            if settled is not None:
                settled()

    def set_exception(self, error: MicrokernelError) -> None:
        """End the stream with an error."""
        self.set_result(self._failed(error))


@dataclass(slots=True)
class _Stalled:
    """A stream that is not read quickly enough, how much of it waited when that was last looked at,
    and when it is looked at again."""

    stream: ResponseStream
    failure: Callable[[MicrokernelError], InferResponse]
    waiting: int
    timer: asyncio.TimerHandle


class Stalls:
    """Holds the model back where clients read too slowly, and gives up on those that do not read.

    A client that is given up finds an error after what it has not read yet.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stalled: dict[Pending, _Stalled] = {}

    def throttle(
        self,
        pending: Pending,
        stream: ResponseStream,
        failure: Callable[[MicrokernelError], InferResponse],
        *,
        hold: bool,
    ) -> None:
        """Pause a request that runs, or let it go on."""
        if pending.instance is None:
            return
        if hold:
            timer = self._loop.call_later(STALL_LIMIT, self._expired, pending)
            self._stalled[pending] = _Stalled(stream, failure, stream.buffered, timer)
            pending.instance.pause(pending.number)
        else:
            self.forget(pending)
            pending.instance.resume(pending.number)

    def forget(self, pending: Pending) -> None:
        """The request is over, or its caller has gone."""
        if (stalled := self._stalled.pop(pending, None)) is not None:
            stalled.timer.cancel()

    def _expired(self, pending: Pending) -> None:
        stalled = self._stalled[pending]
        if stalled.stream.held or stalled.stream.buffered < stalled.waiting:  # slow, but alive
            stalled.waiting = stalled.stream.buffered
            stalled.timer = self._loop.call_later(STALL_LIMIT, self._expired, pending)
            return
        self._give_up(pending, f"the client has read no response for {STALL_LIMIT:g} seconds")

    def give_up(self, batch: Sequence[Pending]) -> bool:
        """Give up those requests of a batch that are held back; whether there were any."""
        stalled = [pending for pending in batch if pending in self._stalled]
        for pending in stalled:
            self._give_up(pending, "the client reads so slowly that the execution takes too long")
        return bool(stalled)

    def _give_up(self, pending: Pending, reason: str) -> None:
        stalled = self._stalled.pop(pending)
        stalled.timer.cancel()
        stalled.stream.put(stalled.failure(Unavailable(f"{pending.request.tag()}{reason}")))
        if pending.instance is not None:
            pending.instance.cancel(pending.number)


@dataclass(slots=True)
class _Progress:
    """What has come for one request: how many responses, when the model began to work for the
    first, the error that was the last answer, and whether there will be more."""

    count: int = 0
    began: int = 0
    error: MicrokernelError | None = None
    over: bool = False


class Delivery:
    """Takes what comes of a batch of a decoupled model to its requests, and counts it; it is the
    batch's `Receiver`.

    A request counts when its final response comes. What it is charged ends there, or where the
    batch returned if that was before.
    """

    def __init__(
        self,
        batch: Sequence[Pending],
        stats: ModelStats,
        respond: Callable[[InferRequest, Part], InferResponse],
        freed: Callable[[], None],
        stalls: Stalls,
        keeper: SequenceKeeper | None = None,
    ) -> None:
        """`respond` makes a response of a part; `freed` is called when something may run that could
        not before. `keeper` hears of every part first."""
        self._batch = batch
        self._stats = stats
        self._respond = respond
        self._freed = freed
        self._stalls = stalls
        self._keeper = keeper
        self._progress = [_Progress() for _ in batch]
        self._start = time.monotonic_ns()
        self._times: Execution | None = None

    def part(self, index: int, part: Part) -> None:
        """See `Receiver.part`."""
        pending = self._batch[index]
        if pending.null:
            return
        outcome = heard(self._keeper, pending, part.answer, final=part.final)
        if outcome is not part.answer:
            part = replace(part, answer=outcome)
        self._tell(pending, self._progress[index], part)
        if part.final and self._keeper is not None:
            self._freed()

    def _tell(self, pending: Pending, progress: _Progress, part: Part) -> None:
        now = time.monotonic_ns()
        if progress.count == 0:
            progress.began = part.began or now
            if not pending.again:
                self._stats.first_response(now - pending.arrived_ns)
        if isinstance(part.answer, Reschedule):
            progress.over = True
            step_over(pending, self._charged(progress, part, now), self._stats)
            return
        if part.began:  # else the model had no part in it
            infer, output = part.output_start - part.began, part.end - part.output_start
            self._stats.response(progress.count, part.answer, infer, output)
        progress.count += 1
        if part.answer is not None:
            progress.error = part.answer if isinstance(part.answer, MicrokernelError) else None
        if pending.request.trace is not None:
            outputs = part.answer.outputs if isinstance(part.answer, Answer) else ()
            marks.responded(pending.request, outputs, now)
        if part.final:
            self._finish(pending, progress, part, now)
        pending.reply.set_result(self._respond(pending.request, part))

    def _charged(self, progress: _Progress, part: Part, now: int) -> Execution:
        """What a request is charged that is over with this part."""
        if self._times is not None:
            return self._times
        began = max(self._start, progress.began)
        end = max(began, part.end or now)
        return Execution(self._start, began, max(began, part.output_start), end)

    def _finish(self, pending: Pending, progress: _Progress, part: Part, now: int) -> None:
        self._stalls.forget(pending)
        progress.over = True
        times = self._charged(progress, part, now)
        if self._times is None:
            self._mark(pending, times)
        if progress.error is None:
            self._stats.succeeded(pending.arrived_ns, now, pending.size, times)
            if pending.request.spent is not None:
                charge(pending.request.spent, times)
        else:
            cancelled = isinstance(progress.error, Cancelled)
            reason = Failure.CANCELED if cancelled else Failure.BACKEND
            self._stats.failed(pending.arrived_ns, now, reason)
        if pending.request.trace is not None:
            marks.over(pending.request, now)

    def _mark(self, pending: Pending, times: Execution) -> None:
        if pending.request.trace is not None:
            marks.executed(pending.request, times)

    def returned(self, times: Execution) -> None:
        """See `Receiver.returned`."""
        self._times = times
        self._stats.executed(times, sum(pending.size for pending in self._batch))
        self._freed()
        for pending, progress in zip(self._batch, self._progress, strict=True):
            if not progress.over:
                self._mark(pending, times)

    def over(self) -> None:
        """See `Receiver.over`."""


async def only_response(stream: ResponseStream) -> InferResponse:
    """The one response of a request of a decoupled model; the stream is closed then.

    Raises Unsupported where there is none or more than one, and an error that came in its place.
    """
    only: InferResponse | None = None
    response: InferResponse | None = None
    try:
        async for response in stream:
            if response.error is not None:
                raise response.error
            if response.flag_only:
                continue
            if only is not None:
                raise _not_one(2)
            only = response
    finally:
        response = None  # an error that was in it knows this frame
        stream.close()
    if only is None:
        raise _not_one(0)
    return replace(only, final=True)


def _not_one(count: int) -> Unsupported:
    return Unsupported(
        "doesn't support models with decoupled transaction policy: expected a single response, got "
        f"{count}"
    )
