"""How calm is the machine? Rounds that other programs disturbed least are those that count."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")


class Others:
    """Watches, from its making on, what programs outside this run take of the processors."""

    def __init__(self) -> None:
        self._clock = time.monotonic()
        self._foreign = _foreign_seconds()

    def share(self) -> float:
        """Their part of the machine's processors so far, from 0 to 1."""
        available = (time.monotonic() - self._clock) * (os.cpu_count() or 1)
        return max(0.0, _foreign_seconds() - self._foreign) / available


def calm_rounds(count: int, measure: Callable[[], T]) -> list[T]:
    """Measure so many times; the results, in order, of the half during which the machine was least
    disturbed: by other programs, and by what makes it slow without showing. At least one is
    left."""
    rounds = []
    for number in range(count):
        before, others = probe(), Others()
        result = measure()
        disturbed = (1.0 + others.share()) * (before + probe())
        rounds.append((disturbed, number, result))
    calmer = sorted(rounds, key=lambda r: r[0])[: (count + 1) // 2]
    return [result for _, _, result in sorted(calmer, key=lambda r: r[1])]


def probe() -> float:
    """Seconds that a fixed piece of Python takes, the best of a few tries: a virtual machine's
    processors are not always equally fast."""
    tries = []
    for _ in range(5):
        began = time.perf_counter()
        sum(number * number for number in range(20_000))
        tries.append(time.perf_counter() - began)
    return min(tries)


def _foreign_seconds() -> float:
    """Processor seconds of the whole machine less those of this process and all it started."""
    whole = psutil.cpu_times()
    busy = sum(whole) - whole.idle - whole.iowait - whole.guest - whole.guest_nice
    ours = psutil.Process()
    return float(busy - sum(_with_ended(p) for p in (ours, *ours.children(recursive=True))))


def _with_ended(process: psutil.Process) -> float:
    """Processor seconds of a process and of its ended children; 0 for one that is gone."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)
