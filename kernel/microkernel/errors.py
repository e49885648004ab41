"""What can go wrong, one class per row of the protocols' error table.

    MicrokernelError
    ├── Internal         our fault, or a backend's
    ├── NotFound         no such model, version or region
    ├── Unavailable      not now: not ready, queue full, worker died, shutting down
    │   └── WorkerFailed     a backend's process cannot go on
    ├── Unsupported      understood, but not offered
    ├── InvalidArgument  the caller's fault
    ├── AlreadyExists    the name is taken
    ├── Cancelled        the caller gave up
    └── Unknown          a backend would not say

A protocol maps these classes to its own status codes in one table; nothing here speaks HTTP or
gRPC.
"""

from typing import ClassVar


class MicrokernelError(Exception):
    """The base of every error that may reach a client.

    `str(error)` is the message for the client. `code` is the class's name on the wire between
    processes and the name a Python model knows it by; `prefix` stands before the message where an
    error is quoted inside another text.
    """

    code: ClassVar[str] = "INTERNAL"
    prefix: ClassVar[str] = "Internal"

    def quoted(self) -> str:
        """The form used inside other messages: `Invalid argument: <message>`."""
        return f"{self.prefix}: {self}"


class Internal(MicrokernelError):
    """The server or a backend failed."""


class NotFound(MicrokernelError):
    """The thing named does not exist."""

    code = "NOT_FOUND"
    prefix = "Not found"


class Unavailable(MicrokernelError):
    """Cannot be done now; trying again later may help."""

    code = "UNAVAILABLE"
    prefix = "Unavailable"


class WorkerFailed(Unavailable):
    """The process of a backend cannot go on: what it holds is damaged, as after a fault of a GPU.

    Raised by `Instance.execute` or `Instance.stream` it fails the batch and ends the worker, which
    is started again; see `Instance`. Clients see it as Unavailable.
    """


class Unsupported(MicrokernelError):
    """Understood, but not offered."""

    code = "UNSUPPORTED"
    prefix = "Unsupported"


class InvalidArgument(MicrokernelError):
    """The caller sent something that cannot be right."""

    code = "INVALID_ARG"
    prefix = "Invalid argument"


class AlreadyExists(MicrokernelError):
    """The name is taken."""

    code = "ALREADY_EXISTS"
    prefix = "Already exists"


class Cancelled(MicrokernelError):
    """The caller gave the request up before it was answered."""

    code = "CANCELLED"
    prefix = "<invalid code>"  # Triton has no text for it


class Unknown(MicrokernelError):
    """A backend failed without saying how."""

    code = "UNKNOWN"
    prefix = "Unknown"


_BY_CODE: dict[str, type[MicrokernelError]] = {
    error.code: error
    for error in (
        Internal,
        NotFound,
        Unavailable,
        Unsupported,
        InvalidArgument,
        AlreadyExists,
        Cancelled,
        Unknown,
    )
}


def error_summary(error: BaseException) -> str:
    """`TypeName: message`; the type alone for an exception that cannot tell its message."""
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except BaseException:  # noqa: BLE001 - a stranger's method
        return name


def error_from(code: str, message: str) -> MicrokernelError:
    """Rebuild an error from its `code` and message; an unknown code gives `Unknown`."""
    return _BY_CODE.get(code, Unknown)(message)
