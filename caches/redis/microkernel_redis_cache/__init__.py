"""The cache `redis`: responses in a Redis server, which several servers may share."""

from dataclasses import dataclass

from microkernel import (
    Between,
    CacheType,
    RegisterCache,
    RegisterOptions,
    hookimpl,
    option,
)


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """What `--cache-config=redis,KEY=VALUE` may say. Times are in milliseconds."""

    host: str = option("", about="Where Redis runs.")
    port: int = option(0, check=Between(1, 65535), about="The port it listens on.")
    user: str = option(
        "", about="The user; else the variable TRITONCACHE_REDIS_USERNAME says, or it is `default`."
    )
    password: str = option("", about="The password; else the variable TRITONCACHE_REDIS_PASSWORD.")
    db: int = option(0, check=Between(0), about="The number of the database.")
    connect_timeout: int = option(
        500, check=Between(1), about="The longest that a connection may take to be made."
    )
    socket_timeout: int = option(
        500, check=Between(1), about="The longest that Redis may take to answer."
    )
    pool_size: int = option(16, check=Between(1), about="The most connections at once.")
    wait_timeout: int = option(
        100, check=Between(1), about="The longest that a request waits for one of them."
    )


@hookimpl
def register_options(register: RegisterOptions) -> None:
    register(RedisSettings)


@hookimpl
def register_caches(register: RegisterCache) -> None:
    register(
        CacheType(
            "redis",
            "microkernel_redis_cache.cache:RedisCache",
            requires=("redis",),
            extra="redis",
        )
    )
