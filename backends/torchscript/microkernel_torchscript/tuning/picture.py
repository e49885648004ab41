"""The plot of a measurement as a PNG, where matplotlib is installed. No torch."""

from collections.abc import Sequence
from pathlib import Path

from microkernel_torchscript.tuning.page import COLOURS, mark, points
from microkernel_torchscript.tuning.trial import Row

HOW = "there is no PNG: pip install 'microkernel[tune]' brings matplotlib"
"""What to say where `draw` cannot."""


def draw(path: Path, title: str, rows: Sequence[Row]) -> bool:
    """Write the plot of latency against items per second; False where matplotlib is missing or
    nothing was measured. Raises OSError where the file cannot be written."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - optional
    except ImportError:
        return False
    shown = points(rows)
    if not shown:
        return False
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", yscale="log", xlabel="latency p50, ms", ylabel="items/s", title=title
    )
    for variant, colour in COLOURS.items():
        own = [(row, f) for row, f in shown if row.candidate.variant == variant]
        x, y = [f.latency_ms for _, f in own], [f.items_per_second for _, f in own]
        sizes = [150 if row.accepted else 45 for row, _ in own]
        edges = ["black" if row.accepted else colour for row, _ in own]
        if own:
            axes.scatter(x, y, s=sizes, c=colour, edgecolors=edges, label=variant)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    for row, figures in shown:
        place = (figures.latency_ms, figures.items_per_second)
        axes.annotate(mark(row), place, xytext=(7, -3), textcoords="offset points", fontsize=7)
    figure.savefig(path, format="png")
    return True
