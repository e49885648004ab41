"""The scheduler of requests that do not depend on each other: one queue, one policy.

It acts on what its policy decides and decides nothing itself. It has no task: it moves when a
request arrives, when the executor wakes it, and when a wait is over.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from microkernel.config.model import ModelConfig
from microkernel.errors import Unavailable
from microkernel.scheduling.pending import Executor, Pending
from microkernel.scheduling.policy import Batching, OneByOne, Policy, Wait


class QueueScheduler:
    """First in, first out, in batches of the policy's choosing; promises what `Scheduler` does."""

    def __init__(self, policy: Policy, executor: Executor) -> None:
        self._policy = policy
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Pending] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._waking = False

    @classmethod
    def of(cls, config: ModelConfig, executor: Executor) -> "QueueScheduler":
        """The default scheduler, or the dynamic batcher where the configuration asks for one."""
        policy = Batching.of(config) if config.dynamic_batching is not None else OneByOne()
        return cls(policy, executor)

    def submit(self, pending: Pending) -> None:
        """See `Scheduler.submit`."""
        if self._closed:
            raise Unavailable(
                f"{pending.request.tag()}Server is stopping, scheduler for model has stopped "
                "accepting new inference requests"
            )
        self._queue.append(pending)
        self.wake()

    def wake(self) -> None:
        """Dispatch as long as the executor is idle and the policy says so."""
        if self._waking or not self._queue:
            return  # awake while an executor answers a batch at once; the loop below goes on
        self._waking = True
        try:
            self._dispatch()
        finally:
            self._waking = False

    def _dispatch(self) -> None:
        if self._timer is not None:
            self._cancel_timer()
        queue = self._queue
        while queue and self._executor.idle():
            decision = self._policy.decide(queue, self._loop.time())
            if isinstance(decision, Wait):
                self._timer = self._loop.call_at(decision.until, self.wake)
                return
            self._executor.execute([queue.popleft() for _ in range(decision.count)])

    def abandon(self, pending: Pending) -> bool:
        """See `Scheduler.abandon`."""
        try:
            self._queue.remove(pending)
        except ValueError:
            return False
        return True

    def take_all(self) -> Sequence[Pending]:
        """See `Scheduler.take_all`."""
        self._cancel_timer()
        waiting = list(self._queue)
        self._queue.clear()
        return waiting

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """See `Scheduler.close`."""
        self._closed = True

    @property
    def waiting(self) -> int:
        """See `Scheduler.waiting`."""
        return len(self._queue)
