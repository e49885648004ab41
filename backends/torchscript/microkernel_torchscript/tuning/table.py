"""A measurement as people read it: the lines of a table and the sentence below it. No torch."""

from collections.abc import Sequence

from microkernel_torchscript.tuning.record import Measured
from microkernel_torchscript.tuning.trial import PLAIN, Candidate, Figures, Row

HEADER = (
    *("variant", "threads", "instances", "batch", "latency p50", "items/s", "CPU/item"),
    *("speed-up", "CPU gain", "max difference", "accepted"),
)
"""Speed-up is a factor of items per second, and CPU gain one of processor time per item. A single
thread is held against one of the plain module with the same batches, and what has more against the
plain module as it is usually served: these were measured in the same rounds."""


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """A text for every column of every row."""
    plain = {
        row.candidate: row.figures
        for row in rows
        if row.figures is not None and row.candidate.variant == PLAIN
    }
    usual = max((c for c in plain if c.instances == c.batch == 1), key=_threads, default=None)
    return [_cells(row, plain.get(_held_against(row.candidate, usual))) for row in rows]


def _threads(candidate: Candidate) -> int:
    return candidate.threads


def _held_against(candidate: Candidate, usual: Candidate | None) -> Candidate:
    single = candidate.threads == candidate.instances == 1
    return Candidate(PLAIN, batch=candidate.batch) if single or usual is None else usual


def text_table(rows: Sequence[Row]) -> str:
    """The table in columns of a terminal."""
    lines = [HEADER, *cells(rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def summary(measured: Measured) -> list[str]:
    """What was decided, why, how close results are, and what there was no time for."""
    decision = measured.decision
    choice = decision.choice
    told = [
        f"Chosen: {choice.variant}, {counted(choice.instances, 'instance')} of "
        f"{counted(choice.threads, 'thread')}, batches of {choice.batch}: {decision.reason}.",
        f"Its results differ by at most {decision.difference:.3g} from the plain module's.",
    ]
    if measured.tolerance:
        told.append(f"Accepted is what is as close as this ({measured.tolerance}).")
    told += [f"Left out: {entry}." for entry in measured.left_out]
    return [*told, f"Measured for {measured.seconds:g} s."]


def counted(count: int, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _cells(row: Row, plain: Figures | None) -> tuple[str, ...]:
    candidate = row.candidate
    named = (candidate.variant, *map(str, (candidate.threads, candidate.instances)))
    return (*named, str(candidate.batch), *_measured(row.figures, plain), *_judged(row))


def _measured(figures: Figures | None, plain: Figures | None) -> tuple[str, ...]:
    if figures is None:
        return ("-",) * 5
    gains = ("-", "-")
    if plain is not None and figures.cpu_ms > 0:
        speed = figures.items_per_second / plain.items_per_second
        gains = (f"{speed:.2f}", f"{plain.cpu_ms / figures.cpu_ms:.2f}")
    return (
        f"{figures.latency_ms:.3g} ms",
        f"{figures.items_per_second:.4g}",
        f"{figures.cpu_ms:.3g} ms",
        *gains,
    )


def _judged(row: Row) -> tuple[str, str]:
    difference = "-" if row.difference is None else f"{row.difference:.2g}"
    if row.accepted:
        return difference, "chosen"
    if row.note:
        return difference, f"no: {row.note}"
    return difference, "-" if row.candidate.variant == PLAIN else "yes"
