"""A measurement as a page of HTML that needs nothing else, with a plot of latency against
throughput. No torch."""

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from microkernel_torchscript.tuning.record import Record
from microkernel_torchscript.tuning.table import HEADER, cells, counted, summary
from microkernel_torchscript.tuning.trial import VARIANTS, Figures, Row

COLOURS = dict(zip(VARIANTS, ("#4269d0", "#efb118", "#ff725c", "#3ca951"), strict=True))
"""Of the variants, in every plot."""

_WIDTH, _HEIGHT, _MARGIN = 760, 420, 64
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; font-size: 13px }
th, td { border-bottom: 1px solid #8884; padding: .25rem .6rem; text-align: left }
tr.accepted { background: #3a35; font-weight: 600 }
svg { height: auto; max-width: 100% } svg text { fill: currentColor; font-size: 12px }
:root { color-scheme: light dark }
"""

Scale = Callable[[float], float]


def page(title: str, record: Record) -> str:
    """The whole document; `title` names the model and its version."""
    measured = record.measured
    said = "".join(f"<p>{escape(line)}</p>" for line in summary(measured))
    key = ", ".join(f"{name} {part:.40}" for name, part in record.key.items())
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{said}"
        f"{plot(measured.rows)}{_table(measured.rows)}"
        f"<p><small>{escape(record.made)}; {escape(key)}</small></p></body></html>\n"
    )


def label(row: Row) -> str:
    """A point of the plot in words."""
    one = row.candidate
    return (
        f"{one.variant}, {counted(one.instances, 'instance')} of {counted(one.threads, 'thread')}"
        f", batches of {one.batch}"
    )


def mark(row: Row) -> str:
    """A point of the plot in a few letters: instances x threads, and the size of batches."""
    one = row.candidate
    return f"{one.instances}x{one.threads} b{one.batch}"


def points(rows: Sequence[Row]) -> list[tuple[Row, Figures]]:
    """The rows that can be plotted."""
    return [
        (row, row.figures)
        for row in rows
        if row.figures is not None
        and min(row.figures.latency_ms, row.figures.items_per_second) > 0
        and row.candidate.variant in COLOURS
    ]


def plot(rows: Sequence[Row]) -> str:
    """An SVG of latency (across) against items per second (up), both logarithmic, each point with
    its `mark`; empty where nothing was measured."""
    shown = points(rows)
    if not shown:
        return ""
    across = _scale([f.latency_ms for _, f in shown], _MARGIN, _WIDTH - _MARGIN)
    up = _scale([f.items_per_second for _, f in shown], _HEIGHT - _MARGIN, _MARGIN / 2)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" '
        'aria-label="Latency against throughput">'
        + "".join(_axes([f for _, f in shown], across, up))
        + "".join(_dot(row, figures, across, up) for row, figures in shown)
        + "".join(_legend({row.candidate.variant for row, _ in shown}))
        + "</svg>"
    )


def _scale(values: Sequence[float], first: float, last: float) -> Scale:
    low, high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05
    return lambda value: first + (math.log10(value) - low) / (high - low) * (last - first)


def _ticks(values: Sequence[float]) -> Iterator[float]:
    """Round values between the smallest and the largest: 1, 2 and 5 times powers of ten."""
    for power in range(
        math.floor(math.log10(min(values))), math.floor(math.log10(max(values))) + 1
    ):
        for factor in (1, 2, 5):
            if min(values) <= (tick := factor * 10.0**power) <= max(values):
                yield tick


def _axes(shown: Sequence[Figures], across: Scale, up: Scale) -> Iterator[str]:
    floor = _HEIGHT - _MARGIN
    for tick in _ticks([figures.latency_ms for figures in shown]):
        x = across(tick)
        yield f'<path d="M{x:.1f} {_MARGIN / 2}V{floor}" stroke="#8884"/>'
        yield f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{tick:g}</text>'
    for tick in _ticks([figures.items_per_second for figures in shown]):
        y = up(tick)
        yield f'<path d="M{_MARGIN} {y:.1f}H{_WIDTH - _MARGIN}" stroke="#8884"/>'
        yield f'<text x="{_MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    middle = _WIDTH / 2
    yield f'<text x="{middle}" y="{floor + 38}" text-anchor="middle">latency p50, ms</text>'
    yield f'<text x="8" y="{_MARGIN / 2 - 12}">items/s</text>'


def _dot(row: Row, figures: Figures, across: Scale, up: Scale) -> str:
    x, y = across(figures.latency_ms), up(figures.items_per_second)
    told = f"{label(row)}: {figures.latency_ms:.3g} ms, {figures.items_per_second:.4g} items/s"
    ring = ' stroke="currentColor" stroke-width="2.5"' if row.accepted else ""
    colour, radius = COLOURS[row.candidate.variant], 9 if row.accepted else 6
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity=".8"{ring}>'
        f"<title>{escape(told)}</title></circle>"
        f'<text x="{x + 11:.1f}" y="{y + 4:.1f}">{mark(row)}</text>'
    )


def _legend(variants: set[str]) -> Iterator[str]:
    for place, variant in enumerate(v for v in COLOURS if v in variants):
        x = _MARGIN + 170 * place
        yield f'<circle cx="{x}" cy="{_HEIGHT - 10}" r="6" fill="{COLOURS[variant]}"/>'
        yield f'<text x="{x + 12}" y="{_HEIGHT - 6}">{escape(variant)}</text>'


def _table(rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in HEADER)
    body = "".join(_line(row, line) for row, line in zip(rows, cells(rows), strict=True))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _line(row: Row, line: Sequence[str]) -> str:
    marked = ' class="accepted"' if row.accepted else ""
    return f"<tr{marked}>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>"
