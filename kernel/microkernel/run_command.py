"""`microkernel run`: its flags are the fields of the server's settings and of every plug-in's."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click

from microkernel import app, log
from microkernel.app import Setup
from microkernel.options import NO_EFFECT, Option, build, options_of
from microkernel.plugins import Plugins, discover
from microkernel.settings import ServerSettings

_PLUGINS = "microkernel.plugins"
"""Where a command's context keeps the plug-ins that were found."""

_SERVER = ""
"""Whose flags: the server's own, under no plug-in's name."""

_FIRST_GROUPS = ("Server", "Models", "Logging", "HTTP", "gRPC", "Metrics", "Tracing")
"""The groups of flags in the order in which `--help` shows them; others follow."""


class _Verbosity(click.ParamType[int]):
    """A number; `true` and `false` are 1 and 0, as for Triton's --log-verbose."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        words = {"true": 1, "false": 0}
        try:
            return int(words.get(str(value).lower(), value))
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)


class _Checked(click.ParamType[Any]):
    """A value of some type that must pass the check of its option."""

    def __init__(self, base: click.ParamType[Any], spec: Option) -> None:
        self.name = base.name
        self._base = base
        self._fault = replace(spec, many=False).fault

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        converted = self._base.convert(value, param, ctx)
        if fault := self._fault(converted):
            self.fail(f"{value!r} {fault}", param, ctx)
        return converted


class _Flag(click.Option):
    """A flag, and the group of flags it is shown in."""

    def __init__(self, *declaration: Any, group: str, **attributes: Any) -> None:
        super().__init__(*declaration, **attributes)
        self.group = group


def _type(kind: type[object], spec: Option) -> click.ParamType[Any]:
    if spec.choices:
        return click.Choice(spec.choices, case_sensitive=False)
    types: dict[type[object], click.ParamType[Any]] = {bool: click.BOOL, int: click.INT}
    base = types.get(kind) or (click.FLOAT if kind is float else click.STRING)
    if spec.flag == "--log-verbose":
        base = _Verbosity()
    return base if spec.check is None else _Checked(base, spec)


def _parameters(owner: str, settings: type[object]) -> Iterator[click.Option]:
    """A click option per field that has a flag. Its value is None where it was not given, so that
    the file's and the default stay; a boolean without a value is true."""
    for name, (kind, spec, default) in options_of(settings).items():
        if not spec.flag:
            continue
        given: dict[str, Any] = {"flag_value": "true", "is_flag": False} if kind is bool else {}
        shown = str(default).lower() if kind is bool else default
        told = default not in ((), "") and not (spec.no_effect or spec.deprecated)
        yield _Flag(
            [*spec.flag.split(), _prefix(owner) + name],
            type=_type(kind, spec),
            multiple=spec.many,
            default=None,
            help=f"{spec.about} [default: {shown}]" if told else spec.about,
            group=spec.group or owner,
            **given,
        )


class RunCommand(click.Command):
    """`microkernel run`, whose flags depend on the plug-ins that `--plugins FILE` enables."""

    def __init__(self) -> None:
        super().__init__(
            "run",
            callback=None,
            help="Serve the models of one or more repositories over HTTP and gRPC.",
            context_settings={"max_content_width": 100},
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the operator's file first: it says which plug-ins there are to give flags."""
        ctx.meta[_PLUGINS] = discover(_plugins_file(args))
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        plugins: Plugins = ctx.meta[_PLUGINS]
        params: list[click.Parameter] = [_plugins_option()]
        params += _parameters(_SERVER, ServerSettings)
        for plugin in plugins.all:
            if plugin.settings_type is not None:
                params += _parameters(plugin.name, plugin.settings_type)
        return _once([*params, *super().get_params(ctx)])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags in groups: those of the server, of plug-ins, and what has no effect."""
        groups: dict[str, list[tuple[str, str]]] = {group: [] for group in _FIRST_GROUPS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                group = param.group if isinstance(param, _Flag) else _FIRST_GROUPS[0]
                groups.setdefault(group, []).append(record)
        last = {NO_EFFECT: groups.pop(NO_EFFECT, [])}
        for group, records in (groups | last).items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)

    def invoke(self, ctx: click.Context) -> int:
        values = {key: value for key, value in ctx.params.items() if value not in (None, ())}
        given = {p.opts[0]: values[p.name] for p in self.get_params(ctx) if p.name in values}
        plugins: Plugins = ctx.meta[_PLUGINS]
        wanted = {**plugins.presets(ServerSettings), **_of(ServerSettings, given)}
        settings = build(ServerSettings, wanted, "command line")
        control = log.configure(settings)
        flags = {p.name: _of(p.settings_type, given) for p in plugins.all if p.settings_type}
        return app.run(Setup(settings, plugins, flags, control))


def _plugins_file(args: Sequence[str]) -> Path | None:
    """The file that `--plugins` names. Raises a usage error where none follows."""
    for argument, following in zip_longest(args, args[1:]):
        flag, _, value = argument.partition("=")
        if flag == "--plugins":
            value = value or following or ""
            if not value:
                raise click.UsageError("Option '--plugins' requires a file.")
            return Path(value)
    return None


def _once(params: Sequence[click.Parameter]) -> list[click.Parameter]:
    """A flag that several plug-ins declare is one flag, meant for each of them."""
    found: dict[str, click.Parameter] = {}
    for param in params:
        found.setdefault(param.opts[0], param)
    return list(found.values())


def _of(settings: type[object], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values, given by flag, of one settings class, by field name."""
    known = options_of(settings).items()
    return {name: given[spec.first] for name, (_, spec, _) in known if spec.first in given}


def _prefix(owner: str) -> str:
    """What stands before a field's name in click's, which must be an identifier."""
    return f"_{re.sub(r'[^0-9a-zA-Z]', '_', owner)}__"


def _plugins_option() -> click.Option:
    return click.Option(
        ["--plugins"],
        type=click.Path(path_type=Path),
        help="Which plug-ins are enabled, and their settings. [default: ./plugins.toml if there "
        "is one]",
    )
