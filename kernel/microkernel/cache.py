"""What a response cache is: a place that keeps bytes under keys.

The kernel makes the keys and turns responses into bytes and back, so a cache knows nothing of
models. A server has one at most; `--cache-config` chooses it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from microkernel.tensor import Buffer


class Cache(ABC):
    """Keeps values under keys until it needs the room for others. Used on the event loop only, so
    what takes long must be awaited. What its methods raise beyond `start` costs no request: it is
    a miss."""

    trusted: ClassVar[bool] = False
    """Whether `lookup` gives nothing but what `insert` was given, as memory of this process does.
    What another cache gives is looked at more closely."""

    async def start(self) -> None:  # noqa: B027 - a cache in memory is ready at once
        """Make ready, once, before anything else is called. Raises InvalidArgument for settings
        that are wrong and Unavailable for a place that cannot be reached; both end the server."""

    @abstractmethod
    async def lookup(self, key: bytes) -> Buffer | None:
        """The value that was last kept under the key, None where there is none. It stays as it is
        as long as anybody refers to it."""

    @abstractmethod
    async def insert(self, key: bytes, value: bytes) -> None:
        """Keep a value. Raises InvalidArgument for one that is too large."""

    async def close(self) -> None:  # noqa: B027 - most caches have nothing to give back
        """The server stops; nothing is called after this."""


@dataclass(frozen=True, slots=True)
class CacheType:
    """How the kernel finds and makes a cache.

    `name` is what `--cache-config` calls it. `factory` is `"module:callable"`, imported only where
    the cache is chosen and called with the plug-in's settings object, or with nothing where the
    plug-in declares none; what `--cache-config=<name>,<key>=<value>` says is in the settings
    already. `requires` names the modules that must be importable for the cache to be available,
    and `extra` the extra of the distribution that brings them.
    """

    name: str
    factory: str
    requires: Sequence[str] = ()
    extra: str = ""
