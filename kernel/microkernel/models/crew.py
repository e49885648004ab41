"""The workers of one model version, and which of their instances are free.

A worker that dies is started again, after a delay that grows while it keeps dying; the model serves
on with the instances that are left.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog

from microkernel.backend import Placement
from microkernel.config.model import ModelConfig
from microkernel.errors import MicrokernelError
from microkernel.models.roster import FIRST_DELAY, LimitedRoster, Post, Roster, Seat
from microkernel.models.turns import enrol, granted
from microkernel.models.warming import Warming
from microkernel.models.warmup import Sample
from microkernel.request import InferRequest
from microkernel.scheduling.pending import Runner
from microkernel.scheduling.rate_limiter import RateLimiter
from microkernel.stats import Execution, ModelStats
from microkernel.workers.contract import Result, Worker, WorkerInstance
from microkernel.workers.flights import Receiver
from microkernel.workers.parts import Part
from microkernel.workers.readiness import Readiness

log = structlog.get_logger()

LONGEST_DELAY = 30.0
SETTLED = 60.0
"""Seconds a worker must live for its next death to count as the first."""

_NAMED = 8
"""Of so many requests that a worker fails the log tells the ids."""

Launch: TypeAlias = Callable[[], Awaitable[Worker]]


@dataclass(frozen=True, slots=True)
class CrewEvents:
    """What a crew tells its maker: an instance may be free (`freed`), no instance is left and the
    attempt to bring one back failed (`given_up`), an instance is there from now on (`joined`), and
    one is gone (`left`), whose batch fails right after. Warm-up is counted in `stats`."""

    freed: Callable[[], None]
    given_up: Callable[[MicrokernelError], None]
    joined: Callable[[WorkerInstance], None]
    left: Callable[[WorkerInstance], None]
    stats: ModelStats = field(default_factory=ModelStats)


@dataclass(frozen=True, slots=True)
class _Relay:
    """Hands on what comes of a decoupled batch, and says first what it means for its instance."""

    receiver: Receiver
    freed: Callable[[], None]
    served: Callable[[], None]
    ended: Callable[[], None]

    def part(self, index: int, part: Part) -> None:
        self.receiver.part(index, part)

    def returned(self, times: Execution) -> None:
        self.freed()
        self.receiver.returned(times)
        self.served()

    def over(self) -> None:
        self.ended()
        self.receiver.over()


class _Limit:
    """Calls `overdue` after some seconds, 0 for never, and again as long as it says so."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, overdue: Callable[[], bool]
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._overdue = overdue
        self._timer: asyncio.TimerHandle | None = None
        self._arm()

    def _arm(self) -> None:
        if self._seconds:
            self._timer = self._loop.call_later(self._seconds, self._fire)

    def _fire(self) -> None:
        if self._overdue():
            self._arm()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Crew:
    """Runs batches on whatever instance is free, or whose turn it is where there is a limiter.

    `limit` is the longest an execution may take in seconds before its worker is ended, 0 for ever;
    that of a decoupled model ends with the last final response. `samples` are run on every instance
    before it joins; passive ones never do. One of them may take as long, or where executions have
    no limit `load_limit`, so that a load that is to end does. Raises InvalidArgument where the
    limiter could never let an instance run.
    """

    def __init__(  # noqa: PLR0913 - keywords, of which most callers leave out all
        self,
        launch: Launch,
        config: ModelConfig,
        seats: Sequence[Sequence[Placement]],
        events: CrewEvents,
        *,
        limit: float = 0.0,
        load_limit: float = 0.0,
        samples: Sequence[Sample] = (),
        limiter: RateLimiter | None = None,
    ) -> None:
        self._launch = launch
        self._config = config
        turns = enrol(limiter, config, seats, events.freed)
        self._seats = [Seat(*pair) for pair in zip(seats, turns, strict=True)]
        self._events = events
        self._limit = limit
        self._sample_limit = limit or load_limit
        self._limiter = limiter
        self._roster = Roster() if limiter is None else LimitedRoster(limiter)
        self._warming = Warming(samples, events.stats, config.decoupled)
        self._loop = asyncio.get_running_loop()
        self._restarts: set[asyncio.Task[None]] = set()
        self._endings: set[asyncio.Task[None]] = set()
        self._stopping = self._draining = False
        self._drained = asyncio.Event()
        self._log = log.bind(model=config.name)
        self.idle = self._roster.idle
        """Whether an instance may run a batch now, or that one; see `Roster.idle`."""

    async def start(self, first: Worker | None) -> None:
        """Start every worker; `first` is one that runs already. Raises when one cannot start; the
        others are stopped then."""
        workers = [first, *([None] * (len(self._seats) - 1))]
        fills = [self._fill(*pair) for pair in zip(self._seats, workers, strict=True)]
        try:
            await _all(fills)
        except BaseException:
            await self.stop()
            raise

    async def _fill(self, seat: Seat, worker: Worker | None) -> None:
        worker = worker or await self._launch()
        try:
            posts = await self._made(seat, worker)
        except BaseException:
            await worker.stop()
            raise
        if self._stopping:
            await worker.stop()
            return
        watched = worker
        worker.watch(lambda error: self._lost(seat, watched, error))
        seat.worker, seat.posts, seat.since = worker, posts, self._loop.time()
        self._roster.admit(posts)
        for post in posts:
            self._events.joined(post.instance)
        self._events.freed()
        self._served()

    async def _made(self, seat: Seat, worker: Worker) -> Sequence[Post]:
        """The instances of a worker that are to serve, warmed up."""
        instances = await worker.start(self._config, seat.placements)
        lost: list[MicrokernelError] = []
        worker.watch(lost.append)
        made = zip(instances, seat.placements, seat.turns, strict=True)
        posts = [Post(seat, instance, turn) for instance, place, turn in made if not place.passive]
        await self._warm(worker, posts)
        if lost:
            raise lost[0]
        return posts

    async def _warm(self, worker: Worker, posts: Sequence[Post]) -> None:
        if not self._warming.samples or not posts:
            return
        began = self._loop.time()
        await _all([self._warm_one(worker, post) for post in posts])
        self._log.info(
            "instances warmed up",
            instances=[post.instance.name for post in posts],
            seconds=round(self._loop.time() - began, 3),
        )

    async def _warm_one(self, worker: Worker, post: Post) -> None:
        if self._limiter is None or post.turn is None:
            await self._run_samples(worker, post)
            return
        await granted(self._limiter, post.turn)
        try:
            await self._run_samples(worker, post)
        finally:
            self._limiter.finish(post.turn, free=False)
            self._limiter.serve()

    async def _run_samples(self, worker: Worker, post: Post) -> None:
        def watched() -> _Limit:
            return self._limited(worker, self._sample_limit, lambda: False)

        try:
            await self._warming.run(post.instance, watched)
        except asyncio.CancelledError:
            worker.kill("its warm-up was given up")  # it would end only when that has run
            raise

    @property
    def alive(self) -> int:
        """How many instances that serve are alive."""
        alive = 0
        for seat in self._seats:  # asked for every request; a generator costs twice as much
            alive += len(seat.posts)
        return alive

    def readiness(self) -> list[Readiness]:
        """Asks those instances that serve, are alive and can say whether they are ready."""
        asked = [post.instance.readiness for seat in self._seats for post in seat.posts]
        return [readiness for readiness in asked if readiness is not None]

    def execute(
        self,
        requests: Sequence[InferRequest],
        sizes: Sequence[int],
        done: Callable[[Result], None],
        on: Runner | None = None,
    ) -> tuple[WorkerInstance, int]:
        """Run a batch on a free instance, or on that one; only while `idle(on)`. Returns the
        instance, and the number by which it knows the first request."""
        post = self._roster.take(on)
        seat, instance = post.seat, post.instance
        seat.busy[post] = requests
        timer: asyncio.TimerHandle | None = None
        if self._limit:
            timer = self._loop.call_later(self._limit, _overdue, seat.worker, self._limit)

        def finished(result: Result) -> None:
            if timer is not None:
                timer.cancel()
            seat.busy.pop(post, None)
            self._roster.ran(post, there=post in seat.posts)
            done(result)
            if self._limiter is not None:
                self._limiter.serve()
            if self._draining:
                self._check_drained()

        return instance, instance.execute(requests, sizes, finished)

    def stream(
        self,
        requests: Sequence[InferRequest],
        sizes: Sequence[int],
        receiver: Receiver,
        spared: Callable[[], bool],
        on: Runner | None = None,
    ) -> tuple[WorkerInstance, int]:
        """As `execute`, for a decoupled model. The instance is free when the batch has returned;
        the limit holds until it is over, but `spared` is asked then whether it gets as long once
        more."""
        post = self._roster.take(on)
        seat, instance = post.seat, post.instance
        flight = object()
        seat.busy[flight] = requests
        limit = self._limited(seat.worker, self._limit, spared)

        def freed() -> None:
            self._roster.ran(post, there=post in seat.posts)

        def ended() -> None:
            limit.cancel()
            seat.busy.pop(flight, None)
            if self._draining:
                self._check_drained()

        relay = _Relay(receiver, freed, self._served, ended)
        return instance, instance.stream(requests, sizes, relay)

    def _served(self) -> None:
        if self._limiter is not None:
            self._limiter.serve()

    def _limited(
        self, worker: Worker | None, seconds: float, spared: Callable[[], bool]
    ) -> "_Limit":
        def overdue() -> bool:
            if spared():
                return True
            _overdue(worker, seconds)
            return False

        return _Limit(self._loop, seconds, overdue)

    def _check_drained(self) -> None:
        if not self._busy():
            self._drained.set()

    def _busy(self) -> bool:
        return any(seat.busy for seat in self._seats)

    def _lost(self, seat: Seat, worker: Worker, error: MicrokernelError) -> None:
        gone, seat.worker, seat.posts = seat.posts, None, ()
        ending = self._loop.create_task(worker.released())
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        self._roster.dismiss(gone)
        for post in gone:
            self._events.left(post.instance)
        self._served()
        if self._stopping:
            return
        if self._loop.time() - seat.since > SETTLED:
            seat.delay = FIRST_DELAY
        failed = [request for batch in seat.busy.values() for request in batch]
        self._log.error(
            "worker lost",
            reason=str(error),
            restart_seconds=seat.delay,
            requests=len(failed),
            request_ids=[request.id for request in failed if request.id][:_NAMED],
        )
        task = self._loop.create_task(self._restart(seat, ending))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _restart(self, seat: Seat, ending: asyncio.Task[None]) -> None:
        await asyncio.wait([ending])  # there may not be room for two workers
        while True:
            delay, seat.delay = seat.delay, min(seat.delay * 2, LONGEST_DELAY)
            await asyncio.sleep(delay)
            try:
                await self._fill(seat, None)
            except MicrokernelError as error:
                self._log.error("worker restart failed", reason=str(error), next=seat.delay)
                if not self.alive:
                    self._events.given_up(error)
            else:
                self._log.info("worker restarted")
                return

    def abandon(self, reason: str) -> None:
        """End every worker at once; running batches are answered with that reason."""
        for seat in self._seats:
            if seat.worker is not None and seat.busy:
                seat.worker.kill(reason)

    async def drained(self) -> None:
        """Wait until no batch runs, also of those whose callers have gone."""
        self._draining = True
        while self._busy():
            self._drained.clear()
            await self._drained.wait()

    async def stop(self) -> None:
        """Let running batches finish, then stop every worker; those that were lost have ended by
        then, too."""
        self._stopping = True
        for task in self._restarts:
            task.cancel()
        try:
            await self.drained()
            workers = [seat.worker for seat in self._seats if seat.worker is not None]
            await asyncio.gather(*self._restarts, return_exceptions=True)
            await asyncio.gather(*(worker.stop() for worker in workers), *self._endings)
        finally:
            self._leave()

    def _leave(self) -> None:
        for seat in self._seats:
            self._roster.dismiss(seat.posts)
            seat.worker, seat.posts = None, ()
        if self._limiter is not None:
            turns = [turn for seat in self._seats for turn in seat.turns if turn is not None]
            self._limiter.leave(turns)


def _overdue(worker: Worker | None, seconds: float) -> None:
    if worker is not None:
        worker.kill(f"an execution took longer than {seconds:g} seconds")


async def _all(calls: Sequence[Awaitable[None]]) -> None:
    """Wait for every call to end, then raise the first error."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
