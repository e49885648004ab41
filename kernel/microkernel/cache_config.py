"""`--cache-config`: which response cache the server has, and its settings. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microkernel.cache import CacheType
from microkernel.errors import InvalidArgument
from microkernel.options import from_text, options_of
from microkernel.plugins import Plugin

FLAG = "--cache-config"
OLD_FLAG = "--response-cache-byte-size"


@dataclass(frozen=True, slots=True)
class CacheChoice:
    """The cache that was asked for, and what was said of it, as text by key."""

    name: str
    settings: Mapping[str, str]


def parse_cache_config(entries: Sequence[str], byte_size: int) -> CacheChoice | None:
    """The values of the flag, each `name,key=value`, of which the last one of a key counts, and of
    its older form, 0 for none; None where no cache is asked for. Raises InvalidArgument, in
    Triton's words."""
    if entries and byte_size:
        raise InvalidArgument(
            f"Incompatible flags {OLD_FLAG} and {FLAG} both provided. Please provide one or the "
            "other."
        )
    found: dict[str, dict[str, str]] = {}
    for entry in (f"local,size={byte_size}",) if byte_size else entries:
        name, key, value = _parts(entry)
        found.setdefault(name, {})[key] = value
    if len(found) > 1:
        raise InvalidArgument(
            "found multiple cache configurations, but only a single cache is currently supported"
        )
    return next((CacheChoice(name, settings) for name, settings in found.items()), None)


def _parts(entry: str) -> tuple[str, str, str]:
    head, equals, value = entry.partition("=")
    name, _, key = head.partition(",")
    if not (name and key and equals):
        raise InvalidArgument(f"{FLAG} must be <name>,<key>=<value>, got '{entry}'")
    return name, key, value


def chosen_cache(choice: CacheChoice, plugins: Sequence[Plugin]) -> tuple[Plugin, CacheType]:
    """The cache of that name, and the plug-in that brings it. Raises InvalidArgument where there is
    none, or it lacks something."""
    found = {c.name: (plugin, c) for plugin in plugins if plugin.enabled for c in plugin.caches}
    if choice.name not in found:
        names = ", ".join(sorted(found)) or "none"
        raise InvalidArgument(f"{FLAG}: there is no cache '{choice.name}'; there are {names}")
    plugin, cache = found[choice.name]
    if remedy := plugin.remedy():
        raise InvalidArgument(f"{FLAG}: the cache '{choice.name}' {remedy}")
    return plugin, cache


def cache_values(choice: CacheChoice, plugin: Plugin) -> dict[str, Any]:
    """What was said of the cache of this plug-in, as values of its settings. Raises InvalidArgument
    for a key that it does not know, and for a value of the wrong type."""
    kinds: Mapping[str, type[object]] = {}
    if plugin.settings_type is not None:
        kinds = {name: kind for name, (kind, _, _) in options_of(plugin.settings_type).items()}
    values = {}
    for key, text in choice.settings.items():
        name = key.replace("-", "_")
        if name not in kinds:
            raise InvalidArgument(
                f"{FLAG}: the cache '{choice.name}' has no setting '{key}'; there are "
                f"{', '.join(sorted(kinds)) or 'none'}"
            )
        try:
            values[name] = from_text(text, kinds[name])
        except ValueError:
            raise InvalidArgument(
                f"{FLAG} {choice.name},{key}: the value must be of type {kinds[name].__name__}"
            ) from None
    return values
