"""Which endpoint a path means. Paths are matched as sent, before percent-decoding, with no
tolerance for a trailing slash; the query string is ignored."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, auto
from functools import lru_cache
from urllib.parse import unquote

from microkernel import parse_version


class Endpoint(IntEnum):
    """What can be asked for."""

    INFER = auto()
    GENERATE = auto()
    GENERATE_STREAM = auto()
    LIVE = auto()
    READY = auto()
    MODEL_READY = auto()
    SERVER_METADATA = auto()
    MODEL_METADATA = auto()
    MODEL_CONFIG = auto()
    STATISTICS = auto()
    REPOSITORY_INDEX = auto()
    LOAD = auto()
    UNLOAD = auto()
    REGION_STATUS = auto()
    REGION_REGISTER = auto()
    REGION_UNREGISTER = auto()
    LOGGING = auto()
    TRACE = auto()
    OPENAPI = auto()
    DOCS = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint, whether the method suits it, and what the path names: a model and its version, a
    repository, a shared-memory region and its kind (`system` or `cuda`); "" where it names none."""

    endpoint: Endpoint
    allowed: bool
    model: str = ""
    version_text: str = ""
    repository: str = ""
    region: str = ""
    kind: str = ""

    def version(self) -> int:
        """The version asked for. Raises InvalidArgument where it exceeds 64 bits."""
        return parse_version(self.version_text)


_GET = frozenset({"GET"})
_POST = frozenset({"POST"})
_MODEL = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version_text>[0-9]+))?"
_STORED = r"/v2/repository/(?:(?P<repository>[^/]+)/)?models/(?P<model>[^/]+)"
_REGION = r"/v2/(?P<kind>system|cuda)sharedmemory(?:/region/(?P<region>[^/]+))?"
_TABLE = tuple(
    (re.compile(pattern), methods, endpoint)
    for pattern, methods, endpoint in (
        (_MODEL + "/infer", _POST, Endpoint.INFER),
        (_MODEL + "/generate", _POST, Endpoint.GENERATE),
        (_MODEL + "/generate_stream", _POST, Endpoint.GENERATE_STREAM),
        ("/v2/health/live", _GET, Endpoint.LIVE),
        ("/v2/health/ready", _GET, Endpoint.READY),
        (_MODEL + "/ready", _GET, Endpoint.MODEL_READY),
        ("/v2", _GET, Endpoint.SERVER_METADATA),
        # Before the metadata of models: one called `stats` has none, as in Triton.
        ("/v2/models/stats", _GET, Endpoint.STATISTICS),
        (_MODEL + "/stats", _GET, Endpoint.STATISTICS),
        (_MODEL, _GET, Endpoint.MODEL_METADATA),
        (_MODEL + "/config", _GET, Endpoint.MODEL_CONFIG),
        ("/v2/repository/(?:[^/]+/)?index", _POST, Endpoint.REPOSITORY_INDEX),
        (_STORED + "/load", _POST, Endpoint.LOAD),
        (_STORED + "/unload", _POST, Endpoint.UNLOAD),
        (_REGION + "/status", _GET, Endpoint.REGION_STATUS),
        (_REGION + "/register", _POST, Endpoint.REGION_REGISTER),
        (_REGION + "/unregister", _POST, Endpoint.REGION_UNREGISTER),
        ("/v2/logging", _GET | _POST, Endpoint.LOGGING),
        (r"/v2(?:/models/(?P<model>[^/]+))?/trace/setting", _GET | _POST, Endpoint.TRACE),
        ("/openapi.json", _GET, Endpoint.OPENAPI),
        ("/docs", _GET, Endpoint.DOCS),
    )
)
METHODS: Mapping[Endpoint, frozenset[str]] = {endpoint: methods for _, methods, endpoint in _TABLE}
"""The methods that suit an endpoint, the same on each of its paths."""


@lru_cache(256)
def find(method: str, target: str) -> Route | None:
    """The route of a request line, None where there is no such path. A server is asked for few of
    them, again and again."""
    path = target.partition("?")[0]
    for pattern, methods, endpoint in _TABLE:
        found = pattern.fullmatch(path)
        if found is not None:
            names = found.groupdict("")
            if "%" in path:
                for key in names.keys() & {"model", "region"}:
                    names[key] = unquote(names[key])
            return Route(endpoint, method in methods, **names)
    return None
