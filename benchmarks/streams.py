"""How many streams of speech can the server follow at once, when it keeps what the model remembers
of each?"""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.calm import calm_rounds
from benchmarks.cases import SPEECH, Case
from benchmarks.children import ROOT, Child
from benchmarks.large import BareLoops, Loop
from benchmarks.measuring import Pace, Plan, Target, measure
from benchmarks.report import Check, Point, Report, median_point
from benchmarks.serving import RunningServer
from benchmarks.wire import write_requests

AT_ONCE = (1, 8, 64)
ROWS = (1, 4, 16, 32, 64)
"""The batches that the bare loop is tried with; the model of the examples takes up to the last."""

WINDOW_SECONDS = 512 / 16000
PROTOCOL = "grpc"
_UNIT = "times real time"


def streams(models: Path, folder: Path, plan: Plan) -> Report:
    """The windows per second of some numbers of streams, next to a bare loop over the same file."""
    file = models / f"{SPEECH.name}.pt"
    if not file.exists():
        return Report(
            remarks=["Streams were left out: the package with the speech model is missing."]
        )
    _write(file, folder)
    pace = plan.small
    with ExitStack() as stack:
        bare = BareLoops(stack, SPEECH, file)
        tried = {rows: bare.run(_loop(rows), 0.2, pace.seconds) for rows in ROWS}
        best = _loop(max(tried, key=lambda rows: tried[rows]))
        server = stack.enter_context(RunningServer(folder / "models"))
        load = stack.enter_context(Child("stream_load"))
        target = Target(SPEECH.name, server.ports, folder / SPEECH.name, server.cpu)
        rounds = calm_rounds(pace.rounds, partial(_round, bare, best, load, target, pace))
    return _report(rounds, best)


def _loop(rows: int) -> Loop:
    """One thread, as the model of the examples has."""
    return Loop(1, 1, rows)


def _write(file: Path, folder: Path) -> None:
    """The repository with the example as it is, and the request of one window."""
    model = folder / "models" / SPEECH.name
    shutil.copytree(ROOT / "examples" / "repository" / SPEECH.name, model)
    (model / "1").mkdir()
    os.link(file, model / "1" / "model.pt")
    write_requests(Case(SPEECH.name, replace(SPEECH, feeds=SPEECH.feeds[:1])), folder)


@dataclass(frozen=True, slots=True)
class _Round:
    """Windows per second of the bare loop, and what the server did for each number of streams."""

    bare: float
    points: Mapping[int, Point]


def _round(bare: BareLoops, best: Loop, load: Child, target: Target, pace: Pace) -> _Round:
    rate = bare.run(best, pace.warm_up, pace.seconds)
    points = {number: measure(load, target, PROTOCOL, number, pace)[0] for number in AT_ONCE}
    return _Round(rate, points)


def _report(rounds: Sequence[_Round], best: Loop) -> Report:
    points = [median_point([round_.points[number] for round_ in rounds]) for number in AT_ONCE]
    bare = median(round_.bare for round_ in rounds)
    checks = [
        Check("speech, bare loop", bare * WINDOW_SECONDS, _UNIT, note=f"{bare:.0f}/s ({best})")
    ]
    for point in points:
        share = median(round_.points[point.concurrency].rate / round_.bare for round_ in rounds)
        checks.append(
            Check(
                f"speech, {_counted(point.concurrency)} at once",
                point.rate * WINDOW_SECONDS,
                _UNIT,
                note=f"{point.rate:.0f} windows/s, {share:.0%} of the bare loop's",
            )
        )
    return Report(points=points, checks=checks)


def _counted(streams: int) -> str:
    return f"{streams} stream{'s' if streams > 1 else ''}"
