"""Finding plug-ins, reading `plugins.toml`, and asking each plug-in what it brings.

A plug-in is found in one way: an entry point of the group `microkernel.plugins`. What a third party
brings and what is built in take the same road.
"""

import importlib.util
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from microkernel import hookspecs
from microkernel.backend import BackendType
from microkernel.batching import StrategyFactory
from microkernel.cache import CacheType
from microkernel.command import CommandType
from microkernel.errors import InvalidArgument
from microkernel.frontend import FrontendFactory
from microkernel.hookspecs import ENTRY_POINT_GROUP, PROJECT, RegisterFrontend
from microkernel.options import build, options_of

DEFAULT_FILE = Path("plugins.toml")


@dataclass(frozen=True, slots=True)
class FrontendType:
    """A front end that a plug-in offers."""

    name: str
    factory: FrontendFactory
    requires: tuple[str, ...]
    extra: str
    last: bool


@dataclass(slots=True)
class Plugin:
    """One plug-in and what it registered. `error` says why it could not be imported."""

    name: str
    distribution: str
    version: str
    enabled: bool = True
    error: str = ""
    settings_type: type[object] | None = None
    presets: dict[str, Any] = field(default_factory=dict)
    backends: list[BackendType] = field(default_factory=list)
    frontends: list[FrontendType] = field(default_factory=list)
    caches: list[CacheType] = field(default_factory=list)
    strategies: dict[str, StrategyFactory] = field(default_factory=dict)
    commands: list[CommandType] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """`backend`, `frontend`, `cache`, `batching`, `command`, several of them, or `none`."""
        kinds = {
            "backend": self.backends,
            "frontend": self.frontends,
            "cache": self.caches,
            "batching": self.strategies,
            "command": self.commands,
        }
        return ", ".join(kind for kind, found in kinds.items() if found) or "none"

    def missing(self) -> list[str]:
        """The modules that the plug-in needs and that cannot be imported here."""
        return _missing(module for one in self._parts() for module in one.requires)

    def _parts(self) -> list[BackendType | FrontendType | CacheType]:
        return [*self.backends, *self.frontends, *self.caches]

    def remedy(self) -> str:
        """What would make the plug-in available: "" if it is."""
        if self.error:
            return self.error
        return self._installation(self.missing(), {one.extra for one in self._parts()} - {""})

    def remedy_of(self, command: CommandType) -> str:
        """What would make a command of an available plug-in available: "" if it is."""
        return self._installation(_missing(command.requires), {command.extra} - {""})

    def _installation(self, missing: Sequence[str], extras: Iterable[str]) -> str:
        if not missing:
            return ""
        named = ",".join(sorted(extras))
        package = f"{self.distribution}[{named}]" if named else " ".join(missing)
        return f"needs {', '.join(missing)}: pip install '{package}'"


def _missing(modules: Iterable[str]) -> list[str]:
    return sorted(module for module in set(modules) if not _importable(module))


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # a parent of it is missing
        return False


class Plugins:
    """Every plug-in found, in the order of `plugins.toml` and then by name."""

    def __init__(self, plugins: Sequence[Plugin], file: Path | None, tables: Mapping[str, Any]):
        self.all = plugins
        self._file = file
        self._tables = tables

    def usable(self) -> list[Plugin]:
        """Those that are enabled and whose needs are met."""
        return [p for p in self.all if p.enabled and not p.remedy()]

    def values(self, plugin: Plugin) -> dict[str, Any]:
        """The plug-in's settings as the file gives them."""
        table = self._tables.get(plugin.name, {})
        return {key: value for key, value in table.items() if key != "enabled"}

    def settings(self, plugin: Plugin, flags: Mapping[str, Any]) -> Any:
        """The plug-in's settings object: a flag beats the file, the file the presets, and they the
        defaults; None where the plug-in declares none. Raises InvalidArgument naming file and
        key."""
        source = f"{self._file}: [plugins.{plugin.name}]"
        values = self.values(plugin)
        if plugin.settings_type is None:
            if values:
                raise InvalidArgument(f"{source}: unknown key '{next(iter(values))}'; no keys here")
            return None
        build(plugin.settings_type, values, source)
        given = {**self.presets(plugin.settings_type), **values, **flags}
        return build(plugin.settings_type, given, "command line")

    def presets(self, settings: type[object]) -> dict[str, Any]:
        """What holds in place of the defaults of a settings class: what plug-ins say for where the
        server runs, and what the file says, in any plug-in's table, of a flag that is shared.
        Raises InvalidArgument for a value that cannot be."""
        found = {
            name: self._by_flag[flag]
            for name, (_, spec, _) in options_of(settings).items()
            if (flag := spec.first) in self._by_flag
        }
        build(settings, found, "preset of a plug-in")
        return found

    @cached_property
    def _by_flag(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for plugin in self.usable():
            found |= plugin.presets
        for plugin in self.all:
            known = options_of(plugin.settings_type) if plugin.settings_type else {}
            values = self.values(plugin)
            found |= {known[key][1].first: values[key] for key in values.keys() & known.keys()}
        found.pop("", None)
        return found


def discover(file: Path | None = None) -> Plugins:
    """Find and ask every installed plug-in.

    `file` is the operator's `plugins.toml`; without one the working directory's is read if it
    exists. Raises InvalidArgument for a file that is missing or wrong, and for a table that names
    no installed plug-in.
    """
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    tables = {} if file is None else _read(file)
    found = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    for name in tables:
        if name not in found:
            names = ", ".join(sorted(found))
            raise InvalidArgument(f"{file}: [plugins.{name}]: no such plug-in; there are {names}")
    ordered = [*(n for n in tables), *(n for n in sorted(found) if n not in tables)]
    plugins = [_ask(found[name], tables.get(name, {}).get("enabled", True)) for name in ordered]
    return Plugins(plugins, file, tables)


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        document = tomllib.loads(file.read_text())
    except OSError as error:
        raise InvalidArgument(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{file}: {error}") from None
    tables = document.pop("plugins", {})
    if document:
        raise InvalidArgument(
            f"{file}: unknown key '{next(iter(document))}'; only 'plugins' is known"
        )
    if not isinstance(tables, dict):
        raise InvalidArgument(f"{file}: 'plugins' must be a table")
    for name, entry in tables.items():
        if not isinstance(entry, dict):
            raise InvalidArgument(f"{file}: 'plugins.{name}' must be a table")
        if not isinstance(entry.get("enabled", True), bool):
            raise InvalidArgument(f"{file}: [plugins.{name}]: 'enabled' must be true or false")
    return dict(tables)


class _FrontendRegister(RegisterFrontend):
    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    def __call__(
        self,
        name: str,
        factory: FrontendFactory,
        *,
        requires: tuple[str, ...] = (),
        extra: str = "",
        last: bool = False,
    ) -> None:
        self._plugin.frontends.append(FrontendType(name, factory, requires, extra, last))


def _ask(point: EntryPoint, enabled: bool) -> Plugin:
    """Import a plug-in's first module and call its hooks."""
    distribution = point.dist
    plugin = Plugin(
        point.name,
        distribution.name if distribution else "",
        distribution.version if distribution else "",
        enabled,
    )
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(point.load(), name=point.name)
        manager.check_pending()
        hook: Any = manager.hook
        hook.register_options(register=_keeper(plugin))
        hook.register_presets(register=plugin.presets.__setitem__)
        hook.register_backends(register=plugin.backends.append)
        hook.register_frontends(register=_FrontendRegister(plugin))
        hook.register_caches(register=plugin.caches.append)
        hook.register_batching_strategies(register=plugin.strategies.__setitem__)
        hook.register_commands(register=plugin.commands.append)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one plug-in must not stop all
        plugin.error = f"cannot be used: {type(error).__name__}: {error}"
        plugin.backends, plugin.frontends, plugin.caches, plugin.presets = [], [], [], {}
        plugin.strategies, plugin.commands = {}, []
    return plugin


def _keeper(plugin: Plugin) -> Callable[[type[object]], None]:
    def keep(settings: type[object]) -> None:
        plugin.settings_type = settings

    return keep
