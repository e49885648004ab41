"""Responses in Redis. While it cannot be reached every request is a miss and waits for nothing."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import TimeoutError as LateError

from microkernel import Cache, InvalidArgument, Unavailable
from microkernel_redis_cache import RedisSettings

log = structlog.get_logger()

PREFIX = "microkernel:response:"
LARGEST = 512 << 20
"""The most bytes that Redis takes as one value."""

PAUSE = 1.0
"""Seconds between attempts to reach a Redis that is gone."""

SILENCE = 10.0
"""Seconds for which a Redis that comes and goes is not mentioned again."""

_GONE = (LostError, LateError, OSError)  # asyncio's TimeoutError is an OSError


class RedisCache(Cache):
    """Entries that outlive the server; how many Redis keeps is for its own settings to say."""

    def __init__(self, settings: RedisSettings) -> None:
        """Raises InvalidArgument where host or port is missing."""
        if not settings.host or not settings.port:
            raise InvalidArgument(
                "the cache 'redis' needs a host and a port, as in --cache-config=redis,host=HOST "
                "--cache-config=redis,port=6379"
            )
        self._where = f"{settings.host}:{settings.port}"
        self._client = _client(settings)
        self._limit = (settings.connect_timeout + settings.socket_timeout) / 1000
        self._patience = settings.wait_timeout / 1000
        self._slots = asyncio.Semaphore(settings.pool_size)
        self._returning: asyncio.Task[None] | None = None
        self._silent_until = 0.0

    async def start(self) -> None:
        """See `Cache.start`."""
        try:
            async with asyncio.timeout(self._limit):
                await self._client.get(PREFIX)  # a ping would need no rights
        except (AuthenticationError, ResponseError) as error:
            raise InvalidArgument(
                f"the cache 'redis' is refused by {self._where}: {error}; check its user, password "
                "and db"
            ) from None
        except _GONE as error:
            raise Unavailable(
                f"the cache 'redis' cannot reach {self._where}: {_reason(error)}; check its host "
                "and port"
            ) from None

    async def lookup(self, key: bytes) -> bytes | None:
        """See `Cache.lookup`."""
        found: bytes | None = await self._ask(lambda: self._client.get(PREFIX + key.hex()))
        return found

    async def insert(self, key: bytes, value: bytes) -> None:
        """See `Cache.insert`."""
        if len(value) > LARGEST:
            raise InvalidArgument(f"a response of {len(value)} bytes is too large for Redis")
        await self._ask(lambda: self._client.set(PREFIX + key.hex(), value))

    async def _ask(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """What Redis answers; None where it is gone or too busy."""
        if self._returning is not None or not await self._slot():
            return None
        try:
            async with asyncio.timeout(self._limit):
                return await command()
        except _GONE as error:
            self._lost(error)
            return None
        finally:
            self._slots.release()

    async def _slot(self) -> bool:
        """Wait for a connection, and not for long; whether there is one."""
        try:
            if self._slots.locked():
                async with asyncio.timeout(self._patience):
                    await self._slots.acquire()
            else:
                await self._slots.acquire()
        except TimeoutError:
            return False
        if self._returning is None:
            return True
        self._slots.release()  # it went while we waited
        return False

    def _lost(self, error: Exception) -> None:
        if self._returning is None:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._silent_until:
                self._silent_until = loop.time() + SILENCE
                log.warning("redis is gone", address=self._where, reason=_reason(error))
            self._returning = loop.create_task(self._return())

    async def _return(self) -> None:
        while True:
            await asyncio.sleep(PAUSE)
            try:
                async with asyncio.timeout(self._limit):
                    await self._client.connection_pool.disconnect(inuse_connections=False)
                    await self._client.get(PREFIX)
            except (RedisError, OSError):
                continue
            log.info("redis is back", address=self._where)
            self._returning = None
            return

    async def close(self) -> None:
        """See `Cache.close`."""
        if self._returning is not None:
            self._returning.cancel()
        await self._client.aclose()


def _client(settings: RedisSettings) -> Redis:
    user = settings.user or os.environ.get("TRITONCACHE_REDIS_USERNAME")
    password = settings.password or os.environ.get("TRITONCACHE_REDIS_PASSWORD")
    return Redis(
        host=settings.host,
        port=settings.port,
        db=settings.db,
        username=user or None,
        password=password or None,
        socket_connect_timeout=settings.connect_timeout / 1000,
        socket_timeout=settings.socket_timeout / 1000,
        # A connection that Redis has closed is noticed when it is used, so once more is enough.
        retry=Retry(NoBackoff(), 1),
        max_connections=2 * settings.pool_size,
        protocol=2,
        client_name="microkernel",
    )


def _reason(error: Exception) -> str:
    return str(error) or "it does not answer"
