"""The command line: `microkernel run`, `plugins`, `check` and `config`, and what plug-ins add.

Usage errors exit with 1, as Triton's do.
"""

import asyncio
import sys
from collections.abc import Callable
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import click

from microkernel import log
from microkernel.app import Setup
from microkernel.check import check as check_repository
from microkernel.check import configuration
from microkernel.commands import Commands
from microkernel.config.codec import config_to_text
from microkernel.errors import InvalidArgument, MicrokernelError
from microkernel.plugins import discover
from microkernel.run_command import RunCommand
from microkernel.settings import ServerSettings
from microkernel.whole_files import whole_file


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_version("microkernel"), prog_name="microkernel")
def cli() -> None:
    """An inference server that speaks Triton's protocols."""


cli.add_command(RunCommand())


@cli.command()
@click.option("--plugins", "file", type=click.Path(path_type=Path), help="A plugins.toml to read.")
def plugins(file: Path | None) -> int:
    """List every plug-in: what it is, and what would make it available."""
    header = ("name", "version", "kind", "enabled", "available", "to make it available")
    rows = [
        (
            plugin.name,
            plugin.version,
            plugin.kind,
            "yes" if plugin.enabled else "no",
            "no" if plugin.remedy() else "yes",
            plugin.remedy(),
        )
        for plugin in discover(file).all
    ]
    click.echo(log.table(header, rows))
    return 0


@cli.command()
@click.argument("repository", type=click.Path(path_type=Path))
@click.option("--load", is_flag=True, help="Load each model as well, and unload it again.")
@click.option("--plugins", "file", type=click.Path(path_type=Path), help="A plugins.toml to read.")
def check(repository: Path, load: bool, file: Path | None) -> int:
    """Validate every model of REPOSITORY; exit with 1 if one is wrong.

    Prints what is wrong, and the lines of configuration that would be filled in. Without --load the
    files of a model whose configuration is complete are not looked into.
    """
    return asyncio.run(_check(repository, _quiet(file), load=load))


def _quiet(file: Path | None) -> Setup:
    """What a command that serves nothing sets up; its output is not mixed with a log."""
    settings = ServerSettings(log_info=False, log_warning=False)
    control = log.configure(settings)
    return Setup(settings, discover(file), {}, control)


async def _check(repository: Path, setup: Setup, *, load: bool) -> int:
    wrong = 0
    loader = setup.loader()
    try:
        async for verdict in check_repository(repository, loader, load=load):
            wrong += bool(verdict.problem)
            click.echo(f"{verdict.model}: {verdict.problem or 'ok'}")
            for line in verdict.added:
                click.echo(f"    + {line}")
    finally:
        await loader.close()
    return 1 if wrong else 0


@cli.command("config")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--version", type=int, help="Which version to look at. [default: the latest]")
@click.option("--output", type=click.Path(path_type=Path), help="A file to write it to.")
@click.option("--plugins", "file", type=click.Path(path_type=Path), help="A plugins.toml to read.")
def config(model: Path, version: int | None, output: Path | None, file: Path | None) -> int:
    """Print the config.pbtxt that would serve the model of the directory MODEL as it is.

    It holds what the directory's own config.pbtxt says, if there is one, and what the backend can
    tell of the model's files.
    """
    text = asyncio.run(_config(_named(model), version, _quiet(file)))
    if output is None:
        click.echo(text, nl=False)
    else:
        _write(output, text)
    return 0


async def _config(directory: Path, version: int | None, setup: Setup) -> str:
    loader = setup.loader()
    try:
        return config_to_text(await configuration(directory, version, loader))
    finally:
        await loader.close()


def _named(directory: Path) -> Path:
    """A model's directory with its name at the end, for that is the model's. A link keeps its own,
    as in a repository."""
    if directory.name in ("", ".."):
        return directory.resolve()
    return directory.parent.resolve() / directory.name


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    try:
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"'{path}' cannot be written: {error.strerror}") from None


def main() -> None:
    """The entry point of the `microkernel` command."""
    sys.exit(_outcome(lambda: cli.main(prog_name="microkernel", standalone_mode=False)))


def _outcome(command: Callable[[], Any]) -> int:
    """Run a command; its exit code, 1 for everything that was wrong with how it was called."""
    try:
        return int(command() or 0)
    except click.ClickException as error:
        error.show()
    except MicrokernelError as error:
        click.echo(f"error: {error}", err=True)
    except click.Abort:
        click.echo("aborted", err=True)
    return 1
