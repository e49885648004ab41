"""What the server says of requests that a worker has in hand: nobody waits for this one any more,
that one's client reads too slowly."""

import threading
from collections.abc import Callable
from dataclasses import dataclass


class Flags:
    """The flags of one instance's requests, by their numbers, which only grow.

    Set by the thread that hears the server, read by those that run the model. `gone` holds the
    numbers of requests that nobody waits for. What is said of a request that is over is forgotten,
    and what is said of one that is still on its way is kept.
    """

    def __init__(self) -> None:
        self.gone: set[int] = set()
        self._paused: set[int] = set()
        self._open: set[int] = set()
        self._first = 0
        self._released = False
        self._changed = threading.Condition()

    def begin(self, first: int, count: int = 0) -> None:
        """A batch begins whose requests have the numbers from `first` on. Those before it are over
        but for the ones that were opened, as the `count` first of this batch are now, and not
        closed."""
        self._first = first
        if not (count or self.gone or self._paused):
            return
        with self._changed:
            self._open.update(range(first, first + count))
            for numbers in (self.gone, self._paused):
                numbers.difference_update([n for n in numbers if not self._known(n)])

    def _known(self, number: int) -> bool:
        return number >= self._first or number in self._open

    def close(self, number: int) -> None:
        """A request that was opened is over."""
        with self._changed:
            for numbers in (self._open, self.gone, self._paused):
                numbers.discard(number)

    def cancel(self, number: int) -> None:
        """Nobody waits for the request any more; a thread that waits for its client goes on."""
        with self._changed:
            if self._known(number):
                self.gone.add(number)
                self._changed.notify_all()

    def pause(self, number: int) -> None:
        """The client of the request reads too slowly."""
        with self._changed:
            if self._known(number):
                self._paused.add(number)

    def resume(self, number: int) -> None:
        """The client of the request has caught up."""
        with self._changed:
            self._paused.discard(number)
            self._changed.notify_all()

    def release(self) -> None:
        """The server wants nothing more of the instance: no thread waits from now on."""
        with self._changed:
            self._released = True
            self._changed.notify_all()

    @property
    def released(self) -> bool:
        """Whether `release` was called."""
        return self._released

    def wait_for(self, number: int, condition: Callable[[], bool]) -> None:
        """Return when the condition holds, which is looked at when the flags change and when
        `notify` is called, or when nobody waits for the request any more."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or number in self.gone or self._released)

    def wait_for_client(self, number: int) -> None:
        """Return when the request's client keeps up, or nobody waits for the request any more."""
        if number in self._paused:
            self.wait_for(number, lambda: number not in self._paused)

    def notify(self) -> None:
        """A condition that a thread waits for may hold now."""
        with self._changed:
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Slot:
    """One request's place among the flags of its instance."""

    flags: Flags
    number: int
