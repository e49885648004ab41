"""What can be varied, and what a trial of one combination showed. No torch."""

from dataclasses import dataclass
from typing import Any, Final

PLAIN: Final = "scripted"
FROZEN: Final = "frozen"
OPTIMIZED: Final = "optimize_for_inference"
AOTI: Final = "AOTInductor"
MODULES: Final = (PLAIN, FROZEN, OPTIMIZED)
"""How a TorchScript module can run: as it was saved, with its weights as constants, and with its
layers fused and laid out for the processor as well."""

VARIANTS: Final = (*MODULES, AOTI)
"""The same, and what it becomes when it is exported and compiled to machine code."""

_LONGEST = 300


class Unreadable(ValueError):
    """Plain data that describes nothing of ours; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One combination: a variant, intra-op threads per instance, instances, and the size of every
    batch."""

    variant: str
    threads: int = 1
    instances: int = 1
    batch: int = 1


@dataclass(frozen=True, slots=True)
class Figures:
    """What a candidate showed: the median time of a call, items per second of all instances
    together, and processor time per item over all threads."""

    latency_ms: float
    items_per_second: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. `figures` is None where nothing was measured; `difference` is the
    largest one from the plain module's results, None where none were compared; `accepted` marks
    what was chosen, and `note` says why a candidate was refused or left out."""

    candidate: Candidate
    figures: Figures | None = None
    difference: float | None = None
    accepted: bool = False
    note: str = ""


def row_to_json(row: Row) -> dict[str, Any]:
    """A row as plain data."""
    figures = row.figures
    return {
        "variant": row.candidate.variant,
        "threads": row.candidate.threads,
        "instances": row.candidate.instances,
        "batch": row.candidate.batch,
        "latency_ms": figures and figures.latency_ms,
        "items_per_second": figures and figures.items_per_second,
        "cpu_ms": figures and figures.cpu_ms,
        "difference": row.difference,
        "accepted": row.accepted,
        "note": row.note,
    }


def row_from_json(document: Any) -> Row:
    """The row that `row_to_json` described. Raises Unreadable for anything else."""
    if not isinstance(document, dict):
        raise Unreadable("a row is no object")
    names = ("latency_ms", "items_per_second", "cpu_ms")
    measured = document.get("latency_ms") is not None
    return Row(
        Candidate(
            _text(document, "variant"),
            *(whole(document, name) for name in ("threads", "instances", "batch")),
        ),
        Figures(*(number(document, name) for name in names)) if measured else None,
        None if document.get("difference") is None else number(document, "difference"),
        document.get("accepted") is True,
        _text(document, "note"),
    )


def whole(document: dict[str, Any], name: str) -> int:
    """The value of a key that must be a whole number of at least 1; Unreadable for another."""
    value = document.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Unreadable(f"'{name}' must be a whole number of at least 1, got {value!r:.40}")
    return value


def number(document: dict[str, Any], name: str) -> float:
    """The value of a key that must be a finite number of at least 0; Unreadable for another."""
    value = document.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Unreadable(f"'{name}' must be a number, got {value!r:.40}")
    if not 0 <= value < float("inf"):
        raise Unreadable(f"'{name}' must be finite and not negative, got {value!r:.40}")
    return float(value)


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        raise Unreadable(f"'{name}' must be a text, got {value!r:.40}")
    return value[:_LONGEST]
