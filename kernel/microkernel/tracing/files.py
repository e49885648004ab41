"""Trace files: JSON arrays of records."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import structlog

from microkernel.tracing.records import text
from microkernel.tracing.writer import Ended, Item

log = structlog.get_logger()

MOST_BUFFERED = 8 << 20
"""How many characters of records are kept before all go to their files."""


@dataclass(slots=True)
class _Group:
    """The records of a group that are in no file yet."""

    log_frequency: int
    traces: list[str] = field(default_factory=list)


class FileSink:
    """Writes `<file>` in the end, and `<file>.0`, `<file>.1` and so on for groups that are complete
    or have a log frequency.

    What must not be kept in memory any longer is written earlier. Every file is valid JSON after
    every write. What cannot be written is dropped, which is logged once.
    """

    def __init__(self, file: str, most_buffered: int = MOST_BUFFERED) -> None:
        self._file = file
        self._most = most_buffered
        self._groups: dict[int, _Group] = {}
        self._buffered = 0
        self._next = 0
        self._failing = False
        self._array = _Array(Path(file))

    def write(self, item: Item) -> None:
        """See `Sink.write`."""
        if not isinstance(item, Ended):
            self._flush(item.group, indexed=item.indexed)
            return
        records = text(item.trace)
        number = item.trace.group
        group = self._groups.setdefault(number, _Group(item.log_frequency))
        group.traces.append(records)
        self._buffered += len(records)
        if 0 < group.log_frequency <= len(group.traces):
            self._flush(number, indexed=True)
        if self._buffered >= self._most:
            self._flush_all()

    def close(self) -> None:
        """See `Sink.close`."""
        self._flush_all()
        self._array.close()

    def give_up(self) -> None:
        """See `Sink.give_up`; nothing can end a write to a disk."""

    def _flush_all(self) -> None:
        for number, group in list(self._groups.items()):
            self._flush(number, indexed=group.log_frequency > 0)

    def _flush(self, number: int, *, indexed: bool) -> None:
        group = self._groups.pop(number, None)
        if group is None:
            return
        self._buffered -= sum(map(len, group.traces))
        content = ",".join(group.traces).encode()
        self._try(self._write_indexed if indexed else self._array.append, content)

    def _write_indexed(self, content: bytes) -> None:
        file = Path(f"{self._file}.{self._next}")
        self._next += 1
        try:
            file.write_bytes(b"[" + content + b"]")
        except OSError:
            with suppress(OSError):
                file.unlink()  # rather none than half a file
            raise

    def _try(self, write: Callable[[bytes], None], content: bytes) -> None:
        try:
            write(content)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.warning("traces are lost", file=self._file, reason=str(error))
            self._failing = True


class _Array:
    """A JSON array in a file, which grows at its end. The file is made with the first append."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: BinaryIO | None = None
        self._end = 0  # where the closing bracket stands

    def append(self, content: bytes) -> None:
        """Add elements. Raises OSError; the file is then as it was."""
        if self._stream is None:
            self._stream = self._path.open("wb", buffering=0)
        data = (b"," if self._end else b"[") + content
        try:
            self._write(data + b"]")
        except OSError:
            with suppress(OSError):
                self._restore()
            raise
        self._end += len(data)

    def _restore(self) -> None:
        """Take back what was written of an append that failed."""
        assert self._stream is not None
        self._stream.truncate(self._end + 1 if self._end else 0)  # keeps the bracket's room
        if self._end:
            self._write(b"]")

    def _write(self, data: bytes) -> None:
        assert self._stream is not None
        self._stream.seek(self._end)
        rest = memoryview(data)
        while rest:  # a disk that is nearly full takes less than it is given
            rest = rest[self._stream.write(rest) :]

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
