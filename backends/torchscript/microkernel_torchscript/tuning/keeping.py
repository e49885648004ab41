"""Finding the record that fits, and keeping a new one. No torch."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from microkernel_torchscript.tuning import places
from microkernel_torchscript.tuning.record import Measured, Record, differing

logger = logging.getLogger(__name__)


def find(name: str, candidates: Sequence[Path], key: Mapping[str, str]) -> Record | None:
    """The first record with that key. The log tells what lies in the places but does not fit."""
    for path in candidates:
        try:
            record = places.read(path)
        except places.Malformed as error:
            logger.warning("model '%s': %s; it is ignored", name, error)
            continue
        if record is None:
            continue
        if other := differing(record.key, key):
            logger.info(
                "model '%s': the record of tuning '%s' is for another %s and is ignored",
                name,
                path,
                ", ".join(other),
            )
            continue
        return record
    return None


def keep(name: str, candidates: Sequence[Path], record: Record) -> Path | None:
    """Write a record to the first of the places that can be written, and let the log tell which
    could not; None where none could."""
    for path in candidates:
        try:
            places.write(path, record)
        except OSError as error:
            reason = error.strerror or str(error)
            logger.warning(
                "model '%s': the record of tuning cannot be kept in '%s': %s", name, path, reason
            )
        else:
            return path
    return None


def made_now(key: Mapping[str, str], measured: Measured) -> Record:
    """A record of this moment."""
    return Record(key, measured, datetime.now(UTC).isoformat(timespec="seconds"))
