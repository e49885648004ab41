"""Groups of endpoints that answer only to requests with a certain header; nothing here knows
aiohttp."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from microkernel import InvalidArgument
from microkernel_http.routes import Endpoint

_FLAG = "--http-restricted-api"
GROUPS: Mapping[str, frozenset[Endpoint]] = {
    "health": frozenset({Endpoint.LIVE, Endpoint.READY, Endpoint.MODEL_READY}),
    "metadata": frozenset(
        {Endpoint.SERVER_METADATA, Endpoint.MODEL_METADATA, Endpoint.OPENAPI, Endpoint.DOCS}
    ),
    "inference": frozenset({Endpoint.INFER, Endpoint.GENERATE, Endpoint.GENERATE_STREAM}),
    "shared-memory": frozenset(
        {Endpoint.REGION_STATUS, Endpoint.REGION_REGISTER, Endpoint.REGION_UNREGISTER}
    ),
    "model-config": frozenset({Endpoint.MODEL_CONFIG}),
    "model-repository": frozenset({Endpoint.REPOSITORY_INDEX, Endpoint.LOAD, Endpoint.UNLOAD}),
    "statistics": frozenset({Endpoint.STATISTICS}),
    "trace": frozenset({Endpoint.TRACE}),
    "logging": frozenset({Endpoint.LOGGING}),
}


@dataclass(frozen=True, slots=True)
class Restriction:
    """The header that a request must bring, and its value."""

    header: str
    value: str

    def admits(self, headers: Mapping[str, str]) -> bool:
        """Whether a request with these headers may pass. `headers` ignores case. The comparison
        takes as long for a nearly right value as for a wrong one."""
        given = headers.get(self.header)
        return given is not None and hmac.compare_digest(
            given.encode("utf-8", "surrogateescape"), self.value.encode("utf-8", "surrogateescape")
        )

    @property
    def refusal(self) -> str:
        """What a client is told that may not pass."""
        return f"This API is restricted, expecting header '{self.header}'"


def restrictions(values: Sequence[str]) -> Mapping[Endpoint, Restriction]:
    """The restriction of each endpoint that has one, by values like
    `model-config,logging:key=secret`.

    Raises InvalidArgument naming the flag for a value of another form, an unknown group, and a
    group that is named twice.
    """
    by_group: dict[str, Restriction] = {}
    for value in values:
        names, restriction = _parse(value)
        for name in names:
            if name not in GROUPS:
                raise InvalidArgument(
                    f"{_FLAG}: unknown API '{name}'; there are {', '.join(GROUPS)}"
                )
            if name in by_group:
                raise InvalidArgument(f"{_FLAG}: API '{name}' is restricted twice")
            by_group[name] = restriction
    return {endpoint: found for name, found in by_group.items() for endpoint in GROUPS[name]}


def _parse(value: str) -> tuple[list[str], Restriction]:
    names, colon, rest = value.partition(":")
    header, equals, expected = rest.partition("=")
    if not (names and colon and header.strip() and equals and expected):
        shown = value.partition("=")[0] + ("=..." if "=" in value else "")  # the rest is a secret
        raise InvalidArgument(
            f"{_FLAG} must look like '<API>,<API>:<header>=<value>', got '{shown}'"
        )
    return [name.strip() for name in names.split(",")], Restriction(header.strip(), expected)
