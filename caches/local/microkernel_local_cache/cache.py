"""Responses in memory, up to a number of bytes; the least recently used make room for others."""

from collections import OrderedDict

from microkernel import Cache, InvalidArgument
from microkernel_local_cache import LocalSettings

OVERHEAD = 256
"""What an entry takes beside its key and its value: the objects and their place in the table."""


class LocalCache(Cache):
    """A table of entries, those that were used last at its end."""

    trusted = True

    def __init__(self, settings: LocalSettings) -> None:
        """Raises InvalidArgument where no size is given."""
        if not settings.size:
            raise InvalidArgument(
                "the cache 'local' needs its size in bytes, as in "
                "--cache-config=local,size=104857600"
            )
        self._size = settings.size
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self.used = 0

    def __len__(self) -> int:
        return len(self._entries)

    async def lookup(self, key: bytes) -> bytes | None:
        """See `Cache.lookup`."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    async def insert(self, key: bytes, value: bytes) -> None:
        """See `Cache.insert`. A value in place of another counts as used."""
        cost = cost_of(key, value)
        if cost > self._size:
            raise InvalidArgument(
                f"a response of {len(value)} bytes does not fit a cache of {self._size} bytes"
            )
        if (old := self._entries.pop(key, None)) is not None:
            self.used -= cost_of(key, old)
        while self.used + cost > self._size:
            gone, old = self._entries.popitem(last=False)
            self.used -= cost_of(gone, old)
        self._entries[key] = value
        self.used += cost

    async def close(self) -> None:
        """See `Cache.close`."""
        self._entries.clear()
        self.used = 0


def cost_of(key: bytes, value: bytes) -> int:
    """How many bytes of the cache an entry takes."""
    return len(key) + len(value) + OVERHEAD
