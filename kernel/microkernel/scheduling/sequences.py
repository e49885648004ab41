"""The sequence batcher: requests of one sequence go to one slot of one instance, in order.

It acts on what `Slots` decides and a strategy makes of it. It has no task and one timer; it moves
when a request arrives, when one is released, when the executor wakes it, and when a wait is over.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

import structlog

from microkernel.config.model import ModelConfig
from microkernel.errors import Cancelled, InvalidArgument, Unavailable
from microkernel.request import Sequence as SequenceOf
from microkernel.scheduling.controls import Controls
from microkernel.scheduling.direct import Direct
from microkernel.scheduling.dynamic import DELAY, first_needed
from microkernel.scheduling.oldest import Oldest
from microkernel.scheduling.pending import Executor, Outcome, Pending, Runner
from microkernel.scheduling.slots import Seat, Slot, Slots
from microkernel.scheduling.states import States
from microkernel.scheduling.turns import Turn, Turns
from microkernel.stats import Failure
from microkernel.tensor import Tensor

log = structlog.get_logger()

NOT_ITERATIVE = (
    "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not "
    "configured to handle such a flag."
)
BACKLOG_DELAY = "TRITONSERVER_BACKLOG_DELAY_SCHEDULER"
"""How many requests must wait in the backlog before anything runs, once."""

_IDLE = 1_000_000
"""The microseconds after which an idle sequence ends where the configuration does not say."""


class Strategy(Protocol):
    """How the requests at the front of their slots become batches."""

    def joined(self, seat: Seat) -> None:
        """An instance is there."""
        ...

    def left(self, seat: Seat) -> Sequence[Pending]:
        """An instance has gone: what was taken from its slots and will not run."""
        ...

    def act(self, now: float) -> float:
        """Run what can run. Returns when to be asked again at the latest."""
        ...

    def released(self, slot: Slot) -> None:
        """A request that was taken from a slot is over."""
        ...

    def withdraw(self, slot: Slot, pending: Pending) -> bool:
        """Forget a request that was taken from a slot if it does not run yet; whether it did."""
        ...

    def take_all(self) -> Sequence[Pending]:
        """Give up what was taken from slots and does not run yet."""
        ...

    @property
    def waiting(self) -> int:
        """How much was taken from slots and does not run yet."""
        ...


@dataclass(frozen=True, slots=True)
class Delay:
    """How much must wait, in slots and in the backlog, before anything runs for the first time."""

    slots: int
    backlog: int

    @classmethod
    def of_environment(cls) -> "Delay":
        """What Triton's variables for tests say. Raises InvalidArgument for what is no number."""
        return cls(first_needed(DELAY, os.environ), first_needed(BACKLOG_DELAY, os.environ))


class SequenceBatcher:
    """The scheduler of a model with `sequence_batching`; promises what `SequenceKeeper` does."""

    def __init__(
        self,
        config: ModelConfig,
        executor: Executor,
        initial: Mapping[str, Tensor],
        delay: Delay | None = None,
    ) -> None:
        """`initial` holds what states begin as, by the name of their input, where that is not
        zeros."""
        batching = config.sequence_batching
        assert batching is not None
        self._model = config.name
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._iterative = batching.iterative_sequence
        self._controls = Controls.of(config)
        strategy = Direct if batching.oldest is None else Oldest
        idle = (batching.max_sequence_idle_microseconds or _IDLE) / 1e6
        self._slots = Slots(config.name, strategy.slots_of(config), idle)
        self._turns = Turns(self._slots, self._controls, States(config, initial))
        self._strategy: Strategy = strategy(config, executor, self._slots, self._turns)
        self._delay: Delay | None = delay or Delay.of_environment()
        self._timer: asyncio.TimerHandle | None = None
        self._due = inf
        self._next_id = 1
        self._closed = self._acting = self._again = False

    def submit(self, pending: Pending) -> None:
        """See `Scheduler.submit`. Raises InvalidArgument for a request that does not fit the
        sequences there are."""
        if self._iterative:
            self._begin(pending)
        self._check(pending)
        sequence = pending.request.sequence
        if self._closed and sequence.start:
            raise Unavailable(
                f"{pending.request.tag()}Server is stopping, scheduler for model has stopped "
                "accepting new inference requests"
            )
        if sequence.start and self._slots.line_of(sequence.id) is not None:
            log.warning(
                "sequence starts again before it has ended", model=self._model, sequence=sequence.id
            )
        self._slots.admit(pending, self._loop.time())
        self.wake()

    def _check(self, pending: Pending) -> None:
        request, start = pending.request, f"inference request to model '{self._model}' must specify"
        if pending.size > 1:
            raise InvalidArgument(f"{start} batch-size 1 due to requirements of sequence batcher")
        if not request.sequence.id:
            raise InvalidArgument(f"{start} a non-zero or non-empty correlation ID")
        self._controls.check(request)

    def _begin(self, pending: Pending) -> None:
        """Make a sequence of a request that is one by itself. The model says when it ends, so END
        means nothing."""
        sequence = pending.request.sequence
        if sequence.id:
            made = replace(sequence, end=False)
        else:
            made = SequenceOf(self._own_id(), start=True)
        pending.request = replace(pending.request, sequence=made)

    def _own_id(self) -> int | str:
        """The next number that no client uses at the moment."""
        while True:
            number, self._next_id = self._next_id, self._next_id + 1
            own = str(number) if self._controls.takes_text else number
            if self._slots.line_of(own) is None:
                return own

    def wake(self) -> None:
        """See `Scheduler.wake`."""
        if self._acting:
            self._again = True  # awake while an executor answers a batch at once
            return
        self._acting = True
        try:
            self._act()
        finally:
            self._acting = False
        self._arm()

    def _act(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            if self._delay is not None and self._delays(self._delay):
                self._due = inf
            else:
                self._due = self._strategy.act(self._loop.time())
            self._answer_dropped()

    def _delays(self, delay: Delay) -> bool:
        backlog = self._slots.backlogged
        if self._slots.waiting - backlog < delay.slots or backlog < delay.backlog:
            return True
        self._delay = None
        return False

    def _answer_dropped(self) -> None:
        while self._slots.dropped:
            dropped, self._slots.dropped = self._slots.dropped, []
            for each in dropped:
                self._executor.reject(each.pending, each.error, each.reason)

    def _arm(self) -> None:
        """See that the timer rings when there may be something to do. One that rings too early is
        left alone, for nearly every request moves the time on."""
        over = self._closed and not self.waiting and not self._turns
        due = inf if over else min(self._due, self._slots.due())
        if self._timer is not None:
            if self._timer.when() <= due < inf:
                return
            self._timer.cancel()
            self._timer = None
        if due < inf:
            self._timer = self._loop.call_at(due, self._rung)

    def _rung(self) -> None:
        self._timer = None
        self._slots.expire(self._loop.time())
        self.wake()

    def joined(self, instance: Runner) -> None:
        """See `SequenceKeeper.joined`."""
        self._strategy.joined(self._slots.join(instance, self._loop.time()))
        self._answer_dropped()

    def left(self, instance: Runner) -> None:
        """See `SequenceKeeper.left`."""
        if instance not in self._slots.seats:
            return
        error = Unavailable(
            f"instance '{instance.name}' of model '{self._model}' has ended, and with it the "
            "sequence, which must be started again"
        )
        seat = self._slots.leave(instance, error)
        self._answer_dropped()
        for pending in self._strategy.left(seat):
            self._turns.pop(pending)
            self._executor.reject(pending, error, Failure.OTHER)

    def advanced(self, pending: Pending, outcome: Outcome) -> Outcome:
        """See `SequenceKeeper.advanced`."""
        return self._turns.advanced(pending, outcome)

    def released(self, pending: Pending, *, again: bool) -> None:
        """See `SequenceKeeper.released`."""
        turn = self._turns.pop(pending)
        if turn is None:  # a row that is no request
            return
        self._slots.release(turn.slot)
        self._strategy.released(turn.slot)
        if not self._iterative:
            if again:
                raise InvalidArgument(NOT_ITERATIVE)
        elif again and not turn.gone:
            self._go_on(pending, turn)
        else:
            self._slots.finish(turn.line, self._loop.time())
            if again:
                raise Cancelled("the request was cancelled")

    def _go_on(self, pending: Pending, turn: Turn) -> None:
        """Let a request run again, as one in the middle of its sequence."""
        sequence = turn.request.sequence.id
        if self._slots.line_of(sequence) is not turn.line:
            raise self._slots.unknown(sequence)
        now = self._loop.time()
        pending.request = replace(turn.request, sequence=SequenceOf(sequence))
        pending.key, pending.arrived, pending.again = turn.key, now, True
        self._slots.admit(pending, now)

    def abandon(self, pending: Pending) -> bool:
        """See `Scheduler.abandon`. The rest of its sequence is given up when its turn comes."""
        now = self._loop.time()
        waited = self._slots.abandon(pending, now)
        if not waited and (turn := self._turns.get(pending)) is not None:
            turn.gone = True
            waited = self._strategy.withdraw(turn.slot, pending)
            if waited:
                self._turns.pop(pending)
                self._slots.release(turn.slot)
                self._slots.cancel(turn.line, now)
        self.wake()
        return waited

    def take_all(self) -> Sequence[Pending]:
        """See `Scheduler.take_all`."""
        taken = self._strategy.take_all()
        for pending in taken:
            if (turn := self._turns.pop(pending)) is not None:
                self._slots.release(turn.slot)
        waiting = self._slots.take_all(self._loop.time())
        self._due = inf
        self._arm()
        return [*taken, *waiting]

    def close(self) -> None:
        """See `Scheduler.close`. Sequences that are known may go on."""
        self._closed = True
        self._delay = None
        self.wake()

    @property
    def waiting(self) -> int:
        """See `Scheduler.waiting`."""
        return self._slots.waiting + self._strategy.waiting
