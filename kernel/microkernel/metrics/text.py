"""Prometheus' text format, as Triton writes it: counters keep their plain names, and whole numbers
have no decimal point."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})
_LARGEST = 2.0**53
"""Beyond it not every whole number is a float."""


@dataclass(frozen=True, slots=True)
class Family:
    """A family of series: its name, its kind (counter, gauge, histogram or summary) and what it
    tells."""

    name: str
    kind: str
    about: str

    def text(self, series: Iterable[str]) -> str:
        """The family with the lines of its series; "" where there are none, since clients take the
        mere name for a sign that it is there."""
        lines = "".join(series)
        if not lines:
            return ""
        about = self.about.replace("\\", "\\\\").replace("\n", "\\n")
        return f"# HELP {self.name} {about}\n# TYPE {self.name} {self.kind}\n{lines}"


def labels_text(labels: Mapping[str, str]) -> str:
    """What stands between the braces, in the order of names."""
    return ",".join(f'{name}="{labels[name].translate(_ESCAPES)}"' for name in sorted(labels))


def number(value: float) -> str:
    """A value of a series or a bucket."""
    if isinstance(value, int):
        return str(value)
    if value != value:  # noqa: PLR0124 - not a number
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() and abs(value) <= _LARGEST else repr(value)


def line(name: str, labels: str, value: float) -> str:
    """One series; `labels` is what `labels_text` gives."""
    return f"{name}{{{labels}}} {number(value)}\n" if labels else f"{name} {number(value)}\n"


def ends(bounds: Iterable[float]) -> Sequence[str]:
    """The upper ends of buckets as the label `le` shows them, with that of the last one."""
    return (*map(number, bounds), "+Inf")


def histogram_lines(
    name: str, labels: str, ends: Sequence[str], counts: Iterable[int], total: float
) -> str:
    """A histogram from how many observations fell into each bucket alone."""
    start = f"{name}_bucket{{{labels}{',' if labels else ''}le="
    reached = list(accumulate(counts))
    rows = [f'{start}"{end}"}} {count}\n' for end, count in zip(ends, reached, strict=True)]
    rows += (line(f"{name}_sum", labels, total), line(f"{name}_count", labels, reached[-1]))
    return "".join(rows)


def summary_lines(
    name: str, labels: str, quantiles: Mapping[float, float], count: int, total: float
) -> str:
    """A summary from the values of its quantiles."""
    start = f"{name}{{{labels}{',' if labels else ''}quantile="
    rows = [f'{start}"{number(q)}"}} {number(value)}\n' for q, value in quantiles.items()]
    rows += (line(f"{name}_sum", labels, total), line(f"{name}_count", labels, count))
    return "".join(rows)
