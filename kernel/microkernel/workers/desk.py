"""The worker's end of the metrics that its models declare, in a process and in a thread alike.

What a model waits for is sent at once. Changes are not waited for: they are sent at once while
there are few, and added up and sent now and then while there are many, so that a model that counts
in a tight loop costs the server next to nothing.
"""

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from microkernel.distributions import Histogram
from microkernel.errors import MicrokernelError, Unavailable, Unsupported, error_from

BURST = 0.25
"""Seconds' worth of messages that may be sent without a pause."""
PER_MESSAGE = 0.005
"""Seconds that a message counts for; one in so many seconds may be sent for ever."""
PER_CHANGE = 0.0005
"""Seconds that each change in a message counts for."""

_ENDED = "the worker has ended, and its metrics with it"


@dataclass(slots=True)
class _Change:
    """What became of one series since it was last sent: what it was set to, what was added
    afterwards, and what was observed."""

    to: float | None = None
    by: float | None = None
    seen: Histogram | None = None

    def orders(self, number: int) -> list[dict[str, Any]]:
        """The documents that do it."""
        orders: list[dict[str, Any]] = []
        if self.to is not None:
            orders.append({"do": "set", "series": number, "to": self.to})
        if self.by is not None:
            orders.append({"do": "increment", "series": number, "by": self.by})
        if (seen := self.seen) is not None:
            merged = {"counts": seen.counts, "total": seen.total}
            orders.append({"do": "merge", "series": number, **merged})
        return orders


class MetricDesk:
    """A `MetricRoute` over whatever carries documents to the server and answers back."""

    def __init__(self, send: Callable[[Mapping[str, Any]], None]) -> None:
        """`send` carries a document for `CustomMetrics.attend`; it raises Unavailable where the
        server is gone. What comes back for it is to be given to `answer`."""
        self._send = send
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._changes: dict[int, _Change] = {}
        # Appended to by destructors, which may run wherever memory is taken, also under the lock.
        self._dropped: deque[int] = deque()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._tickets = count(1)
        self._spent_until = 0.0
        self._late = False
        self._closed = False
        self._flusher: threading.Thread | None = None

    def ask(self, order: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `MetricRoute.ask`."""
        with self._lock:
            self._check()
            if self._flusher is None:
                self._flusher = threading.Thread(target=self._flush, name="metrics", daemon=True)
                self._flusher.start()
            ticket = next(self._tickets)
            self._send({"posts": self._take(), "ask": order, "ticket": ticket})
            answer = self._answers.get()
            while answer.get("ticket", ticket) != ticket:  # of a call that a signal has broken off
                answer = self._answers.get()
        if "error" in answer:
            raise error_from(*answer["error"])
        return answer

    def answer(self, answer: Mapping[str, Any]) -> None:
        """What the server answered."""
        self._answers.put(answer)

    def close(self) -> None:
        """The worker has ended: whoever waits, or calls from now on, gets Unavailable."""
        self._closed = True
        self._answers.put({"error": [Unavailable.code, _ENDED]})
        self._wake.put(None)

    def increment(self, number: int, by: float) -> None:
        """See `MetricRoute.increment`."""
        with self._lock:
            change = self._change(number)
            change.by = by if change.by is None else change.by + by
            self._settle()

    def set(self, number: int, to: float) -> None:
        """See `MetricRoute.set`."""
        with self._lock:
            change = self._change(number)
            change.to, change.by = to, None
            self._settle()

    def observe(self, number: int, bounds: Sequence[float], value: float) -> None:
        """See `MetricRoute.observe`."""
        with self._lock:
            change = self._change(number)
            if change.seen is None:
                change.seen = Histogram(bounds)
            change.seen.add(value)
            self._settle()

    def drop(self, number: int) -> None:
        """See `MetricRoute.drop`."""
        self._dropped.append(number)
        self._wake.put(None)

    def _check(self) -> None:
        if self._closed:
            raise Unavailable(_ENDED)
        if os.getpid() != self._process:
            raise Unsupported("metrics cannot be used in a process that a worker has forked")

    def _change(self, number: int) -> _Change:
        self._check()
        change = self._changes.get(number)
        if change is None:
            change = self._changes[number] = _Change()
        return change

    def _settle(self) -> None:
        """Send the changes now if there is anything left to spend, else soon."""
        if self._spent_until - BURST <= time.monotonic():
            self._post()
        elif not self._late:
            self._late = True
            self._wake.put(None)

    def _post(self) -> None:
        orders = self._take()
        if not orders:
            return
        cost = PER_MESSAGE + len(orders) * PER_CHANGE
        self._spent_until = max(self._spent_until, time.monotonic()) + cost
        self._send({"posts": orders})

    def _take(self) -> list[dict[str, Any]]:
        """The documents of all that has changed, and then of what was dropped."""
        dropped = [self._dropped.popleft() for _ in range(len(self._dropped))]
        changes, self._changes = self._changes, {}
        orders = [order for number, c in changes.items() for order in c.orders(number)]
        return orders + [{"do": "drop", "number": number} for number in dropped]

    def _flush(self) -> None:
        """Send what is late, on a thread of its own."""
        while True:
            self._wake.get()
            time.sleep(max(0.0, self._spent_until - BURST - time.monotonic()))
            with self._lock:
                if self._closed:
                    return
                self._late = False
                with contextlib.suppress(MicrokernelError):  # the server is gone
                    self._post()
