"""Whatever happens to sequences, every accepted request is answered once, those of a sequence run
in order and one at a time in one place, and no slot is lost."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduling_machines import SHORT, RunLong
from sequence_harness import sequence_config

from microkernel import InferRequest, InvalidArgument, MicrokernelError, Unavailable
from microkernel.config.model import ModelConfig, SequenceBatching, StrategyDirect, StrategyOldest
from microkernel.request import Answer
from microkernel.request import Sequence as SequenceOf
from microkernel.scheduling.pending import Pending, Runner
from microkernel.scheduling.sequences import SequenceBatcher
from microkernel.stats import Failure
from microkernel.testing import VirtualTimeLoop

IDLE = 50.0


@dataclass(eq=False)
class Instance:
    """An instance whose batches the machine ends: `free` for the next one, which may be before the
    requests of the last one, `open`, are released."""

    name: str
    free: bool = True
    open: list[Pending] = field(default_factory=list)

    def cancel(self, number: int) -> None: ...
    def pause(self, number: int) -> None: ...
    def resume(self, number: int) -> None: ...


@dataclass(eq=False)
class Line:
    """What the machine knows of a sequence: its requests that have not run, where it runs, in which
    row, and which of its requests does."""

    waiting: list[Pending] = field(default_factory=list)
    place: Runner | None = None
    row: int = -1
    running: Pending | None = None


class SequenceMachine(RuleBasedStateMachine):
    """Submits, releases, abandons, kills and lets time pass in any order."""

    oldest = False
    iterative = False

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.instances: list[Instance] = []
        self.accepted: list[Pending] = []
        self.answered: dict[Pending, MicrokernelError | None] = {}
        self.lines: dict[Pending, Line] = {}
        self.current: dict[int | str, Line] = {}
        self.closed = False
        self.made = 0

    @initialize(
        instances=st.integers(1, 2),
        largest=st.integers(1, 3),
        candidates=st.integers(0, 4),
        delay=st.sampled_from([0.0, 3.0]),
        utilization=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def start(
        self, instances: int, largest: int, candidates: int, delay: float, utilization: float
    ) -> None:
        waits = round(delay * 1e6)
        self.largest = largest
        self.delay = delay if self.oldest or utilization else 0.0
        direct = None if self.oldest else StrategyDirect(waits, utilization)
        oldest = StrategyOldest(candidates, (), waits) if self.oldest else None
        batching = SequenceBatching(direct, oldest, iterative_sequence=self.iterative)
        self.config: ModelConfig = sequence_config(batching, largest=largest, idle=IDLE)
        self.scheduler: SequenceBatcher = self.run(self._make())
        for _ in range(instances):
            self.join()

    async def _make(self) -> SequenceBatcher:
        return SequenceBatcher(self.config, self, {})

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def on_loop(self, call: Any, *arguments: Any, **options: Any) -> Any:
        async def calling() -> Any:
            return call(*arguments, **options)

        return self.run(calling())

    def idle(self, on: Runner | None = None) -> bool:
        assert isinstance(on, Instance)
        return on in self.instances and on.free

    def execute(self, batch: Sequence[Pending], on: Runner | None = None) -> None:
        assert isinstance(on, Instance)
        assert self.idle(on), "a batch for an instance that is busy or gone"
        real = [pending for pending in batch if not pending.null]
        assert real, "a batch of nobody's requests"
        assert len(batch) <= self.largest, "a batch that is too large"
        assert len({pending.key for pending in real}) == 1, "a mixed batch"
        if self.oldest:
            assert real == list(batch), "a null request where rows mean nothing"
        else:
            assert not on.open, "a batch before the last one was over"
        for row, pending in enumerate(batch):
            if not pending.null:
                self._runs(pending, on, row)
        on.free = False
        on.open += real

    def _runs(self, pending: Pending, on: Instance, row: int) -> None:
        line = self.lines[pending]
        assert pending not in self.answered, "it was answered already"
        assert line.running is None, "two of a sequence at once"
        assert line.waiting.pop(0) is pending, "out of order"
        assert line.place in (None, on), "a sequence that moved to another instance"
        assert self.oldest or line.row in (-1, row), "a sequence that moved to another row"
        line.place, line.row, line.running = on, row, pending

    def reject(self, pending: Pending, error: MicrokernelError, reason: Failure) -> None:
        self._answer(pending, error)

    def _answer(self, pending: Pending, error: MicrokernelError | None) -> None:
        assert pending not in self.answered, "answered twice"
        self.answered[pending] = error
        line = self.lines[pending]
        if pending in line.waiting:
            line.waiting.remove(pending)

    @rule(
        sequence=st.integers(0, 6),
        start=st.booleans(),
        end=st.sampled_from([False, False, True]),
        key=st.sampled_from("aaab"),
        timeout=st.sampled_from([0, 0, 2, 20]),
    )
    def submit(self, sequence: int, start: bool, end: bool, key: str, timeout: int) -> None:
        request = InferRequest("m", (), timeout_us=timeout * 10**6)
        request.sequence = SequenceOf(sequence, start, end)
        pending = Pending(request, 1, key, self.loop.create_future(), self.loop.time(), 0)
        known = self.scheduler._slots.line_of(sequence) is not None
        # Whether a sequence still goes on is for the tables of rules to say; here it is asked.
        line = self.current[sequence] if known else Line()
        self.lines[pending] = line
        line.waiting.append(pending)
        try:
            self.on_loop(self.scheduler.submit, pending)
        except (InvalidArgument, Unavailable) as error:
            line.waiting.remove(pending)
            self._refused(error, sequence, start=start, known=known)
            return
        self.accepted.append(pending)
        self.current[pending.request.sequence.id] = line

    def _refused(self, error: MicrokernelError, sequence: int, *, start: bool, known: bool) -> None:
        if isinstance(error, Unavailable):
            assert self.closed
            assert start or not sequence
        elif sequence:
            assert not known
            assert not start
        else:
            assert not self.iterative

    @precondition(lambda self: any(not instance.free for instance in self.instances))
    @rule(data=st.data(), again=st.booleans(), wholly=st.booleans())
    def end_a_batch(self, data: st.DataObject, again: bool, wholly: bool) -> None:
        busy = [instance for instance in self.instances if not instance.free]
        instance = data.draw(st.sampled_from(busy))
        instance.free = True
        if wholly:
            for pending in list(instance.open):
                self._release(instance, pending, again=again)
        self.on_loop(self.scheduler.wake)

    @precondition(lambda self: any(instance.open for instance in self.instances))
    @rule(data=st.data(), again=st.booleans())
    def release_one(self, data: st.DataObject, again: bool) -> None:
        instance = data.draw(st.sampled_from([i for i in self.instances if i.open]))
        self._release(instance, data.draw(st.sampled_from(instance.open)), again=again)
        self.on_loop(self.scheduler.wake)

    def _release(self, instance: Instance, pending: Pending, *, again: bool) -> None:
        instance.open.remove(pending)
        line = self.lines[pending]
        line.running = None
        self.scheduler.advanced(pending, Answer(()))
        line.waiting.append(pending)  # if it may run again, then behind the others
        error: MicrokernelError | None = None
        try:
            self.on_loop(self.scheduler.released, pending, again=again)
        except MicrokernelError as raised:
            error = raised
            assert again
        if not again or error is not None:
            self._answer(pending, error)

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        open_ = [pending for pending in self.accepted if pending not in self.answered]
        if not open_:
            return
        pending = data.draw(st.sampled_from(open_))
        running = self.lines[pending].running is pending
        waited = self.on_loop(self.scheduler.abandon, pending)
        assert waited is not running
        if waited:
            self._answer(pending, None)

    @rule(seconds=st.sampled_from([0.5, 3.0, IDLE / 2, IDLE]))
    def let_time_pass(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @precondition(lambda self: self.instances)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from(self.instances))
        self.instances.remove(instance)
        self.on_loop(self.scheduler.left, instance)
        for pending in list(instance.open):
            self._release(instance, pending, again=False)
        self.on_loop(self.scheduler.wake)

    @precondition(lambda self: len(self.instances) < 3)
    @rule()
    def join(self) -> None:
        self.made += 1
        instance = Instance(f"m_{self.made}")
        self.instances.append(instance)
        self.on_loop(self.scheduler.joined, instance)
        self.on_loop(self.scheduler.wake)

    @rule()
    def take_all(self) -> None:
        for pending in self.on_loop(self.scheduler.take_all):
            self._answer(pending, None)
        waiting = [p for p in self.accepted if p not in self.answered]
        assert all(self.lines[p].running is p for p in waiting)

    @rule()
    def close(self) -> None:
        self.closed = True
        self.on_loop(self.scheduler.close)

    @invariant()
    def every_accepted_request_is_somewhere_once(self) -> None:
        if not self.made:
            return
        running = sum(len(instance.open) for instance in self.instances)
        assert len(self.accepted) == len(self.answered) + running + self.scheduler.waiting

    @invariant()
    def no_slot_is_lost(self) -> None:
        if not self.made:
            return
        slots = self.scheduler._slots
        free = [entry[-1] for entry in slots._free]
        free = [slot for slot in free if slot.seat.instance in slots.seats]
        assert set(slots.seats) == set(self.instances)
        every = [slot for seat in slots.seats.values() for slot in seat.slots]
        assert sorted(map(id, free)) == sorted(id(slot) for slot in every if slot.line is None)
        assert not (free and slots._backlog), "a free slot and a backlog"
        assert len(slots._idle) <= len(every)

    @invariant()
    def nothing_waits_without_a_reason(self) -> None:
        if not self.made or self.delay:
            return
        slots = self.scheduler._slots
        for seat in slots.seats.values():
            assert isinstance(seat.instance, Instance)
            ready = any(slot.line and slot.line.queue and not slot.busy for slot in seat.slots)
            if seat.instance.free and not seat.instance.open:
                assert not ready, "an idle instance and a request in its slots"

    def teardown(self) -> None:
        """In the end everything that was accepted is answered, closed or not, and what is left of
        the sequences is over in time."""
        try:
            if self.made:
                self._finish()
        finally:
            self.loop.close()

    def _finish(self) -> None:
        if not self.instances:
            self.join()
        for _ in range(len(self.accepted) + 1):
            for instance in self.instances:
                instance.free = True
                for pending in list(instance.open):
                    self._release(instance, pending, again=False)
            self.on_loop(self.scheduler.wake)
            self.run(asyncio.sleep(IDLE))
        assert len(self.answered) == len(self.accepted)
        slots = self.scheduler._slots
        # One that is closed waits for nothing, so it rings no more for sequences that are idle.
        assert self.closed or not slots._bound
        assert not any(line.queue for line in slots._bound.values())
        assert not slots._gone and not slots._waiting  # noqa: PT018
        assert not self.scheduler._turns
        assert slots.backlogged == self.scheduler.waiting == 0


class OldestMachine(SequenceMachine):
    oldest = True


class IterativeMachine(SequenceMachine):
    iterative = True


class IterativeOldestMachine(SequenceMachine):
    oldest = iterative = True


MACHINES = (SequenceMachine, OldestMachine, IterativeMachine, IterativeOldestMachine)
TestDirect, TestOldest, TestIterative, TestIterativeOldest = (m.TestCase for m in MACHINES)
for machine in MACHINES:
    machine.TestCase.settings = SHORT


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_for_minutes(machine: type[SequenceMachine], run_long: RunLong) -> None:
    run_long(machine)
