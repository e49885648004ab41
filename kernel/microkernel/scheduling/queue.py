"""The scheduler of requests that do not depend on each other: one queue, one policy.

It acts on what its policy decides and decides nothing itself. It has no task: it moves when a
request arrives, when the executor wakes it, and when a wait is over.
"""

import asyncio
from collections.abc import Callable, Sequence
from math import inf

from microkernel.errors import Unavailable
from microkernel.scheduling.pending import Executor, Pending
from microkernel.scheduling.policy import Dispatch, Policy, never_waits
from microkernel.scheduling.waiting import PlainQueue, Queue
from microkernel.stats import Failure


class QueueScheduler:
    """Requests in the order of their queue, in batches of the policy's choosing; promises what
    `Scheduler` does."""

    def __init__(
        self,
        policy: Policy,
        executor: Executor,
        queue: Queue | None = None,
        *,
        first: int = 0,
        executed: Callable[[int, float], None] | None = None,
        arrived: Callable[[float], None] | None = None,
    ) -> None:
        """Without a queue there are no limits. Nothing runs before `first` requests have waited at
        the same time, once. `executed` is for whoever runs the batches to tell the size of each
        and the seconds that it took, `arrived` is told of every request's arrival; None where
        nobody wants to know."""
        self.executed = executed
        self._arrived = arrived
        self._policy = policy
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._queue: Queue = PlainQueue() if queue is None else queue
        self._timed = self._queue.timed
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._waking = False
        self._first = first
        self._prompt = never_waits(policy)

    def submit(self, pending: Pending) -> None:
        """See `Scheduler.submit`."""
        if self._closed:
            raise Unavailable(
                f"{pending.request.tag()}Server is stopping, scheduler for model has stopped "
                "accepting new inference requests"
            )
        if self._arrived is not None:
            self._arrived(pending.arrived)
        if self._prompt and not self._first and not self._queue and self._executor.idle():
            self._executor.execute((pending,))  # no wait, so no queue
            return
        self._queue.append(pending)
        self.wake(freed=False)

    def wake(self, *, freed: bool = True) -> None:
        """Dispatch as long as the executor is idle and the policy says so. The executor calls it
        when it was not idle before, which nobody else can say."""
        if self._waking or not self._queue:
            return  # awake while an executor answers a batch at once; the loop below goes on
        self._waking = True
        try:
            if self._timed or self._first:
                self._look(freed)
            elif self._executor.idle():
                self._dispatch(freed)
        finally:
            self._waking = False

    def _look(self, freed: bool) -> None:
        """Refuse what is too late, then dispatch unless the first requests are still to come."""
        for pending in self._queue.expire(self._loop.time()):
            self._executor.reject(pending, Unavailable("Request timeout expired"), Failure.REJECTED)
        if len(self._queue) >= self._first:
            self._first = 0
            if self._queue and self._executor.idle():
                self._dispatch(freed)
                return
        self._ring_at(self._queue.next_deadline())

    def _dispatch(self, freed: bool) -> None:
        """Dispatch while there are a request and an idle executor, as there are now."""
        queue, until = self._queue, inf
        while True:
            decision = self._policy.decide(queue, self._loop.time(), freed=freed)
            if not isinstance(decision, Dispatch):
                until = decision.until
                break
            self._executor.execute(queue.take(decision.count))
            if not queue or not self._executor.idle():
                break
        if self._timed:
            until = min(until, queue.next_deadline())
        if until < inf or self._timer is not None:
            self._ring_at(until)

    def _ring_at(self, when: float) -> None:
        """Wake then, if nothing else does before. A timer that rings too early is left alone: that
        costs one wake, and a new timer at every arrival costs more."""
        if self._timer is not None:
            if self._timer.when() <= when < inf:
                return
            self._cancel_timer()
        if when < inf:
            self._timer = self._loop.call_at(when, self._rung)

    def _rung(self) -> None:
        self._timer = None
        self.wake(freed=False)

    def abandon(self, pending: Pending) -> bool:
        """See `Scheduler.abandon`."""
        return self._queue.remove(pending)

    def take_all(self) -> Sequence[Pending]:
        """See `Scheduler.take_all`."""
        self._cancel_timer()
        return self._queue.take(len(self._queue))

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """See `Scheduler.close`."""
        self._closed = True
        self._first = 0
        self.wake(freed=False)

    @property
    def waiting(self) -> int:
        """See `Scheduler.waiting`."""
        return len(self._queue)
