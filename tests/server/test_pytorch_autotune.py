"""`microkernel tune`, and a server that applies what it found or finds it out itself."""

import json
import subprocess
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from server_harness import COMMAND, Running

torch = pytest.importorskip("torch", reason="needs the extra 'torchscript'")

pytestmark = pytest.mark.slow  # measuring takes its time

CONFIG = """
backend: "pytorch"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 3 ] } ]
"""
PARAMETER = 'parameters { key: "%s" value { string_value: "%s" } }\n'
ROWS = [[0.5, -1.0, 2.0, 0.25], [1.0, 1.0, -1.0, 3.0]]


def write_model(repository: Path, name: str, parameters: Mapping[str, str]) -> Path:
    """A model of two layers; its directory."""
    files = repository / name / "1"
    files.mkdir(parents=True)
    torch.manual_seed(0)
    layers = (torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(torch.nn.Sequential(*layers).eval()).save(files / "model.pt")
    lines = "".join(PARAMETER % pair for pair in parameters.items())
    (repository / name / "config.pbtxt").write_text(CONFIG + lines)
    return repository / name


def microkernel(*arguments: str | Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [str(COMMAND), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


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


def _answer(server: Running, model: str) -> list[float]:
    document = server.infer(model, ("x", "FP32", ROWS)).json
    assert document["outputs"][0]["shape"] == [2, 3]
    data: list[float] = document["outputs"][0]["data"]
    return data
