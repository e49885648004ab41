"""Where records are kept: beside the repository, never in it, so that tuning changes no model."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from microkernel import whole_file
from microkernel_torchscript.tuning.record import Record, record_from_text, record_to_text

_LARGEST = 4 * 1024 * 1024
_LOCK = ".measuring"


class Malformed(Exception):
    """A record's file that is none; the text names it and says what is wrong."""


def places(files: Path) -> list[Path]:
    """The files where the record of a version directory may be, the better one first: beside the
    repository, and in the user's cache."""
    whole = files.absolute()
    repository = whole.parent.parent.resolve()
    name = Path(whole.parent.name) / f"{whole.name}.json"
    found = [repository.parent / f"{repository.name}.tuned" / name]
    cache = _cache()
    if cache is not None:
        mark = hashlib.sha256(os.fsencode(repository)).hexdigest()[:16]
        found.append(cache / f"{repository.name}-{mark}.tuned" / name)
    return found


def read(path: Path) -> Record | None:
    """The record in a file, None where there is none. Raises Malformed for anything else in it."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise Malformed(f"'{path}' cannot be read: {error.strerror}") from None
    if len(content) > _LARGEST:
        raise Malformed(f"'{path}' is larger than {_LARGEST} bytes")
    try:
        return record_from_text(content.decode())
    except (ValueError, RecursionError) as error:
        raise Malformed(f"'{path}' is no record of tuning: {error}") from None


def write(path: Path, record: Record) -> None:
    """Put a record in its place, whole or not at all. Raises OSError where that cannot be."""
    write_text(path, record_to_text(record))


def package_place(path: Path) -> Path:
    """Where the compiled model lies that belongs to the record in a file."""
    return path.with_suffix(".pt2")


def distrusted(path: Path, files: Path) -> str:
    """Why the compiled model beside a record must not run for the model of a version directory: ""
    where nobody could have put it there who could not have changed the model or be this process.
    Raises OSError where it is not there."""
    owners = {0, os.geteuid(), files.stat().st_uid}
    for place in (package_place(path), path.parent, path.parent.parent):
        found = place.stat()
        if found.st_uid not in owners:
            return f"'{place}' belongs to another user than the model and the server"
        if found.st_mode & stat.S_IWOTH:
            return f"everybody may write to '{place}'"
    return ""


def write_package(path: Path, made: Path) -> str:
    """Put a copy of a compiled model beside the record's file, whole or not at all, and return its
    SHA-256 digest. Raises OSError where that cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with made.open("rb") as source, whole_file(package_place(path)) as part:
        shutil.copyfile(made, part)
        part.chmod(0o644)
        return hashlib.file_digest(source, "sha256").hexdigest()


def remove_package(path: Path) -> None:
    """See that no compiled model lies beside the record's file, as far as that can be."""
    with contextlib.suppress(OSError):
        package_place(path).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Put a text in a file, whole or not at all. Raises OSError where that cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(text)
        part.chmod(0o644)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Wait until no other process of this user measures, for two measurements on one machine
    spoil each other; where no lock can be had, do not wait."""
    try:
        path = Path(tempfile.gettempdir()) / f"microkernel-{os.getuid()}{_LOCK}"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
    except OSError:
        yield
        return
    try:
        if os.fstat(descriptor).st_uid == os.getuid():  # another user's might never be let go
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _cache() -> Path | None:
    """The user's directory for what may be lost; None for a user without one."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if given.startswith("/"):
        return Path(given) / "microkernel"
    try:
        return Path.home() / ".cache" / "microkernel"
    except RuntimeError:
        return None
