"""Metadata of a call that becomes parameters of its request; nothing here knows grpc."""

import re
from collections.abc import Callable
from typing import TypeAlias

from microkernel import InvalidArgument, Parameter
from microkernel_grpc.parameters import is_reserved
from microkernel_grpc.restricted import Metadata

Forward: TypeAlias = Callable[[Metadata], dict[str, Parameter]]

_FLAG = "--grpc-header-forward-pattern"
_SENSITIVE = "(?-i)"


def forwarder(pattern: str) -> Forward | None:
    """What picks the metadata to forward, None where nothing is.

    A key is forwarded where the pattern matches anywhere in it; case matters only if the pattern
    starts with `(?-i)`. Raises InvalidArgument naming the flag for a pattern that is none. What is
    returned raises InvalidArgument for a key that is reserved.
    """
    if not pattern:
        return None
    sensitive = pattern.startswith(_SENSITIVE)
    try:
        matcher = re.compile(
            pattern.removeprefix(_SENSITIVE), re.NOFLAG if sensitive else re.IGNORECASE
        )
    except re.error as error:
        raise InvalidArgument(f"{_FLAG}: '{pattern}' is no regular expression: {error}") from None

    def forward(metadata: Metadata) -> dict[str, Parameter]:
        matching = ((key, value) for key, value in metadata if matcher.search(key))
        return {_allowed(key): _text(value) for key, value in matching}

    return forward


def _allowed(key: str) -> str:
    if is_reserved(key):
        raise InvalidArgument(
            f"metadata '{key}' is reserved for Triton usage and cannot be forwarded"
        )
    return key


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
