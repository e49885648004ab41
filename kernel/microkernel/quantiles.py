"""Quantiles of a stream of numbers, in bounded memory and over the last minute.

Pure: time is given with each number.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, nan
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

MAX_AGE_NS = 60 * 1_000_000_000
"""How far back a window looks, as Triton's summaries do."""
AGES = 5
"""How many sketches share a window; the oldest is given up every `MAX_AGE_NS / AGES`."""

_TURN_NS = MAX_AGE_NS // AGES
_BUFFER = 1000
"""Numbers that are added to the sketches at once; alone each would cost a hundred times as much."""

_Numbers: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Target:
    """A quantile, between 0 and 1, and by which part of all numbers its rank may be off."""

    quantile: float
    error: float


class _Shape:
    """The numbers of some targets, as columns."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.quantiles = np.array([[target.quantile] for target in targets])
        self.widths = np.array([[2 * target.error] for target in targets])
        self.slopes = self.widths / (1 - self.quantiles)
        self.rises = 1 + self.widths / self.quantiles


class Sketch:
    """What must be remembered of a stream to tell the quantiles of some targets.

    Numbers are kept in ascending order, each with the lowest and the highest rank it can have. One
    is forgotten where the ranks of its neighbours stay close enough together for every target, now
    and whatever comes after: the closer to a target's rank, the closer they must be.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self.count = 0
        self._shape = _Shape(targets)
        self._values: _Numbers = np.empty(0)
        self._low: _Numbers = np.empty(0)
        self._high: _Numbers = np.empty(0)

    def __len__(self) -> int:
        """How many numbers are kept."""
        return len(self._values)

    def add(self, numbers: _Numbers) -> None:
        """Add some numbers, which must be in ascending order."""
        after = self._values.searchsorted(numbers, "right")
        before = numbers.searchsorted(self._values, "left")
        ranks = np.arange(1.0, len(numbers) + 1)
        low = ranks + np.concatenate(([0.0], self._low))[after]
        high = ranks + np.concatenate((self._high, [self.count + 1.0]))[after] - 1
        values = np.concatenate((self._values, numbers))
        order = values.argsort(kind="stable")  # of equal ones those that were here come first
        self.count += len(numbers)
        self._values = values[order]
        self._low = np.concatenate((self._low + before, low))[order]
        self._high = np.concatenate((self._high + before, high))[order]
        self._forget()

    def _forget(self) -> None:
        """Keep the first number, and after each that is kept the farthest that is close enough."""
        last = len(self._values) - 1
        reach = self._high.searchsorted(self._limits(), "right") - 1
        following = np.maximum(reach, np.arange(1, last + 2)).tolist()
        kept = [0]
        while kept[-1] < last:
            kept.append(min(following[kept[-1]], last))
        self._values, self._low, self._high = (
            column[kept] for column in (self._values, self._low, self._high)
        )

    def _limits(self) -> _Numbers:
        """For each number the highest rank that its next neighbour may have."""
        low, count, shape = self._low, self.count, self._shape
        ranks = shape.quantiles * count
        # Ranks below the target's come closer to it while only smaller numbers are added, those
        # above while only larger ones are.
        below = (low + shape.slopes * count) / (1 + shape.slopes)
        below = np.where(below <= ranks, below, low + shape.widths * count)
        limits: _Numbers = np.where(low < ranks, below, low * shape.rises).min(axis=0)
        return limits

    def quantile(self, target: Target) -> float:
        """One of the numbers, whose rank differs from the target's by at most the larger of 1 and
        `error * count`; NaN where there are no numbers."""
        if not self.count:
            return nan
        bound = ceil(target.quantile * self.count) + target.error * self.count
        return float(self._values[max(0, int(self._high.searchsorted(bound, "right")) - 1)])


class Window:
    """The quantiles of the numbers of the last 48 to 60 seconds; count and sum of all there were.

    There is a sketch for each of several beginnings; the one that began first answers.
    """

    def __init__(self, targets: Sequence[Target], now: int) -> None:
        """`now` is a time in nanoseconds of any clock that only grows."""
        self.targets = targets
        self.count = 0
        self.total = 0
        self._turn = now + _TURN_NS
        self._sketches = deque(Sketch(targets) for _ in range(AGES))
        self._buffer: list[int] = []
        self._batch: _Numbers = np.empty(0)
        self._hungry: list[Sketch] = []

    def add(self, number: int, now: int) -> None:
        """Add a number at a time that is no earlier than the last one's."""
        if now >= self._turn:
            self._turn_over(now)
        self.count += 1
        self.total += number
        self._buffer.append(number)
        if self._hungry:  # one sketch at a time, so that no request has to wait for all
            self._hungry.pop().add(self._batch)
        elif len(self._buffer) >= _BUFFER:
            self._take_batch()

    def quantiles(self, now: int) -> list[float]:
        """The value of each target; NaN where the window is empty."""
        if now >= self._turn:
            self._turn_over(now)
        if self._buffer:
            self._feed()
            self._take_batch()
        if len(self._hungry) == AGES:
            self._hungry.pop().add(self._batch)  # the oldest; the others can wait
        return [self._sketches[0].quantile(target) for target in self.targets]

    def _take_batch(self) -> None:
        self._batch = np.sort(np.array(self._buffer, np.float64))
        self._buffer.clear()
        self._hungry = list(reversed(self._sketches))

    def _feed(self) -> None:
        while self._hungry:
            self._hungry.pop().add(self._batch)

    def _turn_over(self, now: int) -> None:
        self._feed()
        if self._buffer:
            self._take_batch()
            self._feed()
        turns = (now - self._turn) // _TURN_NS + 1
        self._turn += turns * _TURN_NS
        for _ in range(min(turns, AGES)):
            self._sketches.popleft()
            self._sketches.append(Sketch(self.targets))
