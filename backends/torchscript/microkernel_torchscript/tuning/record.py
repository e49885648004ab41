"""What tuning found out, as it is kept in a file. No torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from microkernel_torchscript.tuning.deciding import Decision
from microkernel_torchscript.tuning.trial import (
    PLAIN,
    VARIANTS,
    Candidate,
    Row,
    Unreadable,
    number,
    row_from_json,
    row_to_json,
    whole,
)

_FORMAT = 1
_DIGEST = re.compile("(?:[0-9a-f]{64})?")
_MOST = 1024
"""More rows than this are no measurement of ours."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run of tuning found, the rows of the table, and what the time did not suffice for.
    `tolerance` says how close results had to be."""

    decision: Decision
    rows: tuple[Row, ...] = ()
    left_out: tuple[str, ...] = ()
    tolerance: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Record:
    """A measurement, when it was `made`, and the `key`: for which file, torch, processor and
    configuration it holds. `package` is the SHA-256 digest of the compiled model that lies beside
    the record, "" where none does."""

    key: Mapping[str, str]
    measured: Measured
    made: str = ""
    package: str = ""


def differing(kept: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """The parts of a key that are not what they would have to be."""
    names = sorted({*kept, *wanted})
    return [name for name in names if kept.get(name) != wanted.get(name)]


def record_to_text(record: Record) -> str:
    """The text of a record's file."""
    document = {
        "format": _FORMAT,
        "key": dict(record.key),
        "made": record.made,
        **({"package": record.package} if record.package else {}),
        **measured_to_json(record.measured),
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def record_from_text(text: str) -> Record:
    """The record in a file's text. Raises ValueError, which says what is wrong, for any other."""
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise Unreadable(f"it is no record of format {_FORMAT}")
    key = document.get("key")
    if not isinstance(key, dict) or not all(isinstance(part, str) for part in key.values()):
        raise Unreadable("'key' must be an object of texts")
    measured = measured_from_json(document)
    choice, cores = measured.decision.choice, key.get("cores", "")
    if not cores.isdecimal() or max(choice.threads, choice.instances) > int(cores):
        raise Unreadable(f"the choice is none for {cores!r:.40} cores")
    package = _digest(document.get("package", ""))
    return Record(key, measured, str(document.get("made", ""))[:40], package)


def measured_to_json(measured: Measured) -> dict[str, Any]:
    """A measurement as plain data."""
    decision = measured.decision
    choice = row_to_json(Row(decision.choice))
    return {
        "choice": {name: choice[name] for name in ("variant", "threads", "instances", "batch")},
        "reason": decision.reason,
        "cpu_gain": decision.cpu_gain,
        "throughput_gain": decision.throughput_gain,
        "largest_difference": decision.difference,
        "tolerance": measured.tolerance,
        "seconds": measured.seconds,
        "left_out": list(measured.left_out),
        "rows": [row_to_json(row) for row in measured.rows],
    }


def measured_from_json(document: Any) -> Measured:
    """The measurement that `measured_to_json` described. Raises ValueError for what is none."""
    if not isinstance(document, dict):
        raise Unreadable("it is no object")
    decision = Decision(
        _choice(document.get("choice")),
        str(document.get("reason", "")),
        cpu_gain=number(document, "cpu_gain"),
        throughput_gain=number(document, "throughput_gain"),
        difference=number(document, "largest_difference"),
    )
    rows, left_out = _list(document, "rows"), _list(document, "left_out")
    return Measured(
        decision,
        rows=tuple(row_from_json(row) for row in rows),
        left_out=tuple(str(entry) for entry in left_out),
        tolerance=str(document.get("tolerance", "")),
        seconds=number(document, "seconds"),
    )


def _choice(document: Any) -> Candidate:
    if not isinstance(document, dict):
        raise Unreadable("'choice' must be an object")
    variant = document.get("variant", PLAIN)
    if variant not in VARIANTS:
        raise Unreadable(f"'variant' must be one of {', '.join(VARIANTS)}, got {variant!r:.40}")
    counts = [whole(document, name) for name in ("threads", "instances", "batch")]
    return Candidate(variant, *counts)


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise Unreadable(f"'package' must be 64 hexadecimal digits, got {value!r:.80}")
    return value


def _list(document: dict[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    if not isinstance(value, list) or len(value) > _MOST:
        raise Unreadable(f"'{name}' must be a list of at most {_MOST} entries")
    return value
