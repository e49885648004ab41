"""Triton's names of the errors. They are the kernel's own classes, so that one `except` catches an
error by either name."""

from microkernel.errors import (
    AlreadyExists,
    Internal,
    InvalidArgument,
    MicrokernelError,
    NotFound,
    Unavailable,
    Unknown,
    Unsupported,
)

TritonError = MicrokernelError
UnknownError = Unknown
InternalError = Internal
NotFoundError = NotFound
InvalidArgumentError = InvalidArgument
UnavailableError = Unavailable
UnsupportedError = Unsupported
AlreadyExistsError = AlreadyExists
