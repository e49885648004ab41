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
from microkernel.request import InferRequest
from microkernel.scheduling.pending import Runner
from microkernel.stats import Execution
from microkernel.workers.contract import Result, Worker, WorkerInstance
from microkernel.workers.flights import Receiver
from microkernel.workers.parts import Part

log = structlog.get_logger()

FIRST_DELAY = 0.1
LONGEST_DELAY = 30.0
SETTLED = 60.0
"""Seconds a worker must live for its next death to count as the first."""

Launch: TypeAlias = Callable[[], Awaitable[Worker]]


@dataclass(slots=True, eq=False)
class _Seat:
    """A place for one worker and the instances that belong there."""

    placements: Sequence[Placement]
    worker: Worker | None = None
    instances: Sequence[WorkerInstance] = ()
    busy: set[object] = field(default_factory=set)
    delay: float = FIRST_DELAY
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class CrewEvents:
    """What a crew tells its maker: an instance may be free (`freed`), no instance is left and the
    attempt to bring one back failed (`given_up`), an instance is there from now on (`joined`), and
    one is gone (`left`), whose batch fails right after."""

    freed: Callable[[], None]
    given_up: Callable[[MicrokernelError], None]
    joined: Callable[[WorkerInstance], None]
    left: Callable[[WorkerInstance], None]


@dataclass(frozen=True, slots=True)
class _Relay:
    """Hands on what comes of a decoupled batch, and says first what it means for its instance."""

    receiver: Receiver
    freed: Callable[[], None]
    ended: Callable[[], None]

    def part(self, index: int, part: Part) -> None:
        self.receiver.part(index, part)

    def returned(self, times: Execution) -> None:
        self.freed()
        self.receiver.returned(times)

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
    """Runs batches on whatever instance is free.

    `limit` is the longest an execution may take in seconds before its worker is ended, 0 for ever;
    that of a decoupled model ends with the last final response.
    """

    def __init__(
        self,
        launch: Launch,
        config: ModelConfig,
        seats: Sequence[Sequence[Placement]],
        events: CrewEvents,
        *,
        limit: float = 0.0,
    ) -> None:
        self._launch = launch
        self._config = config
        self._seats = [_Seat(placements) for placements in seats]
        self._events = events
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._free: list[tuple[_Seat, WorkerInstance]] = []
        self._restarts: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._drained = asyncio.Event()
        self._log = log.bind(model=config.name)

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

    async def _fill(self, seat: _Seat, worker: Worker | None) -> None:
        worker = worker or await self._launch()
        try:
            instances = await worker.start(self._config, seat.placements)
        except BaseException:
            await worker.stop()
            raise
        if self._stopping:
            await worker.stop()
            return
        worker.watch(lambda error: self._lost(seat, error))
        seat.worker, seat.instances, seat.since = worker, instances, self._loop.time()
        self._free += [(seat, instance) for instance in instances]
        for instance in instances:
            self._events.joined(instance)
        self._events.freed()

    @property
    def alive(self) -> int:
        """How many instances are alive."""
        alive = 0
        for seat in self._seats:  # asked for every request; a generator costs twice as much
            alive += len(seat.instances)
        return alive

    def idle(self, on: Runner | None = None) -> bool:
        """Whether an instance is free, or that one."""
        if on is None:
            return bool(self._free)
        return any(instance is on for _, instance in self._free)

    def _take(self, on: Runner | None) -> tuple[_Seat, WorkerInstance]:
        if on is None:
            return self._free.pop()
        at = next(i for i, (_, instance) in enumerate(self._free) if instance is on)
        return self._free.pop(at)

    def execute(
        self,
        requests: Sequence[InferRequest],
        sizes: Sequence[int],
        done: Callable[[Result], None],
        on: Runner | None = None,
    ) -> tuple[WorkerInstance, int]:
        """Run a batch on a free instance, or on that one; only while `idle(on)`. Returns the
        instance, and the number by which it knows the first request."""
        seat, instance = self._take(on)
        seat.busy.add(instance)
        timer: asyncio.TimerHandle | None = None
        if self._limit:
            timer = self._loop.call_later(self._limit, self._overdue, seat.worker)

        def finished(result: Result) -> None:
            if timer is not None:
                timer.cancel()
            seat.busy.discard(instance)
            if instance in seat.instances:
                self._free.append((seat, instance))
            done(result)
            if self._stopping:
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
        seat, instance = self._take(on)
        flight = object()
        seat.busy.add(flight)
        limit = self._limited(seat.worker, spared)

        def freed() -> None:
            if instance in seat.instances:
                self._free.append((seat, instance))

        def ended() -> None:
            limit.cancel()
            seat.busy.discard(flight)
            if self._stopping:
                self._check_drained()

        return instance, instance.stream(requests, sizes, _Relay(receiver, freed, ended))

    def _limited(self, worker: Worker | None, spared: Callable[[], bool]) -> "_Limit":
        def overdue() -> bool:
            if spared():
                return True
            self._overdue(worker)
            return False

        return _Limit(self._loop, self._limit, overdue)

    def _overdue(self, worker: Worker | None) -> None:
        if worker is not None:
            worker.kill(f"an execution took longer than {self._limit:g} seconds")

    def _check_drained(self) -> None:
        if not self._busy():
            self._drained.set()

    def _busy(self) -> bool:
        return any(seat.busy for seat in self._seats)

    def _lost(self, seat: _Seat, error: MicrokernelError) -> None:
        gone, seat.worker, seat.instances = seat.instances, None, ()
        self._free = [(s, i) for s, i in self._free if s is not seat]
        for instance in gone:
            self._events.left(instance)
        if self._stopping:
            return
        if self._loop.time() - seat.since > SETTLED:
            seat.delay = FIRST_DELAY
        self._log.error("worker lost", reason=str(error), restart_seconds=seat.delay)
        task = self._loop.create_task(self._restart(seat))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _restart(self, seat: _Seat) -> None:
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

    async def stop(self) -> None:
        """Let running batches finish, then stop every worker."""
        self._stopping = True
        for task in self._restarts:
            task.cancel()
        if self._busy():
            await self._drained.wait()
        workers = [seat.worker for seat in self._seats if seat.worker is not None]
        await asyncio.gather(*self._restarts, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in workers))
        for seat in self._seats:
            seat.worker, seat.instances = None, ()
        self._free.clear()


async def _all(calls: Sequence[Awaitable[None]]) -> None:
    """Wait for every call to end, then raise the first error."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def seats(placements: Sequence[Placement], worker: str) -> list[list[Placement]]:
    """Which instances share a worker: all, or each has its own where `worker` is `instance`."""
    if worker == "instance":
        return [[placement] for placement in placements]
    return [list(placements)]
