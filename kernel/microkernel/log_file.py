"""Where the lines of the log go. What cannot be written is dropped: a full disk or a closed
terminal must not stop the server."""

import io
import os
from contextlib import suppress
from typing import TextIO

from microkernel.errors import InvalidArgument


class LogFile(io.TextIOBase):
    """A file that lines are appended to; from any thread."""

    def __init__(self, path: str) -> None:
        """Raises InvalidArgument where the file cannot be written."""
        self.path = path
        self._descriptor = -1
        try:
            self._descriptor = self._open()
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"log_file: cannot write '{path}': {_reason(error)}") from None

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def reopen(self) -> str:
        """Go on in what the path names now, after the file was moved away. Where that cannot be
        written the old file stays, and the reason is returned; else ""."""
        try:
            opened = self._open()
        except OSError as error:
            return _reason(error)
        os.dup2(opened, self._descriptor, inheritable=False)  # at once, for whoever writes now
        os.close(opened)
        return ""

    def write(self, text: str) -> int:
        """Append text."""
        with suppress(OSError):
            os.write(self._descriptor, text.encode(errors="backslashreplace"))
        return len(text)

    def __del__(self) -> None:
        if self._descriptor != -1:
            os.close(self._descriptor)


class Console(io.TextIOBase):
    """A stream of somebody else, such as the console."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        """Whether people read it."""
        return self._stream.isatty()

    def write(self, text: str) -> int:
        """Write text."""
        with suppress(OSError, ValueError):  # ValueError: it was closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        with suppress(OSError, ValueError):
            self._stream.flush()


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
