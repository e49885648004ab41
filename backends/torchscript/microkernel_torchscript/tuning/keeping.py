"""Finding the record that fits, and keeping a new one, with the compiled model that belongs to it.
No torch."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from microkernel_torchscript.tuning import places
from microkernel_torchscript.tuning.key import digest_of
from microkernel_torchscript.tuning.record import Measured, Record, differing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """A record and the file that it is in, None where it could be put nowhere."""

    record: Record
    path: Path | None

    def package(self, files: Path) -> Path:
        """The compiled model that belongs to the record, which is the one that was measured, for
        the model of a version directory. Raises FileNotFoundError and ValueError, which name the
        file, for none and for another one or one that others may have put there."""
        if self.path is None:
            raise FileNotFoundError("its package could not be kept")
        path = places.package_place(self.path)
        try:
            reason = places.distrusted(self.path, files)
            found = digest_of(path)
        except OSError as error:
            raise FileNotFoundError(f"'{path}' cannot be read: {error.strerror}") from None
        if reason:
            raise ValueError(reason)
        if found != self.record.package:
            raise ValueError(
                f"'{path}' is not the file that was measured: its SHA-256 digest begins with "
                f"{found[:12]}, expected {self.record.package[:12]}"
            )
        return path


def find(name: str, candidates: Sequence[Path], key: Mapping[str, str]) -> Kept | None:
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
        return Kept(record, path)
    return None


def keep(name: str, candidates: Sequence[Path], record: Record, package: Path | None) -> Kept:
    """Write a record, and a copy of the compiled model where one was chosen, to the first of the
    places that can be written, and let the log tell which could not."""
    for path in candidates:
        try:
            written = _written(path, record, package)
        except OSError as error:
            reason = error.strerror or str(error)
            logger.warning(
                "model '%s': the record of tuning cannot be kept in '%s': %s", name, path, reason
            )
        else:
            return Kept(written, path)
    return Kept(record, None)


def made_now(key: Mapping[str, str], measured: Measured) -> Record:
    """A record of this moment."""
    return Record(key, measured, datetime.now(UTC).isoformat(timespec="seconds"))


def _written(path: Path, record: Record, package: Path | None) -> Record:
    """The record as it stands in its place: with the digest of its package, which is there first,
    so that no record promises one that is not."""
    if package is None:
        places.write(path, record)
        places.remove_package(path)
        return record
    record = replace(record, package=places.write_package(path, package))
    try:
        places.write(path, record)
    except OSError:
        places.remove_package(path)
        raise
    return record
