"""How soon clients that were answered come back, and how many of them a batch should wait for.

Nobody says which request is whose. Each one that comes after answers is taken for a client of the
batch that was answered last, until all of that batch are back. Where clients wait for their answers
that is what happens; where requests come at random it counts how many do, which serves as well.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from math import frexp, inf, ldexp

_SHORTEST = -17
"""Times are counted from 2**-17 s (8 us) on; what is shorter is no time at all."""
_LONGEST = 4
"""Beyond 16 s all times are the same."""
_PARTS = 4
"""A doubling of the time is counted in so many parts."""
_SIZE = (_LONGEST - _SHORTEST) * _PARTS + 2

_FORGET = 0.96
"""What a batch weighs after the next one: some 25 of them are remembered."""
_LARGE = 1e9
"""Newer batches get larger weights, instead of older ones smaller, until here."""

_MARGIN = 0.08
"""What is gained on paper by leaving a client for the next batch must be more than this share: it
is lost where a guess is wrong, and that client waits for two executions."""


def _index(seconds: float) -> int:
    if seconds <= 0:
        return 0
    mantissa, exponent = frexp(seconds)
    if exponent <= _SHORTEST:
        return 0
    if exponent > _LONGEST:
        return _SIZE - 1
    return (exponent - _SHORTEST - 1) * _PARTS + int((2 * mantissa - 1) * _PARTS) + 1


def _end(index: int) -> float:
    """Until when times are counted at that index."""
    exponent, part = divmod(index - 1, _PARTS)
    return ldexp(0.5 + (part + 1) / (2 * _PARTS), exponent + _SHORTEST + 1)


_ENDS = (ldexp(1.0, _SHORTEST), *(_end(index) for index in range(1, _SIZE - 1)), inf)
_STARTS = (0.0, *_ENDS[:-1])


class Returns:
    """The latest times from an answer to the next request, those of clients that had not come back
    when the next batch was answered among them, as times that are longer."""

    __slots__ = ("_back", "_curve", "_gone", "_since", "_stale", "_weight", "came", "owed")

    def __init__(self) -> None:
        self.owed = 0
        """How many of those who were answered last have not come back."""
        self.came = 0
        """How many requests have come since then."""
        self._since = -inf
        self._weight = 1.0
        self._back = [0.0] * _SIZE
        self._gone = [0.0] * _SIZE
        self._curve: list[float] = []
        self._stale = True

    def arrived(self, now: float) -> None:
        """A request has come."""
        self.came += 1
        if self.owed:
            self.owed -= 1
            self._back[_index(now - self._since)] += self._weight

    def answered(self, requests: int, now: float) -> None:
        """The answers to so many requests go out."""
        if self.owed:
            self._gone[_index(now - self._since)] += self._weight * self.owed
        self.owed, self.came, self._since = requests, 0, now
        self._stale = True
        self._weight /= _FORGET
        if self._weight > _LARGE:
            self._back = [count / self._weight for count in self._back]
            self._gone = [count / self._weight for count in self._gone]
            self._weight = 1.0

    def _shares(self) -> list[float]:
        """The share of clients that are back by the end of each time that is counted, where those
        who were not seen to come back do as the others did who had been away for as long.

        It is worked out once for all looks between two answers, so that what is expected of a batch
        does not change while it is waited for."""
        if self._stale:
            self._curve, self._stale = self._worked_out(), False
        return self._curve

    def _worked_out(self) -> list[float]:
        still = sum(self._back) + sum(self._gone)
        least = 1e-9 * self._weight  # less is what rounding left
        away, shares = 1.0, []
        for back, gone in zip(self._back, self._gone, strict=True):
            if back and still > least:
                away *= max(1 - back / still, 0.0)
            shares.append(1 - away)
            still -= back + gone
        return shares

    def elapsed(self, now: float) -> float:
        """How long ago the last answers went out."""
        return now - self._since

    def time_of(self, share: float, elapsed: float = 0.0) -> float:
        """How long after their answers that share is back of the clients who were still away after
        `elapsed` seconds. Infinite where so many hardly come back."""
        curve, begun = self._shares(), self._at(elapsed)
        wanted = begun + share * (1 - begun)
        index = bisect_left(curve, wanted - 1e-9)
        if begun >= 1 - 1e-9 or index >= _SIZE - 1:
            return inf
        before = curve[index - 1] if index else 0.0
        more = curve[index] - before
        part = (wanted - before) / more if more > 0 else 0.0
        return max(_STARTS[index] + min(part, 1.0) * (_ENDS[index] - _STARTS[index]), elapsed)

    def _at(self, elapsed: float) -> float:
        """The share of clients that are back after so long."""
        index, curve = _index(elapsed), self._shares()
        before = curve[index - 1] if index else 0.0
        if index >= _SIZE - 1:
            return before
        part = (elapsed - _STARTS[index]) / (_ENDS[index] - _STARTS[index])
        return before + (curve[index] - before) * part

    def next_look(self, elapsed: float) -> float:
        """When to look again, for those who are still away after `elapsed` seconds."""
        return _ENDS[min(_index(elapsed), _SIZE - 2)]


@dataclass(frozen=True, slots=True)
class Target:
    """A batch of `size` requests that is worth a wait, `wait` seconds from the answers before, of
    which it takes `fixed` seconds to run even the smallest: none where it is 0."""

    size: int = 0
    wait: float = 0.0
    fixed: float = 0.0
    spare: float = 0.0
    """Seconds by which a wait may exceed what it gains, so that nobody is left behind."""

    def worth(self, waiting: int, clients: int, time_of: Callable[[float], float]) -> float:
        """The seconds that may be waited when `waiting` of the clients are there: what it takes to
        answer the others later, less what those who go now would be early for the next batch."""
        missing = self.size - waiting
        others = clients - waiting
        early = self.wait
        if others < self.size:
            early -= time_of((self.size - others) / (waiting + 1))
        gain = missing / self.size * (self.wait + self.fixed)
        return gain - max(early, 0.0) + self.spare


def target(
    clients: int, largest: int, fixed: float, each: float, time_of: Callable[[float], float]
) -> Target:
    """The batch with which `clients`, who each wait for their answer, get most done, where a batch
    takes `fixed` seconds and `each` per request.

    Without a wait, those who came back while others were served are a batch, and two of them serve
    everybody. A batch of more than half must wait, for as many of those who were answered last as
    it is larger than the rest.
    """
    best, least = Target(), 2 * fixed / clients + each
    for size in range(clients // 2 + 1, min(clients, largest) + 1):
        wait = time_of((2 * size - clients) / (size + 1))
        pace = (wait + fixed) / size + each
        everybody = size == clients
        if pace * (1.0 if everybody else 1 + _MARGIN) < least:
            least = pace
            best = Target(size, wait, fixed, _MARGIN * size * pace if everybody else 0.0)
    return best
