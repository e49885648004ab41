"""What a protocol front end is: something that listens, decodes, asks the port and encodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any, Protocol, TypeAlias, runtime_checkable

from microkernel.port import Port


class Frontend(Protocol):
    """A protocol's server. Made with the port and the plug-in's settings, before a model is loaded,
    so that wrong settings are found at once; it imports its library only then."""

    async def start(self) -> str | None:
        """Listen. Returns the line to log, such as `Started HTTPService at 0.0.0.0:8000`, None when
        switched off.

        Raises Unavailable naming the address when the port is taken.
        """
        ...

    async def stop(self, timeout: float) -> None:
        """Stop accepting, let the requests in flight finish for at most `timeout` seconds, then
        close."""
        ...


FrontendFactory: TypeAlias = Callable[[Port, Any], Frontend]


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a front end listens, and the flag that says on which port. An address `unix:PATH` has
    no port, and port 0 is any free one. `others` are the ports, from and to, that all others on its
    address must be among."""

    flag: str
    address: str
    port: int
    others: tuple[int, int] | None = None

    def meets(self, other: "Listening") -> bool:
        """Whether both cannot be listened on at once."""
        if self.address == other.address and self.address.startswith("unix:"):
            return True
        everywhere = {"", "0.0.0.0", "::"} & {self.address, other.address}
        hosts = not any(place.address.startswith("unix:") for place in (self, other))
        near = self.address == other.address or bool(everywhere)
        return hosts and near and 0 != self.port == other.port

    def forbids(self, other: "Listening") -> bool:
        """Whether the port of another on this address is none of those it must be among."""
        if self.others is None or self.address != other.address:
            return False
        return not self.others[0] <= other.port <= self.others[1]


@runtime_checkable
class Listens(Protocol):
    """What the settings of a front end may have beside their options."""

    def listening(self) -> Sequence[Listening]:
        """What will be listened on."""
        ...


@runtime_checkable
class Doubts(Protocol):
    """What the settings of a front end may have beside their options, too."""

    def doubts(self) -> Sequence[str]:
        """What the operator should be told of settings that change nothing, a line each."""
        ...


def clash(places: Sequence[Listening]) -> str:
    """What is wrong where two of the places are one, or one forbids another, else ""."""
    for one, other in permutations(places, 2):
        if one.others is not None and one.forbids(other):
            least, most = one.others
            return f"{other.flag} must be from {least} to {most}, is {other.port}"
    for one, other in combinations(places, 2):
        if one.meets(other):
            if one.address.startswith("unix:"):
                return f"{one.flag} and {other.flag} both stand for '{one.address}'"
            return f"{one.flag} and {other.flag} must differ on one address, both are {one.port}"
    return ""
