"""Addresses of the form `unix:PATH`: sockets in the file system, which only this user can open."""

import contextlib
import os
import socket
import stat
from pathlib import Path

from microkernel.errors import InvalidArgument, Unavailable

_PREFIX = "unix:"
_MODE = 0o600
_LONGEST = 107
"""Bytes of a path that fit the system's address, its end left out."""


class UnixSocket:
    """A socket at `path`, to be bound once; its text is the address."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: tuple[int, int] | None = None

    @classmethod
    def of(cls, address: str) -> "UnixSocket | None":
        """The socket that an address names, also as `unix:///PATH`, None where it names a host.
        Raises InvalidArgument for a path that cannot be one."""
        if not address.startswith(_PREFIX):
            return None
        path = address.removeprefix(_PREFIX)
        path = path.removeprefix("//") if path.startswith("///") else path
        if not path or "\0" in path or len(os.fsencode(path)) > _LONGEST:
            raise InvalidArgument(
                f"address '{address}' must be unix:PATH with a path of 1 to {_LONGEST} bytes"
            )
        return cls(Path(path))

    def __str__(self) -> str:
        return f"{_PREFIX}{self.path}"

    def bind(self) -> socket.socket:
        """A socket bound to the path. One that nobody listens on any more is replaced, and no other
        file. Raises Unavailable where somebody listens, and for what else is in the way."""
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._make_way()
            with contextlib.suppress(OSError):  # where the system cannot, it is done below
                os.fchmod(bound.fileno(), _MODE)
            bound.bind(str(self.path))
            self.secure()
        except BaseException as error:
            bound.close()
            if isinstance(error, OSError):
                raise Unavailable(f"failed to listen on '{self}': {error.strerror}") from None
            raise
        return bound

    def secure(self) -> None:
        """Keep others out of what is bound to the path now, by whoever bound it for this server,
        and take it for this socket."""
        self.path.chmod(_MODE)
        self._identity = _identity(self.path)

    def remove(self) -> None:
        """Remove the file of the socket if it is still there, unless another has taken its
        place."""
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._identity:
                self.path.unlink()

    def _make_way(self) -> None:
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise Unavailable(
                f"'{self.path}' exists and is no socket; remove it or name another path"
            )
        if _answers(self.path):
            raise Unavailable(f"Socket '{self}' already in use")
        self.path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    """Whether somebody listens; one that has no room for another connection does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True
    return True


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
