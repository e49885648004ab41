"""From what an operator asks for to a cache."""

from collections.abc import Mapping
from typing import Any

from microkernel.cache import Cache
from microkernel.cache_config import FLAG, CacheChoice, cache_values, chosen_cache
from microkernel.errors import InvalidArgument, MicrokernelError
from microkernel.factories import make
from microkernel.options import build
from microkernel.plugins import Plugins


def open_cache(
    choice: CacheChoice, plugins: Plugins, flags: Mapping[str, Mapping[str, Any]]
) -> Cache:
    """Make the cache; it is not started. `flags` are those given for plug-ins, by their names.
    Raises InvalidArgument where there is no such cache or its settings are wrong."""
    plugin, kind = chosen_cache(choice, plugins.all)
    said = cache_values(choice, plugin)
    if plugin.settings_type is not None:
        build(plugin.settings_type, said, f"{FLAG} {choice.name}")
    settings = plugins.settings(plugin, {**flags.get(plugin.name, {}), **said})
    try:
        cache: Cache = make(kind.factory, settings)
    except MicrokernelError:
        raise
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InvalidArgument(
            f"{FLAG}: the cache '{choice.name}' cannot be made: {reason}"
        ) from error
    return cache
