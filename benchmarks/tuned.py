"""What does tuning gain where a model is served?"""

import subprocess
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.calm import calm_rounds
from benchmarks.cases import CNN, Case
from benchmarks.children import Child
from benchmarks.large import SATURATED
from benchmarks.measuring import Plan, Target, measure
from benchmarks.report import Check, Report
from benchmarks.repository import add_model
from benchmarks.serving import PROGRAM, RunningServer
from benchmarks.wire import PROTOCOLS, write_requests

BUDGET = "120"
"""Seconds of measuring."""

CASES = (
    Case("plain", CNN, max_batch_size=8),
    Case("tuned", CNN, max_batch_size=8, parameters={"AUTOTUNE": "load"}),
)


def tuned(models: Path, folder: Path, plan: Plan) -> Report:
    """The same network as it was saved and as `microkernel tune` has it run, saturated in turn."""
    repository = folder / "models"
    for case in CASES:
        add_model(repository, case, models)
        write_requests(case, folder)
    chosen = _tune(repository / "tuned")
    with ExitStack() as stack:
        server = stack.enter_context(RunningServer(repository))
        load = stack.enter_context(Child("load"))
        targets = [
            Target(case.model, server.ports, folder / case.model, server.cpu) for case in CASES
        ]

        def rates(protocol: str) -> tuple[float, ...]:
            points = [measure(load, t, protocol, SATURATED, plan.large)[0] for t in targets]
            return tuple(point.rate for point in points)

        rounds = calm_rounds(plan.large.rounds, lambda: {p: rates(p) for p in PROTOCOLS})
    return Report(
        checks=[_gain(p, [round_[p] for round_ in rounds], chosen) for p in PROTOCOLS],
    )


def _tune(directory: Path) -> str:
    """Have a model measured; what was chosen. Raises CalledProcessError where that failed."""
    command = [str(PROGRAM), "tune", str(directory), "--budget", BUDGET]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("Chosen: ")]
    return lines[0].removeprefix("Chosen: ").partition(":")[0] if lines else "as it is"


def _gain(protocol: str, seen: list[tuple[float, ...]], chosen: str) -> Check:
    plain, better = (median(column) for column in zip(*seen, strict=True))
    return Check(
        f"saturated throughput, {CNN.name}, {protocol}, tuned, of plain scripted",
        median(after / before for before, after in seen),
        "x",
        1.2,
        at_least=True,
        note=f"{better:.1f}/s of {plain:.1f}/s ({chosen})",
    )
