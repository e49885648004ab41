"""Which endpoint a path means. Paths are matched as sent, before percent-decoding, with no
tolerance for a trailing slash; the query string is ignored."""

import re
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import unquote

from microkernel import parse_version


class Endpoint(Enum):
    """What can be asked for."""

    INFER = auto()
    LIVE = auto()
    READY = auto()
    MODEL_READY = auto()
    SERVER_METADATA = auto()
    MODEL_METADATA = auto()
    MODEL_CONFIG = auto()
    REPOSITORY_INDEX = auto()


@dataclass(slots=True)
class Route:
    """An endpoint, whether the method suits it, and the model and version the path names, "" where
    it names none."""

    endpoint: Endpoint
    allowed: bool
    model: str = ""
    version_text: str = ""

    def version(self) -> int:
        """The version asked for. Raises InvalidArgument where it exceeds 64 bits."""
        return parse_version(self.version_text)


# `/v2/models/stats` belongs to the statistics of all models, whatever a model is called.
_MODEL = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[0-9]+))?"
_TABLE = tuple(
    (re.compile(pattern), method, endpoint)
    for pattern, method, endpoint in (
        (_MODEL + "/infer", "POST", Endpoint.INFER),
        ("/v2/health/live", "GET", Endpoint.LIVE),
        ("/v2/health/ready", "GET", Endpoint.READY),
        (_MODEL + "/ready", "GET", Endpoint.MODEL_READY),
        ("/v2", "GET", Endpoint.SERVER_METADATA),
        ("(?!/v2/models/stats$)" + _MODEL, "GET", Endpoint.MODEL_METADATA),
        (_MODEL + "/config", "GET", Endpoint.MODEL_CONFIG),
        ("/v2/repository/(?:[^/]+/)?index", "POST", Endpoint.REPOSITORY_INDEX),
    )
)


def find(method: str, target: str) -> Route | None:
    """The route of a request line, None where there is no such path."""
    path = target.partition("?")[0]
    for pattern, allowed, endpoint in _TABLE:
        found = pattern.fullmatch(path)
        if found is not None:
            names = found.groupdict()
            model = names.get("model") or ""
            if "%" in model:
                model = unquote(model)
            return Route(endpoint, method == allowed, model, names.get("version") or "")
    return None
