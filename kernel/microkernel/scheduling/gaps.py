"""How likely another request comes soon after one, judging by the latest gaps between them."""

from math import frexp, inf, ldexp

_SHORTEST = -17
"""Gaps are counted by powers of two, from 2**-17 s (8 us) on: shorter ones are one burst."""

_LONGEST = 4
"""Gaps of more than 8 s are all the same."""

_FORGET = 0.99
"""What a gap weighs after the next one: some hundred of them are remembered."""
_LARGE = 1e9
"""Newer gaps get larger weights, instead of older ones smaller, until here."""

_CAUTION = 1.5
"""A wait must promise so many times what it costs: a few gaps seen say little of those to come."""


class Gaps:
    """The latest gaps that began with a request. An arrival ends them, or answers cut them short,
    for what comes then is another matter; see `microkernel.scheduling.returns`."""

    __slots__ = ("_ended", "_lasted", "_since", "_weight")

    def __init__(self) -> None:
        size = _LONGEST - _SHORTEST + 1
        self._ended = [0.0] * size
        self._lasted = [0.0] * size  # those that ended, and those that answers cut short
        self._since = -inf
        self._weight = 1.0

    def arrived(self, now: float) -> None:
        """A request has come."""
        if self._since > -inf:
            index = _index(now - self._since)
            self._ended[index] += self._weight
            self._count(index)
        self._since = now

    def answered(self, now: float) -> None:
        """Answers go out."""
        if self._since > -inf:
            self._count(_index(now - self._since))
        self._since = -inf

    def _count(self, index: int) -> None:
        self._lasted[index] += self._weight
        self._weight /= _FORGET
        if self._weight > _LARGE:
            self._ended = [count / self._weight for count in self._ended]
            self._lasted = [count / self._weight for count in self._lasted]
            self._weight = 1.0

    def worth_until(self, gain: float, now: float) -> float:
        """Until when to wait for the next request, if it is worth as much as a wait of `gain`
        seconds; `now` where it will hardly come soon enough, or answers came after the last one.

        Of all moments it is the one up to which the chance of an arrival, times the gain, exceeds
        the time that is likely to be waited by most.
        """
        if self._since == -inf:
            return now
        elapsed = now - self._since
        first = _index(elapsed)
        left = lasted = sum(self._lasted[first:])
        until, best, chance, waited = elapsed, 0.0, 0.0, 0.0
        for index in range(first, len(self._lasted)):
            if left <= 0:
                break
            start, end = _bounds(index)
            chance += self._ended[index] / lasted
            waited += (end - max(start, elapsed)) * (left - self._lasted[index] / 2) / lasted
            left -= self._lasted[index]
            worth = chance * gain - _CAUTION * waited
            if worth > best:
                until, best = end, worth
        return self._since + until


def _index(gap: float) -> int:
    exponent = frexp(gap)[1] if gap > 0 else _SHORTEST
    return min(max(exponent, _SHORTEST), _LONGEST) - _SHORTEST


def _bounds(index: int) -> tuple[float, float]:
    """From when to when a gap is counted at that index."""
    end = ldexp(1.0, index + _SHORTEST)
    return (end / 2 if index else 0.0), end
