"""How soon does the server start, and what does it hold while it has nothing to do?"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.calm import calm_rounds
from benchmarks.cases import EMPTY, Case
from benchmarks.children import Child
from benchmarks.measuring import Plan, Target, measure
from benchmarks.report import Check, Report
from benchmarks.repository import add_model
from benchmarks.serving import Memory, RunningServer, memory_of
from benchmarks.wire import write_requests

MIB = 1 << 20
IMPORTS = "import aiohttp.web, click, google.protobuf, grpc.aio, numpy, structlog"


def start(models: Path, folder: Path, plan: Plan) -> Report:
    """Start without models a few times, next to a bare interpreter that imports the libraries."""
    empty = folder / "no_models"
    empty.mkdir()
    rounds = calm_rounds(plan.small.rounds, lambda: (_started(empty), _import_seconds()))
    started = [seconds for (seconds, _), _ in rounds]
    imported = [seconds for _, seconds in rounds]
    held = rounds[-1][0][1]
    return Report(
        checks=[
            Check(
                "server start, no models",
                median(started),
                "s",
                0.7,
                note=f"importing its libraries alone takes {median(imported):.2f}",
            ),
            Check(
                "idle memory of the server process",
                held.resident / MIB,
                "MiB",
                90.0,
                note=f"resident; proportional set {held.proportional / MIB:.1f}",
            ),
        ]
    )


def _started(repository: Path) -> tuple[float, Memory]:
    """How long a start took, and what the server then held."""
    with RunningServer(repository) as server:
        return server.seconds, server.memory()


def _import_seconds() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - began


def memory(models: Path, folder: Path, plan: Plan) -> Report:
    """The private memory of TorchScript workers that have answered requests."""
    cases: Sequence[Case] = [Case("first", EMPTY), Case("second", EMPTY)]
    repository = folder / "two_models"
    for case in cases:
        add_model(repository, case, models)
        write_requests(case, folder)
    with RunningServer(repository) as server, Child("load") as load:
        for case in cases:
            target = Target(case.model, server.ports, folder / case.model, server.cpu)
            measure(load, target, "http", 8, plan.small)
        private = [memory_of(pid).private / MIB for pid in server.workers()]
    return Report(
        checks=[
            Check(
                "private memory of a second TorchScript worker",
                max(private),
                "MiB",
                60.0,
                note="its model has no weights; all: "
                + ", ".join(f"{size:.1f}" for size in sorted(private)),
            )
        ]
    )
