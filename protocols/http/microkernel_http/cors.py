"""What browsers are told about pages of other origins; nothing here knows aiohttp."""

import re
from collections.abc import Mapping, Sequence

from microkernel import InvalidArgument

_FLAG = "--http-cors-origin"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@*\s]+")
_EXPOSED = "Inference-Header-Content-Length, Retry-After"
_LIFETIME_SECS = 7200
Headers = Mapping[str, str]


class Cors:
    """The origins whose pages may use the server."""

    def __init__(self, origins: Sequence[str]) -> None:
        """Raises InvalidArgument naming the flag for what is no origin."""
        for origin in origins:
            if origin != "*" and _ORIGIN.fullmatch(origin.lower()) is None:
                raise InvalidArgument(
                    f"{_FLAG} must be '*' or an origin such as https://example.com:8080, without "
                    f"a path and without patterns, got '{origin}'"
                )
        self._any = "*" in origins
        self._origins = frozenset(origin.lower() for origin in origins)

    def headers(self, origin: str | None) -> Headers:
        """What is added to the answer to a request from a page of `origin`, None where the request
        says nothing about a page."""
        vary = {} if self._any else {"Vary": "Origin"}
        if not self._admits(origin):
            return vary
        allowed = "*" if self._any else str(origin)
        return {
            **vary,
            "Access-Control-Allow-Origin": allowed,
            "Access-Control-Expose-Headers": _EXPOSED,
        }

    def preflight(self, method: str, headers: Headers) -> Headers | None:
        """What answers a browser that asks, before the request itself, whether it may send it;
        None for any other request, and for an origin that may not. `headers` ignores case."""
        if method != "OPTIONS" or "Access-Control-Request-Method" not in headers:
            return None
        if not self._admits(headers.get("Origin")):
            return None
        found = {
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Max-Age": str(_LIFETIME_SECS),
        }
        wanted = headers.get("Access-Control-Request-Headers")
        # Named one by one, since '*' does not stand for Authorization.
        return {**found, "Access-Control-Allow-Headers": wanted} if wanted else found

    def _admits(self, origin: str | None) -> bool:
        return origin is not None and (self._any or origin.lower() in self._origins)
