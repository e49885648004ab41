"""Errors as HTTP puts them: a status, and a body with the single key `error`."""

import json
from collections.abc import Mapping

from microkernel import (
    AlreadyExists,
    Cancelled,
    Internal,
    InvalidArgument,
    MicrokernelError,
    NotFound,
    Unavailable,
    Unknown,
    Unsupported,
)


class TimedOut(MicrokernelError):
    """The client did not go on with its request."""


STATUS: Mapping[type[MicrokernelError], int] = {
    Internal: 500,
    NotFound: 404,
    Unavailable: 503,
    Unsupported: 501,
    InvalidArgument: 400,
    AlreadyExists: 400,
    Cancelled: 400,
    Unknown: 400,
    TimedOut: 408,
}


def status_of(error: MicrokernelError) -> int:
    """The status of an error: that of the nearest class in the table, else 500."""
    return next((STATUS[c] for c in type(error).__mro__ if c in STATUS), 500)


def error_body(message: str) -> bytes:
    """`{"error":<message>}`. What is no valid text (a path may hold any bytes) is escaped."""
    valid = message.encode("utf-8", "backslashreplace").decode()
    return json.dumps({"error": valid}, ensure_ascii=False, separators=(",", ":")).encode()
