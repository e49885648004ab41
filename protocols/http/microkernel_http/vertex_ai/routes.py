"""What a prediction may be redirected to; nothing here knows aiohttp."""

from dataclasses import replace

from microkernel_http.routes import Endpoint, Route, find

REDIRECT = "X-Vertex-Ai-Triton-Redirect"
"""The header of a prediction that stands for a call of the V2 protocol."""

FORBIDDEN = frozenset(
    {Endpoint.LOAD, Endpoint.UNLOAD, Endpoint.REGION_REGISTER, Endpoint.REGION_UNREGISTER}
)
"""What would change the server. Whoever may predict must not be able to."""

_KNOWN = FORBIDDEN | {
    Endpoint.INFER,
    Endpoint.LIVE,
    Endpoint.READY,
    Endpoint.MODEL_READY,
    Endpoint.SERVER_METADATA,
    Endpoint.MODEL_METADATA,
    Endpoint.MODEL_CONFIG,
    Endpoint.STATISTICS,
    Endpoint.REPOSITORY_INDEX,
    Endpoint.REGION_STATUS,
}


def redirected(target: str, *, allowed: bool) -> Route | None:
    """The call that a redirect, a path without its leading slash, stands for; None where there is
    none. The method that V2 wants does not matter: every prediction is a POST."""
    route = find("POST", f"/{target}")
    if route is None or route.endpoint not in _KNOWN:
        return None
    return replace(route, allowed=allowed)
