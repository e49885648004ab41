"""Whose turn it is where instances of all models share resources, by Triton's `execution_count`.

Pure: it knows neither time nor tasks. The instances of a model are asked for together, by whoever
has a batch for any of them. Who is turned down stands in line and is woken when it may be its turn.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from microkernel.scheduling.resources import Need, Pools, Sizes


@dataclass(slots=True, eq=False)
class Turn:
    """An instance as the line sees it: what it needs, its priority (a larger number has fewer
    turns), and whom to tell when it may run. `free` while it could run a batch; `ticket` is its
    number in the line, None while nobody wants it to run."""

    need: Need
    priority: int
    wake: Callable[[], None]
    executions: int = 0
    free: bool = False
    ticket: int | None = None

    @property
    def weight(self) -> int:
        """Its place in the line; the smallest is first."""
        return self.executions * self.priority


class RateLimiter:
    """One line for a whole server. The first in it, of those that are free and wanted, must get all
    that it needs; until then nobody behind it runs."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        """`sizes` are those of the pools where an operator gives any; see `Pools`."""
        self._pools = Pools(sizes)
        self._turns: list[Turn] = []
        self._tickets = count()
        self._serving = False

    def enrol(
        self, demands: Iterable[tuple[Need, int]], wake: Callable[[], None]
    ) -> Sequence[Turn]:
        """Places for instances, each with its need and its priority, where 0 counts as 1. Raises
        InvalidArgument, and enrols none, where one could never run; see `Pools.admit`."""
        turns = [Turn(need, max(priority, 1), wake) for need, priority in demands]
        self._pools.admit(turn.need for turn in turns)
        self._turns += turns
        self.serve()  # a pool may have grown
        return turns

    def leave(self, turns: Sequence[Turn]) -> None:
        """These instances are gone for good; those that have left already are passed over."""
        self._pools.dismiss(turn.need for turn in turns if turn in self._turns)
        self._turns = [turn for turn in self._turns if turn not in turns]
        self.serve()

    def claim(self, turns: Iterable[Turn]) -> Turn | None:
        """One of these instances that may `start` now. Where there is none all of them stand in
        line, also those that are not free yet, and one will be woken. Who is given one and has
        nothing for it to do after all need not say so."""
        wanted = list(turns)
        for turn in wanted:
            if turn.ticket is None:
                turn.ticket = next(self._tickets)
        first = self._first()
        if first is None or first not in wanted or not self._pools.fits(first.need):
            return None
        for turn in wanted:
            turn.ticket = None
        return first

    def _first(self) -> Turn | None:
        line = (turn for turn in self._turns if turn.free and turn.ticket is not None)
        return min(line, key=lambda turn: (turn.weight, turn.ticket), default=None)

    def start(self, turn: Turn) -> None:
        """The instance runs: it takes what it needs. Only for one that was just claimed."""
        self._pools.take(turn.need)
        turn.free, turn.ticket = False, None

    def finish(self, turn: Turn, *, free: bool) -> None:
        """It has run, and gives back what it took; whether it can run again. To be followed by
        `serve`, when those who may want to go on with it have been told."""
        self._pools.give(turn.need)
        turn.executions += 1
        turn.free = free

    def withdraw(self, turn: Turn) -> None:
        """The instance is not there for now. To be followed by `serve`."""
        turn.free, turn.ticket = False, None

    def serve(self) -> None:
        """Wake who is first in line, and then who is first after that, as long as there is what the
        first one needs. One that starts nothing leaves the line."""
        if self._serving:
            return  # called by one that was woken: the loop below goes on
        self._serving = True
        try:
            tried: set[Turn] = set()
            while (first := self._first()) is not None and self._pools.fits(first.need):
                ticket, executions = first.ticket, first.executions
                first.wake()
                if not first.free or first.executions > executions:  # it runs, or has run already
                    tried.discard(first)
                    continue
                if first.ticket == ticket or first in tried:
                    first.ticket = None
                tried.add(first)
        finally:
            self._serving = False
