"""How fast candidates run: slices of time in interleaved rounds, so that what else happens on the
machine meets all of them alike."""

import contextlib
import copy
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from microkernel_torchscript.flags import enter_modes
from microkernel_torchscript.options import Options
from microkernel_torchscript.tuning.grid import ROUNDS, SLICE
from microkernel_torchscript.tuning.samples import Arguments
from microkernel_torchscript.tuning.subject import Callee
from microkernel_torchscript.tuning.trial import Candidate, Figures

_MOST_ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Runner:
    """What it takes to run one candidate: its module, the arguments of every call and the modes
    that its threads are in."""

    module: Callee
    arguments: Arguments
    options: Options


def measure(runners: Mapping[Candidate, Runner], deadline: float) -> dict[Candidate, Figures]:
    """The medians of rounds in which each candidate runs for a slice of time. The clock is
    `time.monotonic`; a candidate whose rounds did not fit before the deadline is left out."""
    slices: dict[Candidate, list[Figures]] = {candidate: [] for candidate in runners}
    for number in range(_MOST_ROUNDS):
        order = list(runners.items())
        for candidate, runner in reversed(order) if number % 2 else order:
            if time.monotonic() >= deadline:
                break
            slices[candidate].append(run_slice(candidate, runner, SLICE))
    return {c: _median(found) for c, found in slices.items() if len(found) >= ROUNDS}


def run_slice(candidate: Candidate, runner: Runner, seconds: float) -> Figures:
    """Run the candidate's instances at once, on a thread each, for so many seconds or one call
    each if that takes longer, after one that warms it up. Raises what the model raises."""
    workers = [_Worker(candidate.threads, runner, seconds) for _ in range(candidate.instances)]
    began: list[float] = []
    # The last instance notes the time, for machine code does not let this thread do so.
    start = threading.Barrier(len(workers), lambda: began.append(time.process_time()))
    threads = [threading.Thread(target=worker.run, args=(start,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    cpu = time.process_time() - began[0]
    return _figures(workers, candidate.batch, cpu)


@dataclass(slots=True)
class _Worker:
    """One instance: calls its module until its time is over."""

    threads: int
    runner: Runner
    seconds: float
    times: list[float] = field(default_factory=list)
    error: Exception | None = None

    def run(self, start: threading.Barrier) -> None:
        try:
            torch.set_num_threads(self.threads)
            with contextlib.ExitStack() as modes:
                enter_modes(modes, self.runner.options)
                forward: Any = copy.copy(self.runner.module).forward
                forward(*self.runner.arguments)  # buffers and thread pools are made here
                start.wait()
                self._call(forward)
        except threading.BrokenBarrierError:
            pass  # another instance has failed and says why
        except Exception as error:  # noqa: BLE001 - raised again where the slice was asked for
            self.error = error
            start.abort()

    def _call(self, forward: Any) -> None:
        arguments = self.runner.arguments
        last = time.perf_counter()
        end = last + self.seconds
        while last < end or not self.times:
            forward(*arguments)
            now = time.perf_counter()
            self.times.append(now - last)
            last = now


def _figures(workers: Sequence[_Worker], batch: int, cpu: float) -> Figures:
    calls = sum(len(worker.times) for worker in workers)
    rate = sum(len(worker.times) / sum(worker.times) for worker in workers)
    latencies = [seconds for worker in workers for seconds in worker.times]
    return Figures(
        latency_ms=statistics.median(latencies) * 1e3,
        items_per_second=rate * batch,
        cpu_ms=cpu * 1e3 / (calls * batch),
    )


def _median(found: Sequence[Figures]) -> Figures:
    return Figures(
        statistics.median(one.latency_ms for one in found),
        statistics.median(one.items_per_second for one in found),
        statistics.median(one.cpu_ms for one in found),
    )
