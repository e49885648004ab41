"""What HTTP's settings say of every front end over HTTP."""

from dataclasses import dataclass, field
from typing import Any

from microkernel_http.settings import HttpSettings


def of_http(name: str) -> Any:
    """A field of HTTP's settings, its flag included, which is then meant for both."""
    found = HttpSettings.__dataclass_fields__[name]
    return field(default=found.default, metadata=found.metadata)


@dataclass(frozen=True, slots=True)
class SharedSettings:
    """Bounds, restrictions and the log of requests. The flags are those of HTTP."""

    max_input_size: int = of_http("max_input_size")
    max_body_size: int = of_http("max_body_size")
    header_timeout: float = of_http("header_timeout")
    body_timeout: float = of_http("body_timeout")
    keep_alive_timeout: float = of_http("keep_alive_timeout")
    restricted_api: tuple[str, ...] = of_http("restricted_api")
    access_log: bool = of_http("access_log")
