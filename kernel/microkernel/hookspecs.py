"""The extension points. A plug-in is a module named by an entry point of the group
`microkernel.plugins` that implements some of these functions with `@hookimpl`; what is built in
uses nothing else.

Hooks run once, at start. They hand over descriptions and factories; nothing heavy is imported until
one is used.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import pluggy

from microkernel.backend import BackendType
from microkernel.batching import StrategyFactory
from microkernel.cache import CacheType
from microkernel.command import CommandType
from microkernel.frontend import FrontendFactory

PROJECT = "microkernel"
ENTRY_POINT_GROUP = "microkernel.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

RegisterOptions: TypeAlias = Callable[[type[object]], None]
RegisterPreset: TypeAlias = Callable[[str, Any], None]
RegisterBackend: TypeAlias = Callable[[BackendType], None]
RegisterCache: TypeAlias = Callable[[CacheType], None]
RegisterBatchingStrategy: TypeAlias = Callable[[str, StrategyFactory], None]
RegisterCommand: TypeAlias = Callable[[CommandType], None]


class RegisterFrontend:
    """Takes the front ends of one plug-in: `register(name, factory, requires=..., extra=...)`."""

    def __call__(
        self,
        name: str,
        factory: FrontendFactory,
        *,
        requires: tuple[str, ...] = (),
        extra: str = "",
        last: bool = False,
    ) -> None:
        """`factory(server, settings)` makes the front end. `requires` names the modules it needs
        and `extra` the extra of the distribution that brings them. One that is `last` goes on
        answering until the models are down."""
        raise NotImplementedError


@hookspec
def register_options(register: RegisterOptions) -> None:
    """Declare the plug-in's settings: a frozen dataclass of `option()` fields. They become flags of
    `microkernel run` and keys of the plug-in's table in `plugins.toml`; one object of the class
    goes to each factory."""


@hookspec
def register_presets(register: RegisterPreset) -> None:
    """Change the defaults of flags by where the server runs: `register("--http-port", 80)`. They
    may be those of the server and of other plug-ins; a flag that nobody has is left out. What the
    operator says, in `plugins.toml` or by a flag, beats it."""


@hookspec
def register_backends(register: RegisterBackend) -> None:
    """Announce backends, a `BackendType` each."""


@hookspec
def register_frontends(register: RegisterFrontend) -> None:
    """Announce protocol front ends, a factory each."""


@hookspec
def register_caches(register: RegisterCache) -> None:
    """Announce response caches, a `CacheType` each. The one that `--cache-config` names is made at
    start, with the plug-in's settings."""


@hookspec
def register_batching_strategies(register: RegisterBatchingStrategy) -> None:
    """Announce batching strategies: `register(name, factory)`. A model whose parameter
    `BATCH_STRATEGY` names one has it asked which requests may share a batch."""


@hookspec
def register_commands(register: RegisterCommand) -> None:
    """Add commands to `microkernel`, a `CommandType` each. `microkernel --help` lists them; what
    they run is imported when they are called."""
