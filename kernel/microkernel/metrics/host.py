"""The gauges of processors and memory, from Linux' `/proc`; absent elsewhere.

Pure functions parse, a reader keeps what the next reading is compared with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from microkernel.metrics.text import Family

UTILIZATION = Family("nv_cpu_utilization", "gauge", "CPU utilization rate [0.0 - 1.0]")
MEMORY_TOTAL = Family("nv_cpu_memory_total_bytes", "gauge", "CPU total memory (RAM), in bytes")
MEMORY_USED = Family("nv_cpu_memory_used_bytes", "gauge", "CPU used memory (RAM), in bytes")

_IDLE, _IO_WAIT, _FIRST_GUEST = 3, 4, 8
"""Columns of the line `cpu`. Guests' time is counted in the columns before theirs already."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A value of a family that is about the machine; `labels` is what stands in the braces."""

    family: Family
    value: float
    labels: str = ""


class CpuTimes(NamedTuple):
    """What all processors have spent since the machine started, in ticks."""

    idle: int
    total: int


class Memory(NamedTuple):
    """The machine's memory in bytes."""

    total: int
    used: int


def cpu_times(stat: str) -> CpuTimes | None:
    """The times in the text of `/proc/stat`; None where it has none."""
    for row in stat.splitlines():
        name, *columns = row.split() or [""]
        if name == "cpu" and len(columns) > _IO_WAIT and all(map(str.isdecimal, columns)):
            ticks = [int(column) for column in columns[:_FIRST_GUEST]]
            return CpuTimes(ticks[_IDLE] + ticks[_IO_WAIT], sum(ticks))
    return None


def utilization(before: CpuTimes, after: CpuTimes) -> float | None:
    """Which part of the time between was not idle, 0 to 1; None where no time has passed."""
    total = after.total - before.total
    if total <= 0:
        return None
    idle = min(max(after.idle - before.idle, 0), total)  # io-wait may go backwards
    return 1 - idle / total


def memory(meminfo: str) -> Memory | None:
    """The memory in the text of `/proc/meminfo`; None where it does not say. What can be had by
    giving up caches does not count as used."""
    found = {}
    for row in meminfo.splitlines():
        name, _, rest = row.partition(":")
        size = rest.split()
        if size and size[0].isdecimal():
            found[name] = int(size[0]) * 1024
    total, free = found.get("MemTotal"), found.get("MemAvailable", found.get("MemFree"))
    return None if total is None or free is None else Memory(total, max(0, total - free))


class CpuReader:
    """Reads the processors and the memory. The first utilization is that since the machine started,
    each later one that since the reading before."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._before = CpuTimes(0, 0)
        self._utilization: float | None = None

    def read(self) -> Sequence[Reading]:
        """What the machine tells now. Raises OSError where a file that exists cannot be read."""
        readings = []
        if (times := cpu_times(self._text("stat"))) is not None:
            rate = utilization(self._before, times)
            self._utilization = self._utilization if rate is None else rate
            self._before = times
        if self._utilization is not None:
            readings.append(Reading(UTILIZATION, self._utilization))
        if (found := memory(self._text("meminfo"))) is not None:
            readings += [Reading(MEMORY_TOTAL, found.total), Reading(MEMORY_USED, found.used)]
        return readings

    def _text(self, name: str) -> str:
        try:
            return (self._proc / name).read_text()
        except FileNotFoundError:
            return ""
