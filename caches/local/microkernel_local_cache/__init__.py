"""The cache `local`: responses in the memory of the server."""

from dataclasses import dataclass

from microkernel import (
    Between,
    CacheType,
    RegisterCache,
    RegisterOptions,
    hookimpl,
    option,
)

LEAST = 1024
"""The smallest cache in bytes; a smaller one could keep nothing."""


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """What `--cache-config=local,size=BYTES` may say."""

    size: int = option(
        0,
        check=Between(LEAST),
        about="The bytes that all kept responses may take together.",
    )


@hookimpl
def register_options(register: RegisterOptions) -> None:
    register(LocalSettings)


@hookimpl
def register_caches(register: RegisterCache) -> None:
    register(CacheType("local", "microkernel_local_cache.cache:LocalCache"))
