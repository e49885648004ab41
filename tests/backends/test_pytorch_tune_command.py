"""`microkernel tune`: its arguments, what it writes and what it refuses. What measuring finds is
given here; the tests of the server run the real one."""

import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from microkernel import Internal, InvalidArgument, MicrokernelError, ModelConfig, Unavailable
from microkernel_torchscript.tuning import command, places
from microkernel_torchscript.tuning.asking import Answer, NotMeasured
from microkernel_torchscript.tuning.deciding import Decision, unchanged
from microkernel_torchscript.tuning.keeping import made_now
from microkernel_torchscript.tuning.record import Measured
from microkernel_torchscript.tuning.trial import OPTIMIZED, PLAIN, Candidate, Figures, Row

KEY = {"file": "ab", "cores": "4"}
CHOICE = Candidate(OPTIMIZED, 1, 2, 4)
FOUND = Measured(
    Decision(CHOICE, "it is faster", 1.5, 2.0, 1e-7),
    (
        Row(Candidate(PLAIN, batch=4), Figures(1.0, 100.0, 10.0), 0.0),
        Row(CHOICE, Figures(2.0, 250.0, 4.0), 1e-7, accepted=True),
    ),
)

Tune = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "models" / "net"
    for version in ("1", "3", "10", "notes"):
        (directory / version).mkdir(parents=True)
    return directory


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ModelConfig, str, float]]:
    """The models that were measured: their configurations, versions and seconds."""
    made: list[tuple[ModelConfig, str, float]] = []

    def ask(
        config: ModelConfig, files: Path, seconds: float, heard: Any, folder: Path | None
    ) -> Answer:
        made.append((config, files.name, seconds))
        heard("measuring")
        return Answer(config, KEY, FOUND if seconds else None)

    monkeypatch.setattr(command, "ask", ask)
    return made


def test_the_process_of_the_command_needs_no_torch() -> None:
    program = (
        "import sys; import microkernel_torchscript.tuning.command; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def tune(*arguments: str | Path) -> Any:
    return command.tune.main([str(one) for one in arguments], standalone_mode=False)


def fails(error: MicrokernelError, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any) -> Answer:
        raise error

    monkeypatch.setattr(command, "ask", ask)


def test_it_measures_the_latest_version_and_keeps_the_record(
    model: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(model, "--budget", "5") == 0
    assert [(version, seconds) for _, version, seconds in asked] == [("10", 5.0)]
    folder = model.parent.with_name("models.tuned") / "net"
    kept = places.read(folder / "10.json")
    assert kept is not None
    assert (kept.key, kept.measured) == (KEY, FOUND)
    assert "<svg" in (folder / "10.html").read_text()
    out, err = capsys.readouterr()
    assert err == "measuring\n"
    assert "Chosen: optimize_for_inference, 2 instances of 1 thread, batches of 4: it is" in out
    assert f"The record: {folder / '10.json'}" in out
    assert "one that is loaded must be unloaded first" in out
    assert sorted(e.name for e in model.iterdir()) == ["1", "10", "3", "notes"]


def test_a_version_and_another_folder_can_be_given(
    model: Path, asked: list[Any], tmp_path: Path
) -> None:
    assert tune(model, "--version", "3", "--output", tmp_path / "out") == 0
    assert asked[0][1:] == ("3", 60.0)
    assert (tmp_path / "out" / "net-3.html").is_file()
    assert not list(tmp_path.glob("models.tuned/net/*.html"))


def test_a_record_is_shown_again_without_measuring(
    model: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidArgument, match="model 'net' has no record of tuning that fits"):
        tune(model, "--load")
    places.write(places.places(model / "10")[0], made_now(KEY, FOUND))
    assert tune(model, "--load") == 0
    assert [seconds for *_, seconds in asked] == [0, 0]
    assert "it is faster" in capsys.readouterr().out


def test_the_picture_needs_matplotlib_and_the_page_does_not(
    model: Path,
    asked: list[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert tune(model) == 0
    assert "pip install 'microkernel[tune]'" in capsys.readouterr().out
    folder = model.parent.with_name("models.tuned") / "net"
    assert {entry.name for entry in folder.iterdir()} == {"10.json", "10.html"}


def test_where_nothing_can_be_written_the_table_is_still_shown(
    model: Path, asked: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.parent.with_name("models.tuned").write_text("in the way")
    (tmp_path / "cache").write_text("in the way")
    assert tune(model) == 0
    assert "it could not be kept" in capsys.readouterr().out
    with pytest.raises(Unavailable, match="cannot be written"):
        tune(model, "--output", tmp_path / "cache" / "below")


def test_the_configuration_is_the_models(model: Path, asked: list[Any]) -> None:
    (model / "config.pbtxt").write_text('backend: "pytorch" max_batch_size: 4')
    tune(model)
    assert asked[0][0] == ModelConfig(name="net", backend="pytorch", max_batch_size=4)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ('backend: "onnxruntime"', "model 'net' is of 'onnxruntime'; PyTorch models are tuned"),
        ('platform: "ensemble"', "model 'net' is of 'ensemble'"),
        ("max_batch_size: {", "config.pbtxt"),
        (b"\xff", "cannot be read"),
    ],
)
def test_a_model_of_something_else_is_refused(config: str | bytes, told: str, model: Path) -> None:
    content = config if isinstance(config, bytes) else config.encode()
    (model / "config.pbtxt").write_bytes(content)
    with pytest.raises(InvalidArgument, match=re.escape(told)):
        tune(model)


def test_a_model_of_another_kind_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ask", lambda config, *_: Answer(config, {}, None))
    source = "import torch\n\nclass Net(torch.nn.Module):\n    pass\n"
    (model / "10" / "model.py").write_text(source)
    for more in ((), ("--load",)):
        with pytest.raises(InvalidArgument, match="kind 'Python module'; only TorchScript is"):
            tune(model, *more)


def test_a_package_without_a_configuration_is_of_its_own_kind(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ask", lambda config, *_: Answer(config, {}, None))
    with zipfile.ZipFile(model / "10" / "model.pt2", "w") as archive:
        archive.writestr("archive_format", "pt2")
    with pytest.raises(InvalidArgument, match="kind 'exported program'; only TorchScript is"):
        tune(model)


def test_without_figures_there_is_no_picture_and_nothing_to_install(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = Measured(unchanged(2, "it keeps state"))
    monkeypatch.setattr(command, "ask", lambda config, *_: Answer(config, KEY, left))
    assert tune(model) == 0
    out = capsys.readouterr().out
    assert "it keeps state" in out
    assert "PNG" not in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("missing",), "cannot be read: No such file or directory"),
        ((".",), "is no directory of a model: it holds no version"),
        (("models/net", "--version", "7"), "model 'net' has no version 7; it has 1, 3, 10"),
    ],
)
def test_what_is_no_model_is_refused(
    arguments: tuple[str, ...], told: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent.parent)
    with pytest.raises(InvalidArgument, match=re.escape(told)):
        tune(*arguments)


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "1e9", "soon"])
def test_a_budget_must_be_a_sensible_number(budget: str, model: Path) -> None:
    with pytest.raises(click.BadParameter) as error:
        tune(model, "--budget", budget)
    assert "--budget" in error.value.format_message()


def test_failures_of_the_model_and_of_its_interpreter_are_errors(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(Internal("failed to load model 'net': why"), monkeypatch)
    with pytest.raises(Internal, match="failed to load model 'net': why"):
        tune(model)

    def hung(*_: Any) -> Answer:
        raise NotMeasured("it hung")

    monkeypatch.setattr(command, "ask", hung)
    with pytest.raises(Unavailable, match="model 'net' was not measured: it hung"):
        tune(model)
