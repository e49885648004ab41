"""Commands that plug-ins bring: listed without being imported, run when they are called."""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from microkernel.hookspecs import ENTRY_POINT_GROUP

Call = Callable[..., int]

PLUG_IN = """
    from microkernel import CommandType, hookimpl

    @hookimpl
    def register_commands(register):
        register(CommandType("wave", "{name}_command:wave", "Wave at somebody."))
        register(CommandType("check", "{name}_command:wave", "Not the server's."))
        register(CommandType("broken", "{name}_command:nothing", "Cannot be imported."))
        register(CommandType("number", "{name}_command:NUMBER", "Is no command."))
        register(CommandType("far", "{name}_command:wave", "Far away.", ("no_such_module",), "far"))
"""

COMMAND = """
    import click
    from microkernel import InvalidArgument

    NUMBER = 3

    @click.command()
    @click.argument("name")
    @click.option("--often", type=int, default=0)
    def wave(name, often):
        if name == "nobody":
            raise InvalidArgument("there is nobody")
        click.echo(f"waving at {name}")
        return often
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`install("waver")`: a plug-in of that name with commands."""

    def make(name: str) -> None:
        site = tmp_path / name
        info = site / f"{name}-0.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{name} = {name}_plug_in\n")
        (site / f"{name}_plug_in.py").write_text(textwrap.dedent(PLUG_IN.format(name=name)))
        (site / f"{name}_command.py").write_text(textwrap.dedent(COMMAND))
        for module in (f"{name}_plug_in", f"{name}_command"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(str(site))

    return make


@pytest.fixture(autouse=True)
def waver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Callable[[str], None]) -> None:
    """A plug-in with commands, and a working directory without plugins.toml."""
    install("waver")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def test_help_lists_commands_without_importing_them(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--help") == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line]
    told = {line[0]: line[1] for line in lines if len(line) == 2}
    assert told["wave"] == "Wave at somebody."
    assert told["check"].startswith("Validate every model")
    assert told["far"].startswith("Far away. (needs no_such_module: pip install ")
    assert "waver_command" not in sys.modules


def test_a_command_runs_and_gives_the_exit_code(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("wave", "you", "--often", "3") == 3
    assert call("wave", "you") == 0
    assert capsys.readouterr().out == "waving at you\n" * 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("wave", "nobody"), "error: there is nobody"),
        (("wave",), "Missing argument 'NAME'"),
        (
            ("far", "--help"),
            "'far' is not available: needs no_such_module: pip install 'waver[far]",
        ),
        (("broken", "x"), "'broken' is not available: cannot be used: AttributeError: "),
        (("number",), "'number' is not available: 'waver_command:NUMBER' is no click.Command"),
        (("wavy",), "No such command 'wavy'"),
    ],
)
def test_what_cannot_run_exits_with_1(
    call: Call, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], text: str
) -> None:
    assert call(*arguments) == 1
    assert text in capsys.readouterr().err


def test_a_command_of_a_disabled_plug_in_says_so(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("plugins.toml").write_text("[plugins.waver]\nenabled = false\n")
    assert call("wave", "you") == 1
    assert "'waver' is not enabled in plugins.toml" in capsys.readouterr().err
    assert call("--help") == 0
    assert "Wave at somebody. (the plug-in 'waver' is not enabled" in capsys.readouterr().out


def test_two_plug_ins_cannot_share_a_command_while_both_are_enabled(
    call: Call, install: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("other")
    assert call("wave", "you") == 1
    assert "both offer a command 'wave'" in capsys.readouterr().err
    Path("plugins.toml").write_text("[plugins.waver]\nenabled = false\n")
    assert call("wave", "you") == 0
    assert "other_command" in sys.modules
    assert "waver_command" not in sys.modules


def test_a_broken_file_of_plug_ins_leaves_the_server_s_own_commands(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("plugins.toml").write_text("this is broken")
    assert call("--help") == 0
    out = capsys.readouterr().out
    assert "\n  check " in out
    assert "Commands of plug-ins are not listed. plugins.toml: " in out
    assert call("wave", "you") == 1
    assert "error: plugins.toml: " in capsys.readouterr().err
