"""What does the response cache gain, and what does it cost where it finds nothing?

A small model is served once as it is and once with each cache, of which every request but the first
is a hit. What a hit and a miss take of the event loop is measured without a server.
"""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.calm import calm_rounds
from benchmarks.cases import MLP, Case
from benchmarks.children import Child
from benchmarks.measuring import Pace, Plan, Target, measure
from benchmarks.report import Check, Point, Report, median_point
from benchmarks.repository import add_model
from benchmarks.serving import RunningServer, free_ports
from benchmarks.wire import PROTOCOLS, write_requests
from microkernel import Cache, InferRequest, ModelConfig, ModelOutput, Tensor
from microkernel.cache_config import parse_cache_config
from microkernel.caching.lookups import ModelCache
from microkernel.caching.opening import open_cache
from microkernel.plugins import discover

CONCURRENCY = 8
LOCAL = ["local,size=268435456"]
SIZES = (64, 1 << 18)
"""Bytes of the one input and of the one output."""

_CONFIG = ModelConfig("m", output=(ModelOutput(name="y", data_type="TYPE_UINT8", dims=(-1,)),))


def cache(models: Path, folder: Path, plan: Plan) -> Report:
    """A small model over every protocol with and without a cache, and the caches alone."""
    case = Case("mlp", MLP)
    add_model(folder / "models", case, models)
    write_requests(case, folder)
    config = folder / "models" / case.model / "config.pbtxt"
    config.write_text(config.read_text() + "response_cache { enable: true }\n")
    with ExitStack() as stack:
        caches = {"local": LOCAL}
        if (redis := stack.enter_context(_redis(folder))) is not None:
            caches["redis"] = redis
        report = _served(folder / case.model, folder / "models", caches, plan.small)
        for name, entries in caches.items():
            report.checks += _alone(name, entries, plan.small.rounds)
    if "redis" not in caches:
        report.remarks.append("Redis was left out: redis-server is missing.")
    return report


@contextmanager
def _redis(folder: Path) -> Iterator[list[str] | None]:
    """What `--cache-config` says of a Redis that runs meanwhile; None where there is none."""
    binary = shutil.which("redis-server")
    if binary is None:
        yield None
        return
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        next(line for line in process.stdout if "Ready to accept connections" in line)
        yield ["redis,host=127.0.0.1", f"redis,port={port}"]
    finally:
        process.kill()
        process.communicate()


def _served(request: Path, repository: Path, caches: dict[str, list[str]], pace: Pace) -> Report:
    with ExitStack() as stack:
        load = stack.enter_context(Child("load"))
        targets = []
        for name, entries in {"": list[str](), **caches}.items():
            flags = [f"--cache-config={entry}" for entry in entries]
            server = stack.enter_context(RunningServer(repository, *flags))
            what = f"mlp, hits of {name}" if name else "mlp, no cache"
            targets.append(Target(what, server.ports, request, server.cpu))
        seen = {
            protocol: calm_rounds(pace.rounds, partial(_round, load, targets, protocol, pace))
            for protocol in PROTOCOLS
        }
    points = [
        median_point([round_[index] for round_ in rounds])
        for rounds in seen.values()
        for index in range(len(targets))
    ]
    return Report(points=points)


def _round(load: Child, targets: list[Target], protocol: str, pace: Pace) -> list[Point]:
    return [measure(load, target, protocol, CONCURRENCY, pace)[0] for target in targets]


def _alone(name: str, entries: list[str], rounds: int) -> list[Check]:
    """What a hit and a miss take, one request after the other."""
    checks = []
    for size in SIZES:
        seen = calm_rounds(rounds, lambda size=size: asyncio.run(_times(entries, size)))  # type: ignore[misc]
        hits, misses = (median(column) * 1e6 for column in zip(*seen, strict=True))
        label = f"{size} bytes" if size < 1024 else f"{size >> 10} KiB"
        checks.append(Check(f"a hit of {name}, {label} in and out", hits, "µs"))
        checks.append(Check(f"a miss of {name}, {label} in and out", misses, "µs"))
    return checks


async def _times(entries: list[str], size: int) -> tuple[float, float]:
    """Seconds per hit and per miss, the keeping of the response included."""
    choice = parse_cache_config(entries, 0)
    assert choice is not None
    made: Cache = open_cache(choice, discover(), {})
    await made.start()
    try:
        kept = ModelCache(made, _CONFIG, time.monotonic_ns(), b"")
        outputs = (Tensor.from_numpy("y", np.zeros(size, np.uint8)),)
        count = 2000 if size < 1024 else 200
        requests = [_request(size, number) for number in range(count)]
        began = time.perf_counter()
        for request in requests:
            await (await kept.look(request)).keep(outputs)
        halfway = time.perf_counter()
        found = [(await kept.look(request)).outputs for request in requests]
        ended = time.perf_counter()
    finally:
        await made.close()
    if None in found:
        raise RuntimeError("the cache is too small for this benchmark")
    return (ended - halfway) / count, (halfway - began) / count


def _request(size: int, number: int) -> InferRequest:
    data: Any = np.zeros(size, np.uint8)
    data[:8] = list(number.to_bytes(8, "little"))
    return InferRequest("m", (Tensor.from_numpy("x", data),))
