"""What do the curves look like? An SVG of panels with a line for each series."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line: TypeAlias = Sequence[tuple[float, float]]
"""Points, each an x and a y."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A title, what the axes say, and the lines by their names; `logarithmic` is about the y
    axis."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Line]
    logarithmic: bool = False


def draw(rows: Sequence[Sequence[Panel]], highlighted: str) -> str:
    """The panels as an SVG, the line of that name before all others. Raises ImportError without
    matplotlib."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text as text, and the same ids on every run.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "panels", "font.size": 9}):
        columns = max(map(len, rows))
        figure = Figure(figsize=(4.6 * columns, 3.4 * len(rows)), layout="constrained")
        for number, panel in enumerate(panel for row in rows for panel in row):
            _fill(figure.add_subplot(len(rows), columns, number + 1), panel, highlighted)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue()


def _fill(axes: "Axes", panel: Panel, highlighted: str) -> None:
    axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
    for name, line in panel.lines.items():
        special = name == highlighted
        width, depth = (2.2, 3) if special else (1.2, 2)
        color = "black" if special else None
        xs, ys = zip(*line, strict=True)
        axes.plot(xs, ys, "o-", ms=3, label=name, color=color, lw=width, zorder=depth)
    if panel.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
