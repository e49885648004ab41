"""What came out? Points, checks against the budget, and both as tables and as JSON."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from microkernel.host import processors


@dataclass(frozen=True, slots=True)
class Point:
    """One target under one load: answers per second, latencies, the processor time that the target
    and the load generator spent per request, all in microseconds."""

    target: str
    protocol: str
    concurrency: int
    rate: float
    p50: float
    p99: float
    cpu: float
    load_cpu: float


@dataclass(frozen=True, slots=True)
class Check:
    """A measured value beside its budget; `at_least` tells the direction. A budget of None makes it
    a remark without a verdict. `note` says what it was made of."""

    what: str
    value: float
    unit: str
    budget: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """PASS, MISS, or nothing where there is no budget."""
        if self.budget is None:
            return ""
        good = self.value >= self.budget if self.at_least else self.value <= self.budget
        return "PASS" if good else "MISS"


def this_machine() -> str:
    """The machine and what runs on it, in a line."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    kernel = f"{platform.system()} {platform.release()}"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "grpcio", "torch"))
    python = f"Python {platform.python_version()}"
    return f"{processors()} processors ({model}), {kernel}, {python}, {libraries}"


@dataclass(slots=True)
class Report:
    """All that one run found out, in the order in which it was found. `files` are to be written
    beside the report: their contents by their names."""

    points: list[Point] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    machine: str = field(default_factory=this_machine)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def add(self, other: "Report") -> None:
        """Append what another part of the run found."""
        self.points += other.points
        self.checks += other.checks
        self.remarks += other.remarks
        self.files |= other.files

    def text(self) -> str:
        """The report as Markdown tables."""
        lines = [f"{self.machine}; {self.began:%Y-%m-%d %H:%M} UTC", ""]
        if self.checks:
            lines += [*_table(_CHECK_HEADS, [_check_row(c) for c in self.checks]), ""]
        if self.points:
            lines += [*_table(_POINT_HEADS, [_point_row(p) for p in self.points]), ""]
        return "\n".join([*lines, *self.remarks])

    def write(self, file: Path) -> None:
        """The report as JSON, and its files beside it: seconds, bytes and the like are in the units
        of the tables."""
        document = {
            "machine": self.machine,
            "began": self.began.isoformat(),
            "checks": [asdict(check) | {"verdict": check.verdict} for check in self.checks],
            "points": [asdict(point) for point in self.points],
            "remarks": self.remarks,
        }
        file.write_text(json.dumps(document, indent=1) + "\n")
        for name, text in self.files.items():
            file.with_name(name).write_text(text)


_CHECK_HEADS = ("what", "measured", "budget", "", "made of")
_POINT_HEADS = (
    *("target", "protocol", "concurrency", "requests/s", "p50 µs", "p99 µs"),
    *("CPU µs/request", "load generator's"),
)


def _check_row(check: Check) -> tuple[str, ...]:
    sign = "≥" if check.at_least else "≤"
    budget = "" if check.budget is None else f"{sign} {_number(check.budget)} {check.unit}"
    value = f"{_number(check.value)} {check.unit}"
    return (check.what, value.strip(), budget.strip(), check.verdict, check.note)


def _point_row(point: Point) -> tuple[str, ...]:
    figures = (point.rate, point.p50, point.p99, point.cpu, point.load_cpu)
    return (
        point.target,
        point.protocol,
        str(point.concurrency),
        *(_number(figure) for figure in figures),
    )


def _number(value: float) -> str:
    """Three digits or so."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    lines = [heads, ["-" * width for width in widths], *rows]
    return [
        f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in lines
    ]


def median_point(points: Sequence[Point]) -> Point:
    """The rounds of one point as one: the median of each figure."""
    first = points[0]
    names = ("rate", "p50", "p99", "cpu", "load_cpu")
    figures = {name: median(getattr(point, name) for point in points) for name in names}
    return Point(first.target, first.protocol, first.concurrency, **figures)
