"""What a protocol front end is: something that listens, decodes, asks the port and encodes."""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from microkernel.port import Port


class Frontend(Protocol):
    """A protocol's server. Made with the port and the plug-in's settings; it imports its library
    only then."""

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
