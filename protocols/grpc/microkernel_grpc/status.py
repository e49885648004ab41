"""Errors as gRPC puts them."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from grpc import StatusCode

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
from microkernel_grpc.access import Unauthenticated
from microkernel_grpc.encode import error_text

STATUS: Mapping[type[MicrokernelError], Any] = {
    Internal: StatusCode.INTERNAL,
    NotFound: StatusCode.NOT_FOUND,
    Unavailable: StatusCode.UNAVAILABLE,
    Unsupported: StatusCode.UNIMPLEMENTED,
    InvalidArgument: StatusCode.INVALID_ARGUMENT,
    AlreadyExists: StatusCode.ALREADY_EXISTS,
    Cancelled: StatusCode.CANCELLED,
    Unknown: StatusCode.UNKNOWN,
    Unauthenticated: StatusCode.UNAUTHENTICATED,
}

# Details travel percent-encoded in a header, and a client that gets more than 8 KiB of those sees
# a broken connection in place of the error.
_MAX_ENCODED = 7000


def status_of(error: MicrokernelError) -> Any:
    """The status code of an error: that of the nearest class in the table, else INTERNAL."""
    known = (STATUS[c] for c in type(error).__mro__ if c in STATUS)
    return next(known, StatusCode.INTERNAL)


def details_of(error: MicrokernelError) -> str:
    """The message of an error, cut to what a client can receive. It may quote what a client has
    sent, of any length, and to encode that only to find it too long would take its time."""
    text = error_text(error)[:_MAX_ENCODED]
    while len(quote(text)) > _MAX_ENCODED:
        text = text[: len(text) * 3 // 4]
    return text
