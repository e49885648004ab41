"""`microkernel config`: the configuration that a model is served with, to be pasted."""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from microkernel.config.codec import config_to_text
from microkernel.config.model import ModelConfig, ModelInput, ModelOutput
from microkernel.config.parse import parse_text
from microkernel.hookspecs import ENTRY_POINT_GROUP

Call = Callable[..., int]

PLUG_IN = """
    from dataclasses import replace
    from microkernel import Backend, BackendType, InvalidArgument, ModelInput, ModelOutput, hookimpl

    @hookimpl
    def register_backends(register):
        register(BackendType("sized", "sized_plug_in:Sized", filenames=("size.txt",)))

    class Sized(Backend):
        def load(self, config, files):
            raise InvalidArgument("nothing is loaded")

        def complete(self, config, files):
            size = (files / "size.txt").read_text()
            if not size.isdigit():
                raise InvalidArgument(f"'{size}' is no size")
            return replace(
                config,
                input=config.input or (ModelInput("X", "TYPE_INT32", dims=(int(size),)),),
                output=config.output or (ModelOutput("Y", "TYPE_INT32", dims=(int(size),)),),
            )
"""

ENSEMBLE = """
    platform: "ensemble"
    input { name: "a" data_type: TYPE_INT32 dims: 7 }
    output { name: "y" data_type: TYPE_INT32 dims: 7 }
    ensemble_scheduling { step { model_name: "seven" model_version: -1
      input_map { key: "X" value: "a" } output_map { key: "Y" value: "y" } } }
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_log: None) -> Path:
    """A repository with the model `seven`, whose second version is larger, and a backend for it."""
    site, models = tmp_path / "site", tmp_path / "models"
    info = site / "sized-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sized\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\nsized = sized_plug_in\n")
    (site / "sized_plug_in.py").write_text(textwrap.dedent(PLUG_IN))
    for version, size in (("1", "3"), ("2", "7")):
        (models / "seven" / version).mkdir(parents=True)
        (models / "seven" / version / "size.txt").write_text(size)
    monkeypatch.delitem(sys.modules, "sized_plug_in", raising=False)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.chdir(tmp_path)
    return models


def sized(size: int) -> ModelConfig:
    """What there is to say of the model `seven`."""
    return ModelConfig(
        name="seven",
        backend="sized",
        default_model_filename="size.txt",
        input=(ModelInput("X", "TYPE_INT32", dims=(size,)),),
        output=(ModelOutput("Y", "TYPE_INT32", dims=(size,)),),
    )


@pytest.mark.parametrize(
    ("arguments", "size"), [((), 7), (("--version=1",), 3), (("--version", "2"), 7)]
)
def test_what_is_printed_is_the_completed_configuration(
    call: Call,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    size: int,
) -> None:
    assert call("config", str(models / "seven"), *arguments) == 0
    assert capsys.readouterr().out == config_to_text(sized(size))


@pytest.mark.parametrize("where", ["models/seven/", "models/seven/.", "models/seven/1/.."])
def test_a_model_is_called_as_its_directory(
    call: Call, models: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    assert call("config", where) == 0
    assert parse_text(capsys.readouterr().out, "output").name == "seven"


def test_a_link_gives_its_own_name(
    call: Call, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (models / "current").symlink_to(models / "seven")
    assert call("config", str(models / "current")) == 0
    assert parse_text(capsys.readouterr().out, "output").name == "current"


def test_what_was_written_serves_the_same(
    call: Call, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = models / "seven" / "config.pbtxt"
    file.write_text("instance_group { count: 2 }")
    assert call("config", str(models / "seven"), "--output", str(file)) == 0
    first = file.read_text()
    assert "count: 2" in first
    assert capsys.readouterr().out == ""
    assert call("config", str(models / "seven")) == 0
    assert capsys.readouterr().out == first
    assert [path.name for path in (models / "seven").iterdir() if path.name.startswith(".")] == []


def test_an_ensemble_is_held_against_its_models(
    call: Call, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (models / "chain" / "1").mkdir(parents=True)
    file = models / "chain" / "config.pbtxt"
    file.write_text(textwrap.dedent(ENSEMBLE))
    assert call("config", str(models / "chain")) == 0
    text = capsys.readouterr().out
    printed = parse_text(text, "output")
    assert printed.name == "chain"
    file.write_text(text)
    assert call("config", str(models / "chain")) == 0
    assert capsys.readouterr().out == text
    file.write_text(text.replace("TYPE_INT32", "TYPE_FP32"))
    assert call("config", str(models / "chain")) == 1
    assert "inconsistent data type" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "arguments", "text"),
    [
        ("", ("config", "models/none"), "models/none': No such file or directory"),
        ("", ("config",), "Missing argument 'MODEL'"),
        ("", ("config", "models/seven", "--version=3"), "has no version 3; there are 1, 2"),
        ("", ("config", "models/seven", "--version=x"), "'x' is not a valid integer"),
        (
            "",
            ("config", "models/seven", "--output=no/file"),
            "'no/file' cannot be written: No such",
        ),
        ("", ("config", "models/seven", "--output=models"), "'models' cannot be written: "),
        ("maks: 3", ("config", "models/seven"), "maks"),
        ('backend: "other"', ("config", "models/seven"), "unable to find backend library"),
    ],
)
def test_what_is_wrong_exits_with_1(
    call: Call,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    written: str,
    arguments: tuple[str, ...],
    text: str,
) -> None:
    if written:
        (models / "seven" / "config.pbtxt").write_text(written)
    assert call(*arguments) == 1
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out == ""


def test_what_the_backend_finds_wrong_is_told(
    call: Call, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (models / "seven" / "2" / "size.txt").write_text("large")
    assert call("config", str(models / "seven")) == 1
    assert "error: 'large' is no size" in capsys.readouterr().err
