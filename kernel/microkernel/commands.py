"""The commands of `microkernel`: its own, and those that plug-ins bring, found when they are asked
for."""

from collections.abc import Iterator

import click

from microkernel.command import CommandType
from microkernel.errors import InvalidArgument
from microkernel.factories import resolve
from microkernel.plugins import Plugin, Plugins, discover

_ANY_ARGUMENTS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


class Commands(click.Group):
    """A group whose own commands come first; a plug-in's is imported only when it is called.

    Which plug-ins are enabled is what `plugins.toml` in the working directory says.
    """

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or one that says what would make it available. Raises InvalidArgument where
        `plugins.toml` is wrong, and a usage error where two plug-ins offer the command."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        found = [(p, c) for p, c in _offered(discover()) if c.name == cmd_name]
        enabled = [(p, c) for p, c in found if p.enabled]
        if len(enabled) > 1:
            names = " and ".join(f"'{plugin.name}'" for plugin, _ in enabled)
            raise click.UsageError(f"the plug-ins {names} both offer a command '{cmd_name}'", ctx)
        for plugin, command in enabled or found:
            return _command(plugin, command)
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing those of plug-ins."""
        rows = {name: own.get_short_help_str(100) for name, own in self.commands.items()}
        doubt = ""
        try:
            for plugin, command in _offered(discover()):
                rows.setdefault(command.name, _told(plugin, command))
        except InvalidArgument as error:
            doubt = f"Commands of plug-ins are not listed. {error}"
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows.items()))
        if doubt:
            formatter.write_paragraph()
            formatter.write_text(doubt)


def _offered(plugins: Plugins) -> Iterator[tuple[Plugin, CommandType]]:
    return ((plugin, command) for plugin in plugins.all for command in plugin.commands)


def _told(plugin: Plugin, command: CommandType) -> str:
    remedy = _remedy(plugin, command)
    return f"{command.about} ({remedy})" if remedy else command.about


def _remedy(plugin: Plugin, command: CommandType) -> str:
    """What would make a command available: "" if it is."""
    if not plugin.enabled:
        return f"the plug-in '{plugin.name}' is not enabled in plugins.toml"
    return plugin.remedy() or plugin.remedy_of(command)


def _command(plugin: Plugin, command: CommandType) -> click.Command:
    if remedy := _remedy(plugin, command):
        return _Unavailable(command, remedy)
    try:
        target = resolve(command.target)
    except Exception as error:  # noqa: BLE001 - a plug-in's module may raise anything
        return _Unavailable(command, f"cannot be used: {type(error).__name__}: {error}")
    if not isinstance(target, click.Command):
        return _Unavailable(command, f"'{command.target}' is no click.Command")
    return target


class _Unavailable(click.Command):
    """A command that cannot run here; it says why, whatever its arguments."""

    def __init__(self, command: CommandType, reason: str) -> None:
        super().__init__(command.name, help=command.about, context_settings=_ANY_ARGUMENTS)
        self._reason = reason

    def invoke(self, ctx: click.Context) -> None:
        raise click.ClickException(f"the command '{self.name}' is not available: {self._reason}")
