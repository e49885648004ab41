"""Whatever happens to a queue with levels, timeouts, limits and clients, every request that it let
in leaves it exactly once: it runs in its turn, is refused in time, is abandoned or taken back."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from math import inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from scheduling_machines import SHORT, RunLong

from microkernel import InferRequest, MicrokernelError, Unavailable
from microkernel.scheduling.fairness import Fairness
from microkernel.scheduling.levels import LevelledQueue
from microkernel.scheduling.limits import LevelLimits, Limits
from microkernel.scheduling.pending import Pending, Runner
from microkernel.scheduling.policy import Batching, OneByOne, Policy
from microkernel.scheduling.queue import QueueScheduler
from microkernel.scheduling.waiting import plain_lane
from microkernel.stats import Failure
from microkernel.testing import VirtualTimeLoop

limits = st.builds(
    LevelLimits,
    timeout=st.sampled_from([inf, 1.0, 3.0]),
    overridable=st.booleans(),
    delays=st.booleans(),
    most=st.sampled_from([0, 0, 1, 4]),
)
setups = st.builds(
    Limits,
    levels=st.just(2),
    usual=st.integers(1, 2),
    by_level=st.dictionaries(st.integers(1, 2), limits, max_size=1),
    otherwise=limits,
)


class LevelsMachine(RuleBasedStateMachine):
    """A model of the queue in plain lists: what waits at each level, in order of arrival, and what
    has waited for too long there."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.fresh: dict[int, list[Pending]] = {1: [], 2: []}
        self.late: dict[int, list[Pending]] = {1: [], 2: []}
        self.accepted: list[Pending] = []
        self.left: Counter[Pending] = Counter()
        self.free = 0
        self.running = 0
        self.closed = False

    @initialize(
        setup=setups,
        fair=st.booleans(),
        instances=st.integers(0, 2),
        largest=st.integers(0, 6),
        preferred=st.integers(1, 6),
        delay=st.sampled_from([0.0, 1.0, 7.0]),
    )
    def start(
        self,
        setup: Limits,
        fair: bool,
        instances: int,
        largest: int,
        preferred: int,
        delay: float,
    ) -> None:
        self.limits, self.fair, self.free = setup, fair, instances
        self.policy: Policy = OneByOne()
        if largest:
            self.policy = Batching(largest, frozenset({min(preferred, largest)}), delay)
        self.scheduler: QueueScheduler = self.run(self._make())

    async def _make(self) -> QueueScheduler:
        fairness = Fairness("client", lambda request: request.parameters["client"])
        queue = LevelledQueue(self.limits, fairness.lanes() if self.fair else plain_lane)
        return QueueScheduler(self.policy, self, queue)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def call(self, function: Callable[[], Any]) -> Any:
        async def called() -> Any:
            return function()

        return self.run(called())

    def place(self, pending: Pending) -> list[Pending]:
        """The list in which a request waits."""
        lists = [*self.fresh.values(), *self.late.values()]
        found = [waiting for waiting in lists if pending in waiting]
        assert len(found) == 1, "a request that does not wait, or twice"
        return found[0]

    def idle(self, on: Runner | None = None) -> bool:
        return self.free > 0

    def execute(self, batch: Sequence[Pending], on: Runner | None = None) -> None:
        assert self.free > 0, "a batch while no instance is free"
        self.free -= 1
        self.running += 1
        assert batch, "an empty batch"
        for pending in batch:
            self._catch_up()
            self._check_turn(pending)
            self.place(pending).remove(pending)
            self.left[pending] += 1
        assert len({pending.key for pending in batch}) == 1, "a mixed batch"
        if isinstance(self.policy, Batching) and len(batch) > 1:
            assert sum(pending.size for pending in batch) <= self.policy.largest

    def _catch_up(self) -> None:
        """Whoever's time has come is late from now on, where it is not refused."""
        now = self.loop.time()
        for level, waiting in self.fresh.items():
            limits = self.limits.at(level)
            late = [p for p in waiting if self._deadline(p, level) <= now and limits.delays]
            for pending in late:
                waiting.remove(pending)
                self.late[level].append(pending)

    def _deadline(self, pending: Pending, level: int) -> float:
        return self.limits.at(level).deadline(pending.arrived, pending.request.timeout_us)

    def _check_turn(self, pending: Pending) -> None:
        level = self.limits.level(pending.request)
        more_urgent = [p for k in range(1, level) for p in (*self.fresh[k], *self.late[k])]
        assert not more_urgent, "not the most urgent"
        assert self.limits.at(level).delays or self._deadline(pending, level) > self.loop.time()
        if pending in self.late[level]:
            assert not self.fresh[level], "a late one before its level"
            return
        before = self.fresh[level][: self.fresh[level].index(pending)]
        if self.fair:
            before = [p for p in before if p.request.parameters == pending.request.parameters]
        assert not before, "out of order"

    def reject(self, pending: Pending, error: MicrokernelError, reason: Failure) -> None:
        level = self.limits.level(pending.request)
        assert (str(error), reason) == ("Request timeout expired", Failure.REJECTED)
        assert self._deadline(pending, level) == self.loop.time(), "refused too late, or too early"
        assert not self.limits.at(level).delays
        self.fresh[level].remove(pending)
        self.left[pending] += 1

    @rule(
        size=st.integers(1, 7),
        key=st.sampled_from("aab"),
        priority=st.integers(0, 3),
        timeout=st.sampled_from([0, 1, 3]),
        client=st.sampled_from("xxxy"),
        count=st.integers(1, 3),
    )
    def submit_some(self, count: int, **one: Any) -> None:
        for _ in range(count):
            self.submit(**one)

    def submit(self, size: int, key: str, priority: int, timeout: int, client: str) -> None:
        request = InferRequest(
            "m",
            (),
            priority=priority,
            timeout_us=timeout * 1_000_000,
            parameters={"client": client},
        )
        pending = Pending(request, size, key, self.loop.create_future(), self.loop.time(), 0)
        level = self.limits.level(request)
        most = self.limits.at(level).most
        self._catch_up()
        full = 0 < most <= len(self.fresh[level]) + len(self.late[level])
        if self.closed or full:
            with pytest.raises(Unavailable, match=r"Exceeds|has stopped"):
                self.call(lambda: self.scheduler.submit(pending))
            return
        self.fresh[level].append(pending)
        self.accepted.append(pending)
        self.call(lambda: self.scheduler.submit(pending))

    @rule(priority=st.integers(1, 2), client=st.sampled_from("xy"))
    def submit_an_old_one_and_a_young_one(self, priority: int, client: str) -> None:
        self.submit(1, "a", priority, 0, client)
        self.run(asyncio.sleep(3))
        self.submit(1, "a", priority, 0, client)

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        pending = data.draw(st.sampled_from(self.accepted))
        waits = not self.left[pending]
        assert self.scheduler.abandon(pending) is waits
        if waits:
            self.place(pending).remove(pending)
            self.left[pending] += 1

    @precondition(lambda self: self.running)
    @rule()
    def finish_a_batch(self) -> None:
        self.running -= 1
        self.free += 1
        self.call(self.scheduler.wake)

    @precondition(lambda self: self.free + self.running)
    @rule()
    def lose_an_instance(self) -> None:
        if self.running:
            self.running -= 1
        else:
            self.free -= 1

    @precondition(lambda self: self.free + self.running < 3)
    @rule()
    def bring_an_instance(self) -> None:
        self.free += 1
        self.call(self.scheduler.wake)

    @rule(seconds=st.sampled_from([0.5, 1.0, 1.0, 2.0, 10.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @precondition(lambda self: len(self.accepted) > 8)
    @rule()
    def take_all(self) -> None:
        self._catch_up()
        taken = self.call(self.scheduler.take_all)
        waiting = [*self.fresh.values(), *self.late.values()]
        assert set(taken) == {pending for part in waiting for pending in part}
        levels = [self.limits.level(pending.request) for pending in taken]
        assert levels == sorted(levels)
        self.left.update(taken)
        for part in waiting:
            part.clear()

    @precondition(lambda self: len(self.accepted) > 8)
    @rule()
    def close(self) -> None:
        self.closed = True
        self.call(self.scheduler.close)

    @invariant()
    def every_accepted_request_is_somewhere_once(self) -> None:
        waiting = [p for part in (self.fresh, self.late) for lane in part.values() for p in lane]
        assert self.scheduler.waiting == len(waiting)
        assert set(self.left.values()) <= {1, 0}
        assert sum(self.left.values()) + len(waiting) == len(self.accepted)

    @invariant()
    def nobody_waits_beyond_the_deadline_or_without_a_reason(self) -> None:
        now = self.loop.time()
        for level, waiting in self.fresh.items():
            if not self.limits.at(level).delays:
                assert all(self._deadline(pending, level) > now for pending in waiting)
        if self.free and self.scheduler.waiting:
            assert isinstance(self.policy, Batching)
            oldest = min(pending.arrived for pending in self.accepted if not self.left[pending])
            assert now < oldest + self.policy.delay

    def teardown(self) -> None:
        """In the end everything that was accepted has run or was refused, closed or not."""
        try:
            if self.accepted:
                self.free += len(self.accepted)
                self.call(self.scheduler.wake)
                self.run(asyncio.sleep(100))
                assert self.scheduler.waiting == 0
                assert set(self.left.values()) == {1}
                assert len(self.left) == len(self.accepted)
        finally:
            self.loop.close()


LevelsMachine.TestCase.settings = settings(SHORT, max_examples=100)
TestLevels = LevelsMachine.TestCase


@pytest.mark.slow
def test_levels_for_long(run_long: RunLong) -> None:
    """As many examples as fit into the time."""
    run_long(LevelsMachine)
