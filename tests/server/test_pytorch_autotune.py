"""`microkernel tune`, and a server that applies what it found or finds it out itself."""

import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from server_harness import COMMAND, Running

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch

from microkernel import parse_text
from microkernel_torchscript.tuning.compiled.ordering import PACKAGE, order_package
from microkernel_torchscript.tuning.deciding import Decision
from microkernel_torchscript.tuning.keeping import keep, made_now
from microkernel_torchscript.tuning.key import key_of
from microkernel_torchscript.tuning.places import places as places_of
from microkernel_torchscript.tuning.record import Measured
from microkernel_torchscript.tuning.trial import AOTI, Candidate

pytestmark = pytest.mark.slow  # measuring takes its time

CONFIG = """
backend: "pytorch"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 3 ] } ]
"""
PICTURES = """
backend: "pytorch"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] } ]
output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 3, 4, 4 ] } ]
"""
PARAMETER = 'parameters { key: "%s" value { string_value: "%s" } }\n'
ROWS = [[0.5, -1.0, 2.0, 0.25], [1.0, 1.0, -1.0, 3.0]]


def write_model(
    repository: Path,
    name: str,
    parameters: Mapping[str, str],
    config: str = CONFIG,
    layers: Sequence[torch.nn.Module] = (),
) -> Path:
    """A model of a few layers; its directory."""
    files = repository / name / "1"
    files.mkdir(parents=True)
    torch.manual_seed(0)
    layers = layers or (torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module: Any = torch.jit.script(torch.nn.Sequential(*layers).eval())
        module.save(files / "model.pt")
    lines = "".join(PARAMETER % pair for pair in parameters.items())
    (repository / name / "config.pbtxt").write_text(config + lines)
    return repository / name


def microkernel(
    *arguments: str | Path, folder: Path, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    command = [str(COMMAND), *map(str, arguments)]
    variables = {**os.environ, **(environment or {})}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=variables
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("tuned") / "models"
    write_model(repository, "plain", {})
    write_model(repository, "tuned", {"AUTOTUNE": "load"})
    write_model(repository, "own", {"AUTOTUNE": "true", "AUTOTUNE_SECONDS": "3"})
    return repository


@pytest.fixture(scope="module")
def tuned(repository: Path) -> "subprocess.CompletedProcess[str]":
    """The command's run for the model 'tuned'."""
    return microkernel("tune", "models/tuned", "--budget", "4", folder=repository.parent)


@pytest.fixture(scope="module")
def server(
    repository: Path,
    tuned: "subprocess.CompletedProcess[str]",
    start_server: Callable[..., Running],
) -> Running:
    assert tuned.returncode == 0
    return start_server(repository)


def test_the_command_shows_a_table_and_keeps_the_record_beside_the_repository(
    repository: Path, tuned: "subprocess.CompletedProcess[str]"
) -> None:
    assert tuned.returncode == 0, tuned.stderr
    assert "variant" in tuned.stdout
    assert "optimize_for_inference" in tuned.stdout
    assert "Chosen: " in tuned.stdout
    folder = repository.with_name("models.tuned") / "tuned"
    assert {entry.name for entry in folder.iterdir()} >= {"1.json", "1.html"}
    assert "<svg" in (folder / "1.html").read_text()
    assert sorted(e.name for e in (repository / "tuned").iterdir()) == ["1", "config.pbtxt"]
    assert [e.name for e in (repository / "tuned" / "1").iterdir()] == ["model.pt"]


def test_a_record_is_applied_and_answers_stay(server: Running, repository: Path) -> None:
    answers = {name: _answer(server, name) for name in ("plain", "tuned", "own")}
    for name in ("tuned", "own"):
        assert answers[name] == pytest.approx(answers["plain"], rel=1e-4, abs=1e-5)
        server.log.wait_text(f"model '{name}': tuning chose '")
    kept = json.loads((repository.with_name("models.tuned") / "tuned" / "1.json").read_text())
    server.log.wait(f"model 'tuned': tuning chose '{kept['choice']['variant']}'")
    config = server.get("/v2/models/tuned/config").json
    assert config["instance_group"][0]["count"] == kept["choice"]["instances"]
    preferred = config.get("dynamic_batching", {}).get("preferred_batch_size", [])
    assert preferred == ([kept["choice"]["batch"]] if kept["choice"]["batch"] > 1 else [])


def test_a_load_that_measures_keeps_what_it_found(server: Running, repository: Path) -> None:
    server.log.wait("model 'own': tuning measures for about 3 s")
    kept = json.loads((repository.with_name("models.tuned") / "own" / "1.json").read_text())
    assert kept["choice"]["variant"] in ("scripted", "frozen", "optimize_for_inference")
    assert kept["tolerance"].startswith("float64: ")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model of convolutions, for which compiling may pay."""
    repository = tmp_path_factory.mktemp("compiled") / "models"
    layers = (torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3))
    for name, parameters in (("saved", {}), ("compiled", {"AUTOTUNE": "load"})):
        write_model(repository, name, parameters, PICTURES, layers)
    return repository


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler, g++")
def test_the_command_compiles_and_leaves_nothing_behind(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "temporary").mkdir()
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    arguments = ("tune", "models/saved", "--budget", "20")
    done = microkernel(*arguments, folder=pictures.parent, environment=places)
    assert done.returncode == 0, done.stderr
    assert "compiling with AOTInductor" in done.stderr
    folder = pictures.with_name("models.tuned") / "saved"
    kept = json.loads((folder / "1.json").read_text())
    rows = [row for row in kept["rows"] if row["variant"] == "AOTInductor"]
    assert all(row["latency_ms"] > 0 and row["difference"] < 1e-5 for row in rows), rows
    assert {row["batch"] for row in rows} == {1, 4}
    chosen = kept["choice"]["variant"] == "AOTInductor"
    assert (folder / "1.pt2").exists() == ("package" in kept) == chosen
    left = [path.name for path in (tmp_path / "temporary").iterdir()]
    assert [name for name in left if not name.endswith(".measuring")] == []
    assert not [p for p in (tmp_path / "home").rglob("*") if "inductor" in p.name]


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler, g++")
def test_a_compiled_model_is_served(
    pictures: Path, tmp_path: Path, start_server: Callable[..., Running]
) -> None:
    files = pictures / "compiled" / "1"
    config = replace(parse_text(PICTURES, "config.pbtxt"), name="compiled")
    made = order_package(config, files, (1, 4), tmp_path)
    assert made.fault == ""
    fitting = key_of(config, files / "model.pt", torch.__version__)
    found = Measured(Decision(Candidate(AOTI, 1, 1, 4), "it is faster"))
    keep("compiled", places_of(files), made_now(fitting, found), tmp_path / PACKAGE)
    server = start_server(pictures)
    server.log.wait_text("model 'compiled': tuning chose 'AOTInductor' in 1 instances with 1 thre")
    picture = torch.linspace(-1, 1, 3 * 3 * 8 * 8).view(3, 3, 8, 8).tolist()
    saved, compiled = (
        server.infer(name, ("x", "FP32", picture)).json["outputs"][0]
        for name in ("saved", "compiled")
    )
    assert compiled["shape"] == saved["shape"] == [3, 3, 4, 4]
    assert compiled["data"] == pytest.approx(saved["data"], rel=1e-4, abs=1e-5)


def _answer(server: Running, model: str) -> list[float]:
    document = server.infer(model, ("x", "FP32", ROWS)).json
    assert document["outputs"][0]["shape"] == [2, 3]
    data: list[float] = document["outputs"][0]["data"]
    return data
