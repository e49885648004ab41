"""The direct strategy of the sequence batcher: a sequence keeps its slot, and the row of a batch is
the number of a slot."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import inf

from microkernel.config.model import ModelConfig, SequenceBatching, StrategyDirect
from microkernel.scheduling.pending import Executor, Pending
from microkernel.scheduling.slots import Seat, Slot, Slots
from microkernel.scheduling.turns import Turns

_ROUNDING = 1e-6
"""What a utilization loses as the 32-bit number that it is in a configuration."""


@dataclass(frozen=True, slots=True)
class Filling:
    """When enough slots have a request: at once, or, with a `delay` in seconds and a `utilization`,
    when that part of the `slots` have one or the oldest request has waited that long."""

    slots: int
    delay: float
    utilization: float

    @classmethod
    def of(cls, config: ModelConfig) -> "Filling":
        """The rule of a configuration with the direct strategy, which is also the default one."""
        batching = config.sequence_batching or SequenceBatching()
        direct = batching.direct or StrategyDirect()
        delay = direct.max_queue_delay_microseconds / 1e6
        return cls(max(config.max_batch_size, 1), delay, direct.minimum_slot_utilization)

    def wait_until(self, arrivals: Sequence[float], now: float) -> float:
        """Until when to wait with the requests at the front of their slots, which arrived at these
        times; `now` for not at all, and for ever where there are none."""
        if not arrivals:
            return inf
        if self.delay == 0 or self.utilization == 0:
            return now
        if len(arrivals) / self.slots >= self.utilization - _ROUNDING:
            return now
        return max(min(arrivals) + self.delay, now)


def rows(keys: Sequence[Hashable | None]) -> list[bool]:
    """Which rows of a batch are requests, from the key of the next request of each slot and None
    for a slot without one. Those that cannot run with the first stay behind; there is no row after
    the last slot with a request."""
    first = next(key for key in keys if key is not None)
    used = max(row for row, key in enumerate(keys) if key is not None) + 1
    return [key == first for key in keys[:used]]


class Direct:
    """Runs the slots of an instance together, a batch only when the one before is wholly over."""

    def __init__(self, config: ModelConfig, executor: Executor, slots: Slots, turns: Turns) -> None:
        self._filling = Filling.of(config)
        self._executor = executor
        self._slots = slots
        self._turns = turns
        self._running: dict[Seat, int] = {}

    @staticmethod
    def slots_of(config: ModelConfig) -> int:
        """How many slots an instance has."""
        return max(config.max_batch_size, 1)

    def joined(self, seat: Seat) -> None:
        """See `Strategy.joined`."""
        self._running[seat] = 0

    def left(self, seat: Seat) -> Sequence[Pending]:
        """See `Strategy.left`."""
        del self._running[seat]
        return ()

    def act(self, now: float) -> float:
        """See `Strategy.act`."""
        self._slots.stirred.clear()
        due = inf
        for seat in list(self._running):
            while self._running.get(seat) == 0:
                until = self._filling.wait_until(_arrivals(seat), now)
                if until > now:
                    due = min(due, until)
                    break
                if not self._executor.idle(seat.instance):  # who asks may have to be waited for
                    break
                self._run(seat, now)
        return due

    def _run(self, seat: Seat, now: float) -> None:
        keys = [
            (self._turns.key(slot),) if slot.line is not None and slot.line.queue else None
            for slot in seat.slots
        ]
        chosen = rows(keys)
        taken = {row: self._turns.take(seat.slots[row], now) for row in _true(chosen)}
        first = next(iter(taken.values()))
        batch = [taken.get(row) or self._turns.null(first) for row in range(len(chosen))]
        self._running[seat] = len(taken)
        self._executor.execute(batch, seat.instance)

    def released(self, slot: Slot) -> None:
        """See `Strategy.released`."""
        if slot.seat in self._running:
            self._running[slot.seat] -= 1

    def withdraw(self, slot: Slot, pending: Pending) -> bool:
        """See `Strategy.withdraw`. What was taken from a slot runs."""
        return False

    def take_all(self) -> Sequence[Pending]:
        """See `Strategy.take_all`."""
        return ()

    @property
    def waiting(self) -> int:
        """See `Strategy.waiting`."""
        return 0


def _arrivals(seat: Seat) -> Sequence[float]:
    """When the requests at the front of the slots arrived."""
    lines = [slot.line for slot in seat.slots if slot.line is not None]
    return [line.queue[0].arrived for line in lines if line.queue]


def _true(chosen: Sequence[bool]) -> Sequence[int]:
    return [row for row, is_request in enumerate(chosen) if is_request]
