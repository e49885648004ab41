"""Request headers that models see as parameters; nothing here knows aiohttp."""

import re
from collections.abc import Iterable
from dataclasses import replace

from microkernel import InferRequest, InvalidArgument
from microkernel_http.parameters import RESERVED

_FLAG = "--http-header-forward-pattern"
_CASE_MATTERS = "(?-i)"


class Forwarding:
    """Adds to a request, as string parameters, the headers whose names contain a match of a
    pattern. The empty pattern matches none."""

    def __init__(self, pattern: str) -> None:
        """Case is ignored unless the pattern starts with `(?-i)`. Raises InvalidArgument naming
        the flag for what is no regular expression."""
        flags = 0 if pattern.startswith(_CASE_MATTERS) else re.IGNORECASE
        try:
            compiled = re.compile(pattern.removeprefix(_CASE_MATTERS), flags)
        except re.error as error:
            raise InvalidArgument(
                f"{_FLAG} must be a regular expression, got '{pattern}': {error}"
            ) from None
        self._pattern = compiled if pattern else None

    def onto(self, request: InferRequest, headers: Iterable[tuple[bytes, bytes]]) -> InferRequest:
        """The request with the headers that match. A header wins over a parameter of its name: it
        may come from a proxy that knows better than the client.

        Raises InvalidArgument for a matching header with the name of a reserved parameter.
        """
        if self._pattern is None:
            return request
        found: dict[str, str] = {}
        for raw, value in headers:
            name = raw.decode("latin-1")
            if self._pattern.search(name) is not None:
                _check(name)
                found[name] = _text(value)
        return replace(request, parameters={**request.parameters, **found}) if found else request


NOTHING_FORWARDED = Forwarding("")


def _check(name: str) -> None:
    if name in RESERVED or name == "headers" or name.startswith("triton_"):
        raise InvalidArgument(
            f"header name '{name}' is reserved for Triton usage and cannot be forwarded"
        )


def _text(value: bytes) -> str:
    """A header is UTF-8 where it can be, else the Latin-1 of older clients."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
