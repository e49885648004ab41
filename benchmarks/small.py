"""What does the server add to a small request, and how many of them can it answer?"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeAlias

from benchmarks.calm import calm_rounds
from benchmarks.cases import SMALL
from benchmarks.children import Child
from benchmarks.measuring import Pace, Plan, Target, measure, process_cpu
from benchmarks.report import Check, Point, Report, median_point
from benchmarks.repository import add_model
from benchmarks.serving import RunningServer
from benchmarks.wire import PROTOCOLS, write_requests
from microkernel.host import processors

CONCURRENCIES = (1, 8, 32)
ECHO = "bare echo"
ADDED = {"empty": 200.0, "mlp": 200.0, "empty_thread": 100.0}
"""Budgets of added latency in µs."""

CALLED = {"empty": "empty", "mlp": "mlp", "empty_thread": "empty"}
"""Which network's bare call belongs to them."""


def small(models: Path, folder: Path, plan: Plan) -> Report:
    """Measure every small model over every protocol, next to bare echo servers and bare calls."""
    pace = plan.small
    for case in SMALL:
        add_model(folder / "models", case, models)
        write_requests(case, folder)
    with ExitStack() as stack:
        server = stack.enter_context(RunningServer(folder / "models"))
        load = stack.enter_context(Child("load"))
        targets = [Target(c.model, server.ports, folder / c.model, server.cpu) for c in SMALL]
        echoes = {p: _echo(stack, load, targets[0], p, pace) for p in PROTOCOLS}
        bare = {n: _bare(stack, n, models) for n in set(CALLED.values())}
        bench = _Bench(load, echoes, targets, bare)
        rounds = {
            (protocol, concurrency): calm_rounds(
                pace.rounds, partial(bench.round, protocol, concurrency, pace)
            )
            for protocol in PROTOCOLS
            for concurrency in CONCURRENCIES
        }
    return _report(rounds)


@dataclass(frozen=True, slots=True)
class _Round:
    """What every target did in one round, and the median µs of the bare calls."""

    points: Mapping[str, Point]
    calls: Mapping[str, float]

    def added(self, model: str) -> float:
        """The latency in µs that is neither the echo's nor the bare call's."""
        return self.points[model].p50 - self.points[ECHO].p50 - self.calls[CALLED[model]]


@dataclass(frozen=True, slots=True)
class _Bench:
    """Everything that a round measures."""

    load: Child
    echoes: Mapping[str, Target]
    targets: Sequence[Target]
    bare: Mapping[str, Child]

    def round(self, protocol: str, concurrency: int, pace: Pace) -> _Round:
        """Every target once, one shortly after the other."""
        targets = (self.echoes[protocol], *self.targets)
        seen = [measure(self.load, target, protocol, concurrency, pace)[0] for target in targets]
        calls = {name: _call(model) for name, model in self.bare.items()}
        return _Round({point.target: point for point in seen}, calls)


def _echo(stack: ExitStack, load: Child, like: Target, protocol: str, pace: Pace) -> Target:
    """A bare server whose answers are as long as the server's to the same request."""
    _, size = measure(load, like, protocol, 1, pace)
    child = stack.enter_context(Child("yardsticks", protocol, str(size)))
    ports = {protocol: child.call("port")}
    return Target(ECHO, ports, like.request, process_cpu(child.pid))


def _bare(stack: ExitStack, network: str, models: Path) -> Child:
    file = str(models / f"{network}.pt")
    return stack.enter_context(Child("yardsticks", "model", network, file, str(processors())))


def _call(model: Child) -> float:
    """The median µs of a bare call with one row."""
    seen = model.call("run", rows=1, warm_up=0.05, seconds=0.1)
    return float(seen["p50"]) * 1e6


Rounds: TypeAlias = Mapping[tuple[str, int], Sequence[_Round]]


def _report(rounds: Rounds) -> Report:
    points = {
        (name, *key): median_point([round_.points[name] for round_ in seen])
        for key, seen in rounds.items()
        for name in seen[0].points
    }
    checks = [
        _added(rounds[protocol, 1], model, protocol) for protocol in PROTOCOLS for model in ADDED
    ]
    checks += [_cpu(points[model, "http", 8]) for model in ("empty", "mlp")]
    checks += [
        _share(points, model, protocol)
        for protocol in PROTOCOLS
        for model in ("empty", "empty_thread", "empty_batched")
    ]
    return Report(points=list(points.values()), checks=checks)


def _added(rounds: Sequence[_Round], model: str, protocol: str) -> Check:
    ours, echo = (median(r.points[name].p50 for r in rounds) for name in (model, ECHO))
    call = median(r.calls[CALLED[model]] for r in rounds)
    return Check(
        f"added latency, {model}, {protocol}, concurrency 1",
        median(r.added(model) for r in rounds),
        "µs",
        ADDED[model],
        note=f"{ours:.0f} less {echo:.0f} of the echo and {call:.1f} of the bare call",
    )


def _cpu(point: Point) -> Check:
    what = f"server CPU per request, {point.target}, http, concurrency 8"
    return Check(what, point.cpu, "µs", 200.0, note="all processes, user and system")


def _share(points: Mapping[tuple[str, str, int], Point], model: str, protocol: str) -> Check:
    """The best rate over the concurrencies, as a share of the echo's best; the budget is for the
    plain model over HTTP."""
    ours, echo = (_best(points, name, protocol) for name in (model, ECHO))
    return Check(
        f"request rate, {model}, {protocol}, of the bare echo's",
        100 * ours / echo,
        "%",
        65.0 if (model, protocol) == ("empty", "http") else None,
        at_least=True,
        note=f"{ours:,.0f}/s of {echo:,.0f}/s",
    )


def _best(points: Mapping[tuple[str, str, int], Point], name: str, protocol: str) -> float:
    rates: Sequence[float] = [points[name, protocol, c].rate for c in CONCURRENCIES]
    return max(rates)
