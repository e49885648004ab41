"""Does the batcher find its queue delay as well as somebody who knows the load? Copies of a model
with fixed delays, and one that finds its own.

One model sleeps, which stands for a GPU, the other computes. Clients either wait for their answers
before they ask again, or come at random.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from benchmarks.calm import calm_rounds
from benchmarks.cases import WIDE, Case
from benchmarks.children import Child
from benchmarks.drawing import Panel, draw
from benchmarks.measuring import Plan
from benchmarks.report import Check, Report
from benchmarks.repository import add_model
from benchmarks.serving import RunningServer
from benchmarks.wire import write_requests

LARGEST = 16
ADAPTIVE = "adaptive"
DELAYS = {"0 ms": 0, "1 ms": 1_000, "5 ms": 5_000, "20 ms": 20_000}
"""Microseconds."""

CLIENTS = (1, 4, 8, 16, 32)
LOADS = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95)
"""Of what the model can do with full batches."""

SATURATED = 64
LEAST = 1000
"""Answers without which a 99th percentile tells little."""

LEAST_THROUGHPUT, MOST_P99 = 97.0, 110.0
"""Percent of the best fixed delay's."""

SLEEPING = """
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.010 + 0.0002 * len(requests))
        inputs = [pb_utils.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y__0", x)]) for x in inputs]
"""
_ON = 'parameters { key: "ADAPTIVE_QUEUE_DELAY" value { string_value: "true" } }\n'
_ONE_THREAD = 'parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "1" } }\n'

Loads: TypeAlias = Mapping[str, Mapping[str, float]]
"""What was seen of each batcher under one load; see `benchmarks.load.Load`."""


@dataclass(slots=True)
class Curves:
    """What was seen of the copies of one model: by the number of clients that wait, and by the rate
    of those who come at random."""

    model: str
    waiting: dict[int, Loads] = field(default_factory=dict)
    coming: dict[float, Loads] = field(default_factory=dict)


def adaptive(models: Path, folder: Path, plan: Plan) -> Report:
    """Both models thoroughly; the one that sleeps under a few loads where it should be quick."""
    curves = [_measured(models, folder / name, name, plan) for name in _models(plan)]
    report = Report(files={"adaptive.csv": _table(curves)})
    for each in curves:
        report.checks += _checks(each)
    try:
        report.files["adaptive.svg"] = draw([_panels(each) for each in curves], ADAPTIVE)
    except ImportError:
        report.remarks.append("The plot of adaptive delays was left out: matplotlib is missing.")
    return report


def _models(plan: Plan) -> Sequence[str]:
    return ("sleeping", "computing") if plan.every_concurrency else ("sleeping",)


def _measured(models: Path, folder: Path, model: str, plan: Plan) -> Curves:
    folder.mkdir()
    for batcher in (*DELAYS, ADAPTIVE):
        _add(folder, model, batcher, models)
    with (
        RunningServer(folder / "models") as server,
        Child("load") as waiting,
        Child("random_load") as coming,
    ):
        bench = _Bench(server.ports["http"], folder, waiting, coming, plan)
        return bench.curves(model)


def _add(folder: Path, model: str, batcher: str, models: Path) -> None:
    case = Case(_name(batcher), WIDE, max_batch_size=LARGEST)
    add_model(folder / "models", case, models)
    write_requests(case, folder)
    place = folder / "models" / case.model
    text = case.config().replace("dynamic_batching { }\n", _batching(batcher))
    if model == "sleeping":
        (place / "1" / "model.pt").unlink()
        (place / "1" / "model.py").write_text(SLEEPING)
        text = text.replace('platform: "pytorch_libtorch"', 'backend: "python"')
    else:
        text += _ONE_THREAD
    (place / "config.pbtxt").write_text(text)


def _name(batcher: str) -> str:
    return batcher.replace(" ", "")


def _batching(batcher: str) -> str:
    if batcher == ADAPTIVE:
        return "dynamic_batching { }\n" + _ON
    return f"dynamic_batching {{ max_queue_delay_microseconds: {DELAYS[batcher]} }}\n"


@dataclass(frozen=True, slots=True)
class _Bench:
    """Everything that the copies of one model are measured with."""

    port: int
    folder: Path
    waiting: Child
    coming: Child
    plan: Plan

    def curves(self, model: str) -> Curves:
        """All loads, each on one copy shortly after the other."""
        thorough = self.plan.every_concurrency
        rounds = max(self.plan.large.rounds // 2, 1)
        curves = Curves(model)
        for clients in CLIENTS if thorough else CLIENTS[1:4]:
            curves.waiting[clients] = _medians(calm_rounds(rounds, partial(self._wait, clients)))
        most = median(self._waiting("0 ms", SATURATED)["rate"] for _ in range(3))
        for load in LOADS if thorough else LOADS[1:-1:2]:
            rate = load * most
            curves.coming[rate] = _medians(calm_rounds(rounds, partial(self._come, rate)))
        return curves

    def _wait(self, clients: int) -> Loads:
        return {batcher: self._waiting(batcher, clients) for batcher in (*DELAYS, ADAPTIVE)}

    def _waiting(self, batcher: str, clients: int) -> Mapping[str, float]:
        pace = self.plan.large
        seen: dict[str, float] = self.waiting.call(
            "measure",
            protocol="http",
            port=self.port,
            files=[self._request(batcher)],
            concurrency=clients,
            warm_up=pace.warm_up / 2,
            seconds=pace.seconds / 2,
        )
        return seen

    def _come(self, rate: float) -> Loads:
        return {batcher: self._coming(batcher, rate) for batcher in (*DELAYS, ADAPTIVE)}

    def _coming(self, batcher: str, rate: float) -> Mapping[str, float]:
        pace = self.plan.large
        seen: dict[str, float] = self.coming.call(
            "measure",
            port=self.port,
            file=self._request(batcher),
            rate=rate,
            warm_up=pace.warm_up,
            seconds=max(pace.seconds, LEAST / rate),
        )
        return seen

    def _request(self, batcher: str) -> str:
        return str(self.folder / f"{_name(batcher)}.http")


def _medians(rounds: Sequence[Loads]) -> Loads:
    return {
        batcher: {
            figure: median(round_[batcher][figure] for round_ in rounds)
            for figure in ("rate", "p50", "p99")
        }
        for batcher in (*DELAYS, ADAPTIVE)
    }


def _checks(curves: Curves) -> list[Check]:
    """How each batcher does beside the best fixed delay at every load; its worst counts."""
    checks = []
    for batcher in (ADAPTIVE, *DELAYS):
        own = batcher == ADAPTIVE
        rates = [_percent(loads, batcher, "rate", max) for loads in curves.waiting.values()]
        p99s = [_percent(loads, batcher, "p99", min) for loads in curves.coming.values()]
        checks += [
            Check(
                f"{batcher}, throughput of the best fixed delay, {curves.model}",
                min(rates),
                "%",
                LEAST_THROUGHPUT if own else None,
                at_least=True,
                note=f"{_list(rates)} with {_list(curves.waiting)} clients",
            ),
            Check(
                f"{batcher}, p99 of the best fixed delay, {curves.model}",
                max(p99s),
                "%",
                MOST_P99 if own else None,
                note=f"{_list(p99s)} with {_list(curves.coming)} requests/s at random",
            ),
        ]
    return checks


def _percent(loads: Loads, batcher: str, figure: str, best: Any) -> float:
    return float(100 * loads[batcher][figure] / best(loads[delay][figure] for delay in DELAYS))


def _list(numbers: Any) -> str:
    return ", ".join(f"{number:.0f}" for number in numbers)


def _panels(curves: Curves) -> list[Panel]:
    return [
        Panel(
            f"{curves.model}: clients that wait",
            "clients",
            "answers per second",
            _lines(curves.waiting, "rate", 1),
        ),
        Panel(
            f"{curves.model}: requests at random",
            "requests per second",
            "99th percentile of the latency, ms",
            _lines(curves.coming, "p99", 1e3),
            logarithmic=True,
        ),
    ]


def _lines(
    curve: Mapping[Any, Loads], figure: str, scale: float
) -> dict[str, list[tuple[float, float]]]:
    return {
        batcher: [(load, scale * seen[batcher][figure]) for load, seen in curve.items()]
        for batcher in (*DELAYS, ADAPTIVE)
    }


def _table(curves: Sequence[Curves]) -> str:
    """Everything that was seen, as CSV: rates per second, latencies in milliseconds."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["model", "load", "batcher", "rate", "p50_ms", "p99_ms"])
    for each in curves:
        seen: list[tuple[str, Loads]] = [
            *((f"{clients} clients", loads) for clients, loads in each.waiting.items()),
            *((f"{rate:.0f} requests/s", loads) for rate, loads in each.coming.items()),
        ]
        for load, loads in seen:
            for batcher, f in loads.items():
                figures = (f["rate"], 1e3 * f["p50"], 1e3 * f["p99"])
                table.writerow([each.model, load, batcher, *(f"{x:.2f}" for x in figures)])
    return text.getvalue()
