"""What do the kernel, a worker's round trip and a large tensor cost without any protocol?"""

from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.calm import calm_rounds
from benchmarks.children import Child
from benchmarks.measuring import Plan
from benchmarks.report import Check, Report

TRIPS = 3000
BATCHED = 64


def kernel(models: Path, folder: Path, plan: Plan) -> Report:
    """Requests from the port to a thread worker that does nothing and back."""
    with Child("parts") as parts:
        checks = []
        for max_batch_size in (0, BATCHED):
            arguments = {"seconds": plan.small.seconds, "max_batch_size": max_batch_size}
            seen = calm_rounds(plan.small.rounds, partial(parts.call, "kernel", **arguments))
            kind = "dynamic batching" if max_batch_size else "without batching"
            checks.append(
                Check(
                    f"kernel alone, {kind}",
                    median(round_["rate"] for round_ in seen),
                    "requests/s",
                    25_000.0,
                    at_least=True,
                    note=f"{median(round_['cores'] for round_ in seen):.2f} processors busy",
                )
            )
    return Report(checks=checks)


def worker(models: Path, folder: Path, plan: Plan) -> Report:
    """A worker's round trip, and 64 MiB through it."""
    with Child("parts") as parts:
        trips, pings, bulks = zip(
            *calm_rounds(plan.small.rounds, partial(_worker_round, parts)), strict=True
        )
    trip = Check(
        "worker round trip",
        median(trips),
        "µs",
        40.0,
        note=f"a bare socket pair on the same loop takes {median(pings):.1f}",
    )
    ways = [_bulk(way, [(b[key], b["memcpy"]) for b in bulks]) for key, way in _WAYS.items()]
    return Report(checks=[trip, *ways])


def _worker_round(parts: Child) -> tuple[float, float, dict[str, float]]:
    """The round trip and the bare one in µs, and the times of 64 MiB."""
    trip, ping = (parts.call(name, count=TRIPS) * 1e6 for name in ("round_trip", "ping_pong"))
    return trip, ping, parts.call("bulk", count=5)


_WAYS = {"into": "into a process worker", "out": "out of a process worker"}


def _bulk(way: str, seen: list[tuple[float, float]]) -> Check:
    seconds, copies = (median(column) for column in zip(*seen, strict=True))
    return Check(
        f"64 MiB {way}, of one memcpy's rate",
        100 * median(copy / took for took, copy in seen),
        "%",
        50.0,
        at_least=True,
        note=f"{seconds * 1e3:.1f} ms, a memcpy takes {copies * 1e3:.1f} ms",
    )
