"""The oldest strategy of the sequence batcher: the sequences of an instance feed a dynamic batcher
of its own, each with one request at a time."""

from collections.abc import Sequence
from math import inf

from microkernel.config.model import ModelConfig, SequenceBatching, StrategyOldest
from microkernel.errors import MicrokernelError
from microkernel.scheduling.pending import Executor, Pending, Runner
from microkernel.scheduling.policy import Batching
from microkernel.scheduling.queue import QueueScheduler
from microkernel.scheduling.slots import Seat, Slot, Slots
from microkernel.scheduling.turns import Turns
from microkernel.stats import Failure


class _OneInstance:
    """An executor whose only instance is the one of a seat; not idle while it is `held`."""

    def __init__(self, executor: Executor, instance: Runner) -> None:
        self.held = False
        self._executor = executor
        self._instance = instance

    def idle(self, on: Runner | None = None) -> bool:
        """See `Executor.idle`."""
        return not self.held and self._executor.idle(self._instance)

    def execute(self, batch: Sequence[Pending], on: Runner | None = None) -> None:
        """See `Executor.execute`."""
        self._executor.execute(batch, self._instance)

    def reject(self, pending: Pending, error: MicrokernelError, reason: Failure) -> None:
        """See `Executor.reject`."""
        self._executor.reject(pending, error, reason)


def batching_of(config: ModelConfig) -> Batching:
    """The policy of the batchers within. An instance runs its batches one after the other, so
    `preserve_ordering` holds by itself."""
    batching = config.sequence_batching or SequenceBatching()
    oldest = batching.oldest or StrategyOldest()
    largest = max(config.max_batch_size, 1)
    preferred = frozenset(oldest.preferred_batch_size) or frozenset({largest})
    return Batching(largest, preferred, oldest.max_queue_delay_microseconds / 1e6)


class Oldest:
    """Moves the next request of a sequence into the batcher of its instance as soon as the one
    before is released."""

    def __init__(self, config: ModelConfig, executor: Executor, slots: Slots, turns: Turns) -> None:
        self._policy = batching_of(config)
        self._executor = executor
        self._slots = slots
        self._turns = turns
        self._batchers: dict[Seat, tuple[QueueScheduler, _OneInstance]] = {}

    @staticmethod
    def slots_of(config: ModelConfig) -> int:
        """How many slots an instance has."""
        batching = config.sequence_batching or SequenceBatching()
        oldest = batching.oldest or StrategyOldest()
        return oldest.max_candidate_sequences or max(config.max_batch_size, 1)

    def joined(self, seat: Seat) -> None:
        """See `Strategy.joined`."""
        own = _OneInstance(self._executor, seat.instance)
        self._batchers[seat] = QueueScheduler(self._policy, own), own

    def left(self, seat: Seat) -> Sequence[Pending]:
        """See `Strategy.left`."""
        batcher, _ = self._batchers.pop(seat)
        return batcher.take_all()

    def act(self, now: float) -> float:
        """See `Strategy.act`. All that may move moves before any batch is formed."""
        self._feed(now)
        for batcher, _ in list(self._batchers.values()):
            batcher.wake()
        return inf

    def _feed(self, now: float) -> None:
        stirred = self._slots.stirred
        while stirred:
            slot = next(iter(stirred))
            del stirred[slot]
            if slot.busy or slot.line is None or not slot.line.queue:
                continue
            batcher, own = self._batchers[slot.seat]
            pending = self._turns.take(slot, now)
            pending.arrived = now  # which is when it came to where its delay counts
            own.held = True
            try:
                batcher.submit(pending)
            finally:
                own.held = False

    def released(self, slot: Slot) -> None:
        """See `Strategy.released`."""

    def withdraw(self, slot: Slot, pending: Pending) -> bool:
        """See `Strategy.withdraw`."""
        return slot.seat in self._batchers and self._batchers[slot.seat][0].abandon(pending)

    def take_all(self) -> Sequence[Pending]:
        """See `Strategy.take_all`."""
        return [p for batcher, _ in self._batchers.values() for p in batcher.take_all()]

    @property
    def waiting(self) -> int:
        """See `Strategy.waiting`."""
        return sum(batcher.waiting for batcher, _ in self._batchers.values())
