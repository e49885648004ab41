"""What a server and its workers take, and whether it grows."""

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from server_harness import PATIENCE, Running

MIB = 1 << 20
_PAUSE = 0.05


@dataclass(frozen=True, slots=True)
class Sample:
    """At a moment in seconds: resident bytes and threads of the server, its descriptors by what
    they are, the `blocks` of shared memory it works with and all others; resident bytes of the
    processes that are watched besides; how many processes the server has started."""

    moment: float
    memory: int
    threads: int
    blocks: int
    descriptors: int
    workers: int
    processes: int


def sample(server: Running, workers: Sequence[psutil.Process]) -> Sample:
    """Measure now. Fails where one of the workers has ended."""
    process = psutil.Process(server.process.pid)
    targets = _descriptors(process.pid)
    blocks = sum(target.startswith("/memfd:") for target in targets)
    return Sample(
        time.monotonic(),
        process.memory_info().rss,
        process.num_threads(),
        blocks,
        len(targets) - blocks,
        sum(worker.memory_info().rss for worker in workers),
        len(server.processes()),
    )


def _descriptors(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since it was listed
            found.append(str(link.readlink()))
    return found


def settled(server: Running, workers: Sequence[psutil.Process], like: Sample) -> Sample:
    """Measure when the server has as many processes and no more descriptors than `like` says, at
    the latest after a while."""
    end = time.monotonic() + PATIENCE
    while True:
        now = sample(server, workers)
        same = now.processes == like.processes and now.descriptors <= like.descriptors
        if same or time.monotonic() > end:
            return now
        time.sleep(_PAUSE)


def slope(moments: Sequence[float], values: Sequence[int]) -> float:
    """By how much values grow in a minute, by the line that fits them best."""
    return 60 * statistics.linear_regression(moments, values).slope


def report(samples: Sequence[Sample]) -> str:
    """The measures in a table, ten lines of them at most."""
    lines = [
        f"{each.moment - samples[0].moment:7.0f} {each.memory / MIB:11.1f} "
        f"{each.descriptors:4} {each.blocks:7} {each.threads:8} {each.workers / MIB:12.1f} "
        f"{each.processes:10}"
        for each in samples[:: max(1, len(samples) // 10)]
    ]
    return "\n".join(["seconds  server MiB  fds  blocks  threads  workers MiB  processes", *lines])
