"""How is one point measured? A load is put on a target, whose processor time is read before and
after."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.children import Child
from benchmarks.report import Point
from benchmarks.serving import cpu_of


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a run takes: rounds per point, half of which count, and seconds per round and before
    it counts."""

    rounds: int
    seconds: float
    warm_up: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The pace of a run. `large` is for models whose batches take as long as hundreds of small
    requests; `every_concurrency` is off where those are only measured saturated."""

    small: Pace
    large: Pace
    every_concurrency: bool


THOROUGH = Plan(Pace(8, 0.5, 0.15), Pace(4, 4.0, 1.0), every_concurrency=True)
QUICK = Plan(Pace(1, 0.4, 0.15), Pace(1, 2.5, 1.0), every_concurrency=False)


@dataclass(frozen=True, slots=True)
class Target:
    """Something that answers: its name in the report, its ports per protocol, the request that
    goes to it as a path without suffix, and what tells its processor seconds so far."""

    name: str
    ports: dict[str, int]
    request: Path
    cpu: Callable[[], float]


def measure(
    load: Child, target: Target, protocol: str, concurrency: int, pace: Pace
) -> tuple[Point, int]:
    """One round, and the size of the answers' bodies."""
    before = target.cpu()
    seen = load.call(
        "measure",
        protocol=protocol,
        port=target.ports[protocol],
        files=[str(target.request.with_suffix(f".{protocol}"))],
        concurrency=concurrency,
        warm_up=pace.warm_up,
        seconds=pace.seconds,
    )
    each = 1e6 / seen["total"]
    point = Point(
        target.name,
        protocol,
        concurrency,
        rate=seen["rate"],
        p50=seen["p50"] * 1e6,
        p99=seen["p99"] * 1e6,
        cpu=(target.cpu() - before) * each,
        load_cpu=seen["cpu"] * each,
    )
    return point, int(seen["answer_bytes"])


def process_cpu(pid: int) -> Callable[[], float]:
    """What tells the processor seconds of one process."""
    process = psutil.Process(pid)
    return lambda: cpu_of(process)
