"""Whatever happens to a queue, every accepted request leaves it exactly once, in order."""

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduling_machines import RunLong

from microkernel import InferRequest, MicrokernelError, Unavailable
from microkernel.scheduling.adaptive import Adaptive
from microkernel.scheduling.pending import Pending, Runner
from microkernel.scheduling.policy import Batching, OneByOne, Policy
from microkernel.scheduling.queue import QueueScheduler
from microkernel.stats import Failure
from microkernel.testing import VirtualTimeLoop


class QueueMachine(RuleBasedStateMachine):
    """Submits, abandons, frees instances and lets time pass in any order. `expected` is what must
    wait, in order; a batch must be the front of it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.expected: deque[Pending] = deque()
        self.left: list[Pending] = []
        self.accepted: list[Pending] = []
        self.free = 0
        self.closed = False
        self.policy: Policy = OneByOne()
        self.adaptive: Adaptive | None = None
        self.delay = 0.0
        self.largest = 1

    @initialize(
        instances=st.integers(1, 3),
        largest=st.integers(0, 8),
        preferred=st.integers(1, 8),
        delay=st.sampled_from([0.0, 1.0, 7.0]),
        adaptive=st.booleans(),
    )
    def start(
        self, instances: int, largest: int, preferred: int, delay: float, adaptive: bool
    ) -> None:
        self.free = instances
        if largest:
            self.delay, self.largest = delay, largest
            self.policy = batching = Batching(largest, frozenset({min(preferred, largest)}), delay)
            if adaptive:
                self.policy = self.adaptive = Adaptive(batching)
        self.scheduler = self.run(self._make())

    async def _make(self) -> QueueScheduler:
        arrived = None if self.adaptive is None else self.adaptive.arrived
        return QueueScheduler(self.policy, self, arrived=arrived)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def idle(self, on: Runner | None = None) -> bool:
        return self.free > 0

    def execute(self, batch: Sequence[Pending], on: Runner | None = None) -> None:
        assert self.free > 0, "a batch while no instance is free"
        self.free -= 1
        assert batch, "an empty batch"
        assert [self.expected.popleft() for _ in batch] == list(batch), "out of order"
        assert len({request.key for request in batch}) == 1, "a mixed batch"
        assert len(batch) == 1 or sum(request.size for request in batch) <= self.largest
        self.left += batch

    def reject(self, pending: Pending, error: MicrokernelError, reason: Failure) -> None:
        raise AssertionError("a request that nobody gave up was rejected")

    @rule(size=st.integers(1, 9), key=st.sampled_from("aab"))
    def submit(self, size: int, key: str) -> None:
        request = InferRequest("m", ())
        pending = Pending(request, size, key, self.loop.create_future(), self.loop.time(), 0)
        if self.closed:
            with pytest.raises(Unavailable):
                self.run(self._submit(pending))
            return
        self.expected.append(pending)
        self.accepted.append(pending)
        self.run(self._submit(pending))

    async def _submit(self, pending: Pending) -> None:
        self.scheduler.submit(pending)

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        pending = data.draw(st.sampled_from(self.accepted))
        waits = pending in self.expected
        assert self.scheduler.abandon(pending) is waits
        if waits:
            self.expected.remove(pending)
            self.left.append(pending)

    @rule(size=st.integers(1, 8), seconds=st.sampled_from([0.1, 1.0, 5.0]))
    def free_an_instance(self, size: int, seconds: float) -> None:
        """As if a batch of that size had taken so long."""
        self.free += 1
        if self.adaptive is not None:
            self.adaptive.executed(size, seconds, self.loop.time())
        self.run(self._wake())

    async def _wake(self) -> None:
        self.scheduler.wake()

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule()
    def take_all(self) -> None:
        taken = list(self.scheduler.take_all())
        assert taken == list(self.expected)
        self.left += taken
        self.expected.clear()

    @rule()
    def close(self) -> None:
        self.closed = True
        self.scheduler.close()

    @invariant()
    def every_accepted_request_is_somewhere_once(self) -> None:
        everywhere = [*self.left, *self.expected]
        assert len(everywhere) == len(set(map(id, everywhere))) == len(self.accepted)

    @invariant()
    def nothing_waits_without_a_reason(self) -> None:
        assert self.scheduler.waiting == len(self.expected)
        if not (self.expected and self.free):
            return
        if self.adaptive is not None:
            assert self.scheduler._timer is not None
        if self.delay or self.adaptive is None:
            assert self.loop.time() < self.expected[0].arrived + self.delay

    def teardown(self) -> None:
        """In the end everything that was accepted runs, closed or not."""
        try:
            if self.accepted:
                self.free += len(self.accepted)
                self.run(self._wake())
                self.run(asyncio.sleep(100))
                assert not self.expected
        finally:
            self.loop.close()


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestQueue = QueueMachine.TestCase


@pytest.mark.slow
def test_the_queue_for_minutes(run_long: RunLong) -> None:
    run_long(QueueMachine)
