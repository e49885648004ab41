"""The server's side of decoupled batches: which requests of an instance are not finished.

Used on the event loop only. What comes from a worker and cannot be right is a ValueError.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from microkernel.errors import MicrokernelError
from microkernel.stats import Execution
from microkernel.workers.parts import Part


class Receiver(Protocol):
    """Who takes what comes of a decoupled batch. Called on the loop."""

    def part(self, index: int, part: Part) -> None:
        """Something has come for the request at that place of the batch; nothing comes for it after
        the final part."""
        ...

    def returned(self, times: Execution) -> None:
        """The instance is free; called once, before or after the final parts."""
        ...

    def over(self) -> None:
        """The instance is free and every request has had its final part; called once, at last."""
        ...


@dataclass(slots=True, eq=False)
class _Flight:
    """A batch: its first number, who takes what comes, and how many requests are not finished."""

    first: int
    receiver: Receiver
    left: int


class Flights:
    """The decoupled batches of one instance, from dispatch to the final part of each request."""

    def __init__(self) -> None:
        self._open: dict[int, _Flight] = {}
        self._running: _Flight | None = None
        self._start = 0

    def begin(self, first: int, count: int, receiver: Receiver) -> None:
        """A batch is dispatched, whose requests have `count` numbers from `first` on."""
        self._running = flight = _Flight(first, receiver, count)
        self._start = time.monotonic_ns()
        self._open.update(dict.fromkeys(range(first, first + count), flight))

    def __contains__(self, number: object) -> bool:
        """Whether the request of that number is not finished."""
        return number in self._open

    @property
    def running(self) -> bool:
        """Whether a batch has been dispatched and has not returned."""
        return self._running is not None

    def part(self, number: int, part: Part) -> None:
        """Hand a part on. Raises ValueError where there is no such request."""
        flight = self._open.get(number)
        if flight is None:
            raise ValueError(f"a response for request {number}, which is not open")
        if part.final:
            del self._open[number]
            flight.left -= 1
        flight.receiver.part(number - flight.first, part)
        if part.final:
            self._check_over(flight)

    def returned(self, times: Execution) -> None:
        """The running batch has returned. Raises ValueError where there is none."""
        flight, self._running = self._running, None
        if flight is None:
            raise ValueError("a batch returned, and none was running")
        flight.receiver.returned(times)
        self._check_over(flight)

    def _check_over(self, flight: _Flight) -> None:
        if flight.left == 0 and flight is not self._running:
            flight.receiver.over()

    def fail_running(self, error: MicrokernelError) -> None:
        """End the running batch, if there is one, with an error."""
        if self._running is not None:
            flight = self._running
            self._fail([n for n, other in self._open.items() if other is flight], error)
            now = time.monotonic_ns()
            self.returned(Execution(self._start, now, now, now))

    def fail(self, error: MicrokernelError) -> None:
        """End everything that is not finished with an error."""
        self.fail_running(error)
        self._fail(list(self._open), error)

    def _fail(self, numbers: Iterable[int], error: MicrokernelError) -> None:
        for number in numbers:
            self.part(number, Part(error, final=True))
