"""Calls that only clients with a secret may make; nothing here knows grpc."""

import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from microkernel import InvalidArgument, Unavailable

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
"""What a client sends beside its call; keys are lower case."""

GROUPS: Mapping[str, Sequence[str]] = {
    "health": ("ServerLive", "ServerReady", "ModelReady", "Check"),
    "metadata": ("ServerMetadata", "ModelMetadata", "ServerReflectionInfo"),
    "inference": ("ModelInfer", "ModelStreamInfer"),
    "shared-memory": (
        *(f"SystemSharedMemory{what}" for what in ("Status", "Register", "Unregister")),
        *(f"CudaSharedMemory{what}" for what in ("Status", "Register", "Unregister")),
    ),
    "model-config": ("ModelConfig",),
    "model-repository": ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    "statistics": ("ModelStatistics",),
    "trace": ("TraceSetting",),
    "logging": ("LogSettings",),
}
"""The calls of each group that can be restricted."""

_FLAG = "--grpc-restricted-protocol"
_PREFIX = "triton-grpc-protocol-"


@dataclass(frozen=True, slots=True)
class Guard:
    """The metadata that a call must carry."""

    header: str
    value: str

    def check(self, metadata: Metadata) -> None:
        """Raise Unavailable, as Triton does, unless the metadata holds the value."""
        wanted = self.value.encode()
        for key, given in metadata:
            raw = given.encode() if isinstance(given, str) else given
            if key == self.header and hmac.compare_digest(raw, wanted):
                return
        raise Unavailable(f"This protocol is restricted, expecting header '{self.header}'")


def guards(values: Iterable[str]) -> Mapping[str, Guard]:
    """The guards by call, from the values of the flag: `GROUP[,GROUP...]:KEY=VALUE`.

    Raises InvalidArgument naming the flag for another form, an unknown group, and a group given
    twice.
    """
    by_group: dict[str, Guard] = {}
    for value in values:
        names, guard = _split(value)
        for name in names:
            if name not in GROUPS:
                raise InvalidArgument(
                    f"{_FLAG}: unknown group '{name}' in '{value}'; known are {', '.join(GROUPS)}"
                )
            if name in by_group:
                raise InvalidArgument(f"{_FLAG}: group '{name}' is given more than once")
            by_group[name] = guard
    return {call: guard for name, guard in by_group.items() for call in GROUPS[name]}


def _split(value: str) -> tuple[Sequence[str], Guard]:
    names, colon, pair = value.partition(":")
    key, equals, secret = pair.partition("=")
    if not (colon and equals and key.strip()):
        raise InvalidArgument(f"{_FLAG}: '{value}' must have the form GROUP[,GROUP...]:KEY=VALUE")
    # Metadata keys travel in lower case only.
    return [name.strip() for name in names.split(",")], Guard(_PREFIX + key.strip().lower(), secret)
