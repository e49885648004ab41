"""A queue delay that is found, not configured.

While an instance is free and a batch is not full, waiting costs every request that waits. It pays
when another request comes in time: run by itself it would cost the fixed part of an execution once
more. So the batcher waits as long as the chance that a request comes, times that fixed part, is
more than what the requests that are there are likely to lose, and no longer.

The chance is read from the latest gaps: how likely one that has lasted so long is to end soon. A
gap begins with an arrival, or with answers that go out, for clients that wait for them send their
next requests then. The two kinds are told apart: where one client is alone, a request always comes
soon after answers and never after a request. Lone requests are hardly ever held back, bursts are
waited for to their end, and under steady load batches become as large as the load warrants.
"""

from collections.abc import Iterable
from dataclasses import replace
from math import frexp, inf, ldexp

from microkernel.scheduling.policy import Batching, Decision, Dispatch, Wait, Waiting
from microkernel.scheduling.service import ServiceTimes

_SHORTEST = -17
"""Gaps are counted by powers of two, from 2**-17 s (8 us) on: shorter ones are one burst."""

_LONGEST = 4
"""Gaps of more than 8 s are all the same."""

_FORGET = 0.99
"""What a gap weighs after the next one: some hundred of them are remembered."""


_CAUTION = 1.5
"""A wait must promise so many times what it costs: a few gaps seen say little of those to come."""


class _Kind:
    """The latest gaps that began alike."""

    __slots__ = ("_ended", "_lasted")

    def __init__(self) -> None:
        size = _LONGEST - _SHORTEST + 1
        self._ended = [0.0] * size
        self._lasted = [0.0] * size  # those that ended, and those that answers cut short

    def add(self, gap: float, *, ended: bool) -> None:
        """One has lasted so long, and an arrival ended it or answers cut it short."""
        self._ended = [count * _FORGET for count in self._ended]
        self._lasted = [count * _FORGET for count in self._lasted]
        index = _index(gap)
        self._lasted[index] += 1
        self._ended[index] += ended

    def worth(self, gain: float, elapsed: float) -> float:
        """How long a gap that has lasted for `elapsed` should be let grow; see
        `Gaps.worth_until`."""
        first = _index(elapsed)
        left = lasted = sum(self._lasted[first:])
        until, best, chance, waited = elapsed, 0.0, 0.0, 0.0
        for index in range(first, len(self._lasted)):
            if left <= 0:
                break
            start, end = _bounds(index)
            span = end - max(start, elapsed)
            chance += self._ended[index] / lasted
            waited += span * (left - self._lasted[index] / 2) / lasted
            left -= self._lasted[index]
            worth = chance * gain - _CAUTION * waited
            if worth > best:
                until, best = end, worth
        return until


class Gaps:
    """The latest gaps before arrivals, and how likely a gap is to end as it grows longer."""

    __slots__ = ("_after_answers", "_after_arrival", "_now", "_since")

    def __init__(self) -> None:
        self._after_arrival = self._now = _Kind()
        self._after_answers = _Kind()
        self._since = -inf

    def arrived(self, now: float) -> None:
        """A request has come."""
        if self._since > -inf:
            self._now.add(now - self._since, ended=True)
        self._now, self._since = self._after_arrival, now

    def answered(self, now: float) -> None:
        """Answers go out."""
        if self._since > -inf:
            self._now.add(now - self._since, ended=False)
        self._now, self._since = self._after_answers, now

    def worth_until(self, gain: float, now: float) -> float:
        """Until when to wait for the next request, if it is worth as much as a wait of `gain`
        seconds; `now` where it will hardly come soon enough.

        Of all moments it is the one up to which the chance of an arrival, times the gain, exceeds
        the time that is likely to be waited by most.
        """
        return self._since + self._now.worth(gain, now - self._since)


def _index(gap: float) -> int:
    exponent = frexp(gap)[1] if gap > 0 else _SHORTEST
    return min(max(exponent, _SHORTEST), _LONGEST) - _SHORTEST


def _bounds(index: int) -> tuple[float, float]:
    """From when to when a gap is counted at that index."""
    end = ldexp(1.0, index + _SHORTEST)
    return (end / 2 if index else 0.0), end


class Adaptive:
    """The dynamic batcher's policy with a delay that it finds itself; see this module."""

    def __init__(self, batching: Batching) -> None:
        """As `batching`, but for its delay, which is the longest unless it is 0."""
        self._patient = replace(batching, delay=batching.delay or inf)
        self._gaps = Gaps()
        self._service = ServiceTimes()

    def arrived(self, now: float) -> None:
        """A request has come."""
        self._gaps.arrived(now)

    def executed(self, size: int, seconds: float, now: float) -> None:
        """A batch of that size took so long; its answers go out now."""
        self._service.observe(size, seconds)
        self._gaps.answered(now)

    def decide(self, queue: Iterable[Waiting], now: float) -> Decision:
        """See `Policy.decide`."""
        decision = self._patient.decide(queue, now)
        if isinstance(decision, Dispatch):
            return decision
        count = sum(1 for _ in queue)  # which all fit into one batch
        until = self._gaps.worth_until(self._service.fixed / count, now)
        return Dispatch(count) if until <= now else Wait(min(until, decision.until))
