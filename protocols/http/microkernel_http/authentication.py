"""Whether a request brings a key; nothing here knows aiohttp."""

from collections.abc import Mapping

from microkernel import AccessKeys
from microkernel_http.routes import Endpoint

OPEN = frozenset({Endpoint.LIVE, Endpoint.READY, Endpoint.DOCS})
"""What probes ask, which have no key, and a page that is the same everywhere: a browser cannot send
a key along before it is there."""


def admits(keys: AccessKeys, headers: Mapping[str, str]) -> bool:
    """Whether a request with these headers may pass. `headers` ignores case."""
    return keys.admits(headers.get("Authorization", ""), headers.get("X-API-Key", ""))
