"""The command line: which flags there are, what they become, and the exit codes."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from microkernel import app
from microkernel.app import Setup
from microkernel.hookspecs import ENTRY_POINT_GROUP
from microkernel.options import options_of
from microkernel.settings import ServerSettings

Call = Callable[..., int]

PLUG_IN = """
    from dataclasses import dataclass
    from microkernel import BackendType, hookimpl, option

    @dataclass(frozen=True, slots=True)
    class Settings:
        fast: bool = option(False, about="Be fast.", flag="--odd-fast")
        depth: int = option(1, about="How deep.", flag="--odd-depth")
        hidden: int = option(1, about="Only in the file.")

    @hookimpl
    def register_options(register):
        register(Settings)

    @hookimpl
    def register_backends(register):
        register(BackendType("odd", "odd_plug_in:make"))

    def make(settings):
        from odd_backend import OddBackend
        return OddBackend()
"""


@pytest.fixture(autouse=True)
def stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd_path: None, real_log: None
) -> None:
    """A plug-in `odd-one` of another distribution, and a working directory without plugins.toml."""
    site, cwd = tmp_path / "site", tmp_path / "cwd"
    info = site / "odd_one-0.1.dist-info"
    info.mkdir(parents=True)
    cwd.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-one\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\nodd-one = odd_plug_in\n")
    (site / "odd_plug_in.py").write_text(textwrap.dedent(PLUG_IN))
    monkeypatch.delitem(sys.modules, "odd_plug_in", raising=False)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", f"{site}:{Path(__file__).with_name('odd')}")
    monkeypatch.chdir(cwd)


@pytest.fixture
def setups(monkeypatch: pytest.MonkeyPatch) -> list[Setup]:
    """What `microkernel run` would serve with; nothing is started."""
    seen: list[Setup] = []

    def record(setup: Setup) -> int:
        seen.append(setup)
        return 0

    monkeypatch.setattr(app, "run", record)
    return seen


def test_version(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"microkernel, version {version('microkernel')}\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_commands(call: Call, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert call(flag) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in ("run", "plugins", "check"))


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_run_lists_every_flag(
    call: Call, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert call("run", flag) == 0
    out = capsys.readouterr().out
    flags = [f for _, spec, _ in options_of(ServerSettings).values() for f in spec.flag.split()]
    for wanted in [*flags, "--plugins", "--odd-fast", "--odd-depth", "--http-port", "--grpc-port"]:
        assert wanted in out, wanted
    assert "hidden" not in out
    assert "[default: true]" in out
    groups = [line for line in out.splitlines() if line.endswith(":") and line[0] != " "]
    assert groups[:3] == ["Server:", "Models:", "Logging:"]
    assert {"HTTP:", "gRPC:", "Metrics:", "Tracing:", "Shared memory:", "odd-one:"} <= {*groups}
    assert groups[-1] == "Accepted without effect:"
    assert out.index("Accepted without effect:") < out.index("--http-thread-count")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("run", "--nonsense"), "--nonsense"),
        (("run", "--odd-depth=deep"), "'deep' is not a valid integer"),
        (("run", "--log-verbose=much"), "'much' is not a number"),
        (("run", "--strict-readiness=maybe"), "'maybe' is not a valid boolean"),
        (("run", "--model-control-mode=often"), "'often' is not one of 'none', 'poll'"),
        (("run", "--repository-poll-secs=-1"), "'-1' must be at least 0"),
        (("run", "--log-verbose=4294967296"), "must be from 0 to 4"),
        (("run", "surplus"), "unexpected extra argument"),
        (("run", "--model-load-thread-count=0"), "'0' must be at least 1"),
        (("run", "--cache-config=local"), "'local' must have the form <name>,<key>=<value>"),
        (("run", "--strict-redines"), "--strict-readiness"),
        (("run", "--plugins=none.toml"), "error: none.toml: cannot be read: "),
        (("nonsense",), "No such command 'nonsense'"),
        (("check",), "Missing argument 'REPOSITORY'"),
        (("check", "no_such_directory"), "failed to read the directory "),
        (("plugins", "--plugins=none.toml"), "error: none.toml: cannot be read: "),
    ],
)
def test_wrong_usage_exits_with_1(
    call: Call,
    capsys: pytest.CaptureFixture[str],
    setups: list[Setup],
    arguments: tuple[str, ...],
    text: str,
) -> None:
    assert call(*arguments) == 1
    assert text in capsys.readouterr().err
    assert setups == []


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ((), "strict_readiness", True),
        (("--strict-readiness=false",), "strict_readiness", False),
        (("--strict-readiness", "false"), "strict_readiness", False),
        (("--strict-readiness=0",), "strict_readiness", False),
        (("--disable-auto-complete-config",), "disable_auto_complete_config", True),
        (("--disable-auto-complete-config=true",), "disable_auto_complete_config", True),
        (("--exit-timeout-secs", "5"), "exit_timeout_secs", 5),
        (("--log-verbose=2",), "log_verbose", 2),
        (("--log-verbose=true",), "log_verbose", 1),
        (("--log-verbose=False",), "log_verbose", 0),
        (("--model-repository=a", "--model-store=b"), "model_repository", ("a", "b")),
        (("--model-control-mode=explicit",), "model_control_mode", "explicit"),
        (("--model-control-mode=EXPLICIT",), "model_control_mode", "explicit"),
        (("--rate-limit", "Execution_Count"), "rate_limit", "execution_count"),
        (("--repository-poll-secs=0",), "repository_poll_secs", 0),
        (("--id", "me"), "id", "me"),
        (("--strict-readiness=OFF",), "strict_readiness", False),
        (("--exit-on-error", "False"), "exit_on_error", False),
        (("--allow-client-shm=On",), "allow_client_shm", True),
        (
            ("--backend-config", "python,a=b,c", "--backend-config=d=1"),
            "backend_config",
            ("python,a=b,c", "d=1"),
        ),
        (
            ("--rate-limit-resource=R1:10", "--rate-limit-resource=R2:5:0"),
            "rate_limit_resource",
            ("R1:10", "R2:5:0"),
        ),
    ],
)
def test_flags_of_the_server(
    call: Call, setups: list[Setup], arguments: tuple[str, ...], field: str, value: object
) -> None:
    assert call("run", *arguments) == 0
    assert getattr(setups[0].settings, field) == value


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        ((), {}),
        (("--odd-fast",), {"fast": True}),
        (("--odd-fast=true",), {"fast": True}),
        (("--odd-fast", "false"), {"fast": False}),
        (("--odd-fast", "--odd-depth", "3"), {"fast": True, "depth": 3}),
    ],
)
def test_flags_of_a_plug_in(
    call: Call, setups: list[Setup], arguments: tuple[str, ...], flags: dict[str, Any]
) -> None:
    assert call("run", *arguments) == 0
    assert setups[0].flags["odd-one"] == flags


def test_a_flag_beats_the_file(call: Call, setups: list[Setup], tmp_path: Path) -> None:
    file = tmp_path / "plugins.toml"
    file.write_text("[plugins.odd-one]\nfast = true\ndepth = 5\nhidden = 6\n")
    assert call("run", f"--plugins={file}", "--odd-depth=7") == 0
    setup = setups[0]
    plugin = next(plugin for plugin in setup.plugins.all if plugin.name == "odd-one")
    settings = setup.plugins.settings(plugin, setup.flags["odd-one"])
    assert (settings.fast, settings.depth, settings.hidden) == (True, 7, 6)


@pytest.mark.parametrize("form", ["--plugins={}", "--plugins {}"])
def test_the_named_file_is_read_in_place_of_the_working_directory_s(
    call: Call, setups: list[Setup], tmp_path: Path, form: str
) -> None:
    Path("plugins.toml").write_text("this is broken")
    file = tmp_path / "mine.toml"
    file.write_text("[plugins.http]\nenabled = false\n")
    assert call("run", "--model-repository", "models", *form.format(file).split()) == 0
    (setup,) = setups
    assert {plugin.name: plugin.enabled for plugin in setup.plugins.all}["http"] is False


def test_the_file_of_plug_ins_must_be_named(call: Call) -> None:
    assert call("run", "--plugins") == 1
    assert call("run", "--plugins=") == 1


def test_the_exit_code_of_the_server_is_the_command_s(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "run", lambda setup: 1)
    assert call("run") == 1


def test_an_interrupt_is_no_traceback(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(setup: Setup) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "run", interrupt)
    assert call("run") == 1
    assert capsys.readouterr().err.strip() == "aborted"


def test_without_a_command_the_help_is_shown(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call() == 1
    captured = capsys.readouterr()
    assert "Usage: microkernel" in captured.out + captured.err


def test_plugins_are_listed(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "plugins.toml"
    file.write_text("[plugins.odd-one]\nenabled = false\n")
    assert call("plugins", f"--plugins={file}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "name"
    assert lines[2].split() == ["odd-one", "0.1", "backend", "no", "yes"]
    assert {line.split()[0] for line in lines[3:]} >= {"http", "grpc", "python"}


def model(repository: Path, name: str, config: str) -> None:
    directory = repository / name
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text(textwrap.dedent(config))


GOOD = """
    backend: "odd"
    max_batch_size: 4
    input { name: "X" data_type: TYPE_INT32 dims: -1 }
    output { name: "Y" data_type: TYPE_INT32 dims: -1 }
"""


def test_a_good_repository(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model(tmp_path / "models", "fine", GOOD)
    assert call("check", str(tmp_path / "models")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fine: ok"
    assert '    + name: "fine"' in lines


STEPS = """
    platform: "ensemble"
    max_batch_size: {size}
    input {{ name: "a" data_type: TYPE_INT32 dims: -1 }}
    output {{ name: "y" data_type: {kind} dims: -1 }}
    ensemble_scheduling {{ step {{ model_name: "{model}" model_version: {version}
      input_map {{ key: "{x}" value: "a" }} output_map {{ key: "{y}" value: "y" }} }} }}
"""


def steps(model: str, version: int = -1, size: int = 4, kind: str = "TYPE_INT32") -> str:
    """An ensemble of one step, which runs a model or, where its name begins so, an ensemble."""
    x, y = ("a", "y") if model.startswith("e_") else ("X", "Y")
    return STEPS.format(model=model, version=version, size=size, kind=kind, x=x, y=y)


def test_ensembles_are_held_against_their_models(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    decoupled = "model_transaction_policy { decoupled: true }\n"
    model(models, "m", GOOD)
    model(models, "many", GOOD + decoupled)
    model(models, "wrong", GOOD.replace('"odd"', '"no_such"'))
    model(models, "a_good", steps("m"))
    model(models, "e_absent", steps("none"))
    model(models, "e_circle", steps("e_circle"))
    model(models, "e_decoupled", steps("many"))
    model(models, "e_large", steps("m", size=5))
    model(models, "e_outer", steps("e_large"))
    model(models, "e_type", steps("m", kind="TYPE_FP32"))
    model(models, "e_version", steps("m", version=2))
    model(models, "e_wrong", steps("wrong"))
    assert call("check", str(models)) == 1
    lines = capsys.readouterr().out.splitlines()
    found = dict(line.split(": ", 1) for line in lines if not line.startswith(" "))
    assert {name: found.pop(name) for name in ("a_good", "e_decoupled", "m", "many")} == (
        dict.fromkeys(("a_good", "e_decoupled", "m", "many"), "ok")
    )
    assert "no_such" in found.pop("wrong")
    start = "Invalid argument: "
    assert {name: problem.removeprefix(start) for name, problem in found.items()} == {
        "e_absent": "ensemble e_absent contains models that are not available or ambiguous: none",
        "e_circle": "circular dependency between ensembles: e_circle -> ... -> e_circle -> "
        "e_circle",
        "e_large": "ensemble e_large allows maximum batch size 5, but it contains model m which "
        "only allows maximum batch size to be 4",
        "e_outer": "ensemble 'e_outer' depends on 'e_large' which is not valid",
        "e_type": "ensemble tensor y: inconsistent data type: TYPE_FP32 is inferred from model "
        "e_type while TYPE_INT32 is inferred from model m",
        "e_version": "ensemble 'e_version' depends on 'm' whose required version 2 is not loaded.",
        "e_wrong": "ensemble 'e_wrong' depends on 'wrong' which is not valid",
    }
    shown = lines[lines.index("e_decoupled: ok") :]
    assert "    +   decoupled: true" in shown[: shown.index("m: ok")]


def test_a_bad_repository(call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    models = tmp_path / "models"
    model(models, "fine", GOOD)
    model(models, "misspelt", GOOD + "maks_batch_size: 3\n")
    model(models, "many", GOOD + "instance_group { count: 1000000 }\n")
    model(models, "nobody", GOOD.replace('"odd"', '"no_such"'))
    fail = 'parameters { key: "FAIL" value { string_value: "complete" } }\n'
    model(models, "unfinished", GOOD + fail)
    assert call("check", str(models)) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert [line.partition(":")[0] for line in lines] == [
        "fine",
        "many",
        "misspelt",
        "nobody",
        "unfinished",
    ]
    assert lines[0] == "fine: ok"
    assert "have 1000000 instances, more than the 1024 that a model may have" in lines[1]
    assert "maks_batch_size" in lines[2]
    assert "no_such" in lines[3]
    assert lines[4] == "unfinished: Invalid argument: cannot complete"


def test_models_are_loaded_where_that_is_asked_for(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    fail = 'parameters { key: "FAIL" value { string_value: "load" } }\n'
    model(models, "a_step", steps("good"))
    model(models, "broken", GOOD + fail)
    model(models, "good", GOOD)
    assert call("check", str(models)) == 0
    capsys.readouterr()
    assert call("check", "--load", str(models)) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert lines == ["a_step: ok", "broken: Internal: Stranger: cannot load", "good: ok"]


def test_what_only_a_load_would_find(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    models, batched = tmp_path / "models", GOOD + "dynamic_batching { }\n"
    said = 'parameters {{ key: "{}" value {{ string_value: "{}" }} }}\n'
    model(models, "a", batched + said.format("BATCH_STRATEGY", "nope"))
    model(models, "b", batched + said.format("TRITON_BATCH_STRATEGY_PATH", "../x.py"))
    model(models, "c", GOOD + said.format("WORKER", "nope"))
    model(models, "d", batched + said.format("REJECT_HOPELESS", "true"))
    assert call("check", str(models)) == 1
    lines = capsys.readouterr().out.splitlines()
    for line, fault in zip(
        lines,
        (
            "a: Invalid argument: parameter 'BATCH_STRATEGY' of model 'a' names 'nope', and",
            "b: Invalid argument: parameter 'TRITON_BATCH_STRATEGY_PATH' of model 'b' must name a ",
            "c: Invalid argument: parameter 'WORKER' of model 'c' must be one of process, ",
            "d: Invalid argument: parameter 'REJECT_HOPELESS' of model 'd' needs a queue policy",
        ),
        strict=True,
    ):
        assert line.startswith(fault)


def test_the_installed_command() -> None:
    code = (
        "import sys; from microkernel.cli import main; sys.argv[1:] = ['run', '--nonsense']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--nonsense" in done.stderr
