"""How much of a large model's throughput is left when it is served?"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.calm import calm_rounds
from benchmarks.cases import LARGE, Case, Network
from benchmarks.children import Child
from benchmarks.measuring import Plan, Target, measure
from benchmarks.report import Check, Point, Report, median_point
from benchmarks.repository import add_model
from benchmarks.serving import RunningServer
from benchmarks.wire import PROTOCOLS, write_requests
from microkernel.host import processors

ROWS = (1, 8)
SATURATED = 32


@dataclass(frozen=True, slots=True)
class Loop:
    """How bare loops are run: so many processes with so many threads each, and rows per call."""

    processes: int
    threads: int
    rows: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads} threads, batch {self.rows}"


def loops(available: int) -> Iterator[Loop]:
    """The loops worth trying on so many processors: all of them used, by one to all processes."""
    for processes in range(1, available + 1):
        if available % processes == 0:
            for rows in ROWS:
                yield Loop(processes, available // processes, rows)


class BareLoops:
    """Bare loops over one network, each in as many processes as it wants."""

    def __init__(self, stack: ExitStack, network: Network, file: Path) -> None:
        self._stack = stack
        self._network = network
        self._file = file
        self._children: dict[int, list[Child]] = {}

    def run(self, loop: Loop, warm_up: float, seconds: float) -> float:
        """Rows per second of all processes together."""
        children = self._children.setdefault(loop.threads, [])
        while len(children) < loop.processes:
            words = ("model", self._network.name, str(self._file), str(loop.threads))
            children.append(self._stack.enter_context(Child("yardsticks", *words)))
        for child in children:
            child.begin("run", rows=loop.rows, warm_up=warm_up, seconds=seconds)
        return float(sum(child.answer()["rate"] for child in children))


def large(models: Path, folder: Path, plan: Plan) -> Report:
    """Measure every large model whose file could be made."""
    report = Report()
    for network in LARGE:
        if (models / f"{network.name}.pt").exists():
            report.add(_network(network, models, folder, plan))
        else:
            report.remarks.append(f"{network.name} was left out: `make bench` installs its weights")
    return report


def _network(network: Network, models: Path, folder: Path, plan: Plan) -> Report:
    with ExitStack() as stack:
        bare = BareLoops(stack, network, models / f"{network.name}.pt")
        tried = {loop: bare.run(loop, 0.5, plan.large.seconds / 4) for loop in loops(processors())}
        best = max(tried, key=lambda loop: tried[loop])
        # The server is configured as the best loop was run.
        case = Case(network.name, network, best.rows, best.processes)
        server = stack.enter_context(RunningServer(_repository(case, models, folder)))
        target = Target(case.model, server.ports, folder / case.model, server.cpu)
        load = stack.enter_context(Child("load"))
        return _compare(bare, best, load, target, plan)


def _repository(case: Case, models: Path, folder: Path) -> Path:
    """A repository with this model alone; its requests are written beside it."""
    repository = folder / f"with_{case.model}"
    add_model(repository, case, models)
    write_requests(case, folder)
    return repository


@dataclass(frozen=True, slots=True)
class _Round:
    """Rows per second of the bare loop, and what the server did over each protocol."""

    bare: float
    points: Mapping[str, Point]


def _compare(bare: BareLoops, best: Loop, load: Child, target: Target, plan: Plan) -> Report:
    """Bare loop and server in turn, so that both see the same machine."""
    pace = plan.large

    def one(protocol: str, concurrency: int) -> Point:
        return measure(load, target, protocol, concurrency, pace)[0]

    def saturated() -> _Round:
        rate = bare.run(best, pace.warm_up, pace.seconds)
        return _Round(rate, {protocol: one(protocol, SATURATED) for protocol in PROTOCOLS})

    rounds = calm_rounds(pace.rounds, saturated)
    light = (1, 8) if plan.every_concurrency else ()
    points = [one(protocol, concurrency) for protocol in PROTOCOLS for concurrency in light]
    points += [median_point([r.points[protocol] for r in rounds]) for protocol in PROTOCOLS]
    return Report(
        points=points,
        checks=[_share(rounds, target.name, protocol, best) for protocol in PROTOCOLS],
    )


def _share(rounds: Sequence[_Round], model: str, protocol: str, best: Loop) -> Check:
    ours = median(r.points[protocol].rate for r in rounds)
    bare = median(r.bare for r in rounds)
    return Check(
        f"saturated throughput, {model}, {protocol}, of the best bare loop",
        100 * median(r.points[protocol].rate / r.bare for r in rounds),
        "%",
        97.0,
        at_least=True,
        note=f"{ours:.1f}/s of {bare:.1f}/s ({best})",
    )
