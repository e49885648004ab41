"""`--backend-config`: settings of backends, by Triton's names of both. Pure."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microkernel.backend import BackendType
from microkernel.errors import InvalidArgument
from microkernel.options import from_text, options_of
from microkernel.plugins import Plugin

FLAG = "--backend-config"


@dataclass(frozen=True, slots=True)
class BackendSetting:
    """One value of the flag; `backend` is "" for one that is meant for every backend. `name` is the
    key as fields of settings are spelled."""

    backend: str
    key: str
    value: str

    @property
    def name(self) -> str:
        return self.key.replace("-", "_")

    def __str__(self) -> str:
        head = f"{self.backend},{self.key}" if self.backend else self.key
        return f"{FLAG} {head}={self.value}"


def parse_backend_config(entries: Sequence[str]) -> tuple[BackendSetting, ...]:
    """The values of the flag, each `backend,key=value` or `key=value`. Raises InvalidArgument for
    one of another form."""
    found = []
    for entry in entries:
        head, equals, value = entry.partition("=")
        backend, comma, key = head.rpartition(",")
        if not (equals and key) or (comma and not backend) or "," in backend:
            raise InvalidArgument(
                f"{FLAG} must be <backend>,<key>=<value> or <key>=<value>, got '{entry}'"
            )
        found.append(BackendSetting(backend, key, value))
    return tuple(found)


def values_for(given: Sequence[BackendSetting], plugin: Plugin) -> dict[str, Any]:
    """What is given for the backends of a plug-in, as values of its settings: those for a backend
    beat those for all. Raises InvalidArgument for a value of the wrong type."""
    fields = _fields(plugin)
    names = [backend.name for backend in plugin.backends]
    values: dict[str, Any] = {}
    for owners in ([""] if names else [], names):
        found: dict[str, Any] = {}
        for setting in given:
            if setting.backend in owners and setting.name in fields:
                value = _read(setting, fields[setting.name])
                found[setting.name] = (
                    found.get(setting.name, ()) + value if isinstance(value, tuple) else value
                )
        values |= found
    return values


def _fields(plugin: Plugin) -> Mapping[str, type[object]]:
    """The types of the settings of a plug-in that brings backends."""
    if plugin.settings_type is None or not plugin.backends:
        return {}
    return {name: kind for name, (kind, _, _) in options_of(plugin.settings_type).items()}


def _read(setting: BackendSetting, kind: type[object]) -> Any:
    try:
        return from_text(setting.value, kind)
    except ValueError:
        raise InvalidArgument(f"{setting}: the value must be of type {kind.__name__}") from None


def without_effect(given: Sequence[BackendSetting], plugins: Sequence[Plugin]) -> list[str]:
    """What to tell the operator of the settings that no plug-in takes, and why."""
    return [
        f"{setting} has no effect: {reason}"
        for setting in given
        if (reason := _objection(setting, plugins))
    ]


def _objection(setting: BackendSetting, plugins: Sequence[Plugin]) -> str:
    """Why a setting changes nothing, "" where it does."""
    asked = [plugin for plugin in plugins if _is_for(setting, plugin.backends)]
    known = sorted({name for plugin in asked for name in _fields(plugin)})
    if setting.name in known:
        return ""
    if not asked:
        return f"there is no backend '{setting.backend}'"
    if setting.backend:
        backends = [backend for plugin in asked for backend in plugin.backends]
        reason = next(_reasons(setting, backends), "")
        return reason or f"the backend '{setting.backend}' has no such setting{_known(known)}"
    return f"no backend has such a setting{_known(known)}"


def _known(names: Sequence[str]) -> str:
    return f"; there are {', '.join(names)}" if names else ""


def _is_for(setting: BackendSetting, backends: Collection[BackendType]) -> bool:
    return any(setting.backend in ("", backend.name) for backend in backends)


def _reasons(setting: BackendSetting, backends: Sequence[BackendType]) -> Iterator[str]:
    for backend in backends:
        for key, reason in backend.ignored_settings.items():
            if key.replace("-", "_") == setting.name:
                yield reason
