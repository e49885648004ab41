"""Holds the requests of an ensemble's step back while too many of them are under way."""

import asyncio
from collections import deque
from typing import TypeAlias

LONGEST_WAIT = 300.0
"""Seconds after which one that waits goes on in any case, as in Triton."""

_Waiter: TypeAlias = "asyncio.Future[None]"


class Gate:
    """Lets `limit` in at a time, in the order in which they came."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._waiting: deque[_Waiter] = deque()

    @property
    def open(self) -> bool:
        """Whether one who enters need not wait."""
        return self._inside < self._limit and not self._waiting

    async def enter(self) -> None:
        """Wait for a place, LONGEST_WAIT at most. One who is cancelled while waiting is not
        inside."""
        if self.open:
            self._inside += 1
            return
        loop = asyncio.get_running_loop()
        waiter: _Waiter = loop.create_future()
        self._waiting.append(waiter)
        timer = loop.call_later(LONGEST_WAIT, self._admit, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._forget(waiter)
            else:
                self.leave()  # for one who was let in at the same moment
            raise
        finally:
            timer.cancel()

    def _admit(self, waiter: _Waiter) -> None:
        if not waiter.done():
            self._inside += 1
            self._forget(waiter)
            waiter.set_result(None)

    def _forget(self, waiter: _Waiter) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    def leave(self) -> None:
        """Make room for the next one."""
        self._inside -= 1
        while self._waiting and self._inside < self._limit:
            self._admit(self._waiting.popleft())  # which may have been cancelled a moment ago
