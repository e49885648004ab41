"""A backend that somebody else packaged is installed with pip, found, listed, and serves; and so
does our own package, installed alone."""

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from server_harness import COMMAND, Running, launch, write_python_model

ROOT = Path(__file__).parents[2]
DOUBLER = ROOT / "tests" / "plugins" / "doubler"
MISSING = [name for name in ("pip", "hatchling") if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that sees the third party's package."""
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)}")
    source = tmp_path_factory.mktemp("source") / "doubler"
    target = tmp_path_factory.mktemp("installed")
    shutil.copytree(DOUBLER, source, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*pip, "--no-index", "--quiet", "--target", str(target), str(source)], check=True
    )
    return {"PYTHONPATH": str(target)}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model without a configuration."""
    (tmp_path / "models" / "twice" / "1").mkdir(parents=True)
    (tmp_path / "models" / "twice" / "1" / "double.txt").write_text("3\n")
    return tmp_path / "models"


def listed(folder: Path, environment: dict[str, str]) -> dict[str, list[str]]:
    """The rows of `microkernel plugins` by the name in their first column."""
    result = subprocess.run(
        [str(COMMAND), "plugins"],
        cwd=folder,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    rows = [line.split() for line in result.stdout.splitlines()]
    return {row[0]: row[1:] for row in rows[2:]}


def test_it_is_listed_beside_the_built_in_ones(tmp_path: Path, environment: dict[str, str]) -> None:
    assert listed(tmp_path, environment)["doubler"] == ["2.1", "backend", "yes", "yes"]
    assert "doubler" not in listed(tmp_path, {})
    built_in = {"torchscript", "python", "onnx", "http", "grpc"}
    assert built_in <= listed(tmp_path, environment).keys()


@pytest.mark.parametrize(
    ("file", "flags", "expected"),
    [
        ("", [], [2, 4, 6]),
        ("[plugins.doubler]\nfactor = 5\n", [], [5, 10, 15]),
        ("[plugins.doubler]\nfactor = 5\n", ["--doubler-factor=-1"], [-1, -2, -3]),
    ],
)
def test_a_model_of_it_serves(
    repository: Path,
    environment: dict[str, str],
    start_server: Callable[..., Running],
    file: str,
    flags: list[str],
    expected: list[int],
) -> None:
    if file:
        (repository.parent / "plugins.toml").write_text(file)
    server = start_server(repository, *flags, environment=environment)
    found = server.infer("twice", ("x", "FP32", [[1, 2, 3]]))
    assert found.json["outputs"][0]["data"] == expected
    config = server.get("/v2/models/twice/config").json
    assert (config["backend"], config["max_batch_size"]) == ("doubler", 8)
    assert server.get("/v2/models/twice").json["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
    ]


def test_its_errors_reach_the_operator(repository: Path, environment: dict[str, str]) -> None:
    (repository / "twice" / "1" / "double.txt").write_text("many")
    running = launch(repository, environment=environment)
    assert running.wait_exit() == 1
    reasons = [line["reason"] for line in running.log.lines if "reason" in line]
    assert reasons == ["double.txt must hold a length, got 'many'"]


def test_without_it_its_models_are_refused(repository: Path) -> None:
    (repository / "twice" / "config.pbtxt").write_text('backend: "doubler"\n')
    running = launch(repository)
    assert running.wait_exit() == 1
    [reason] = [line["reason"] for line in running.log.lines if "reason" in line]
    assert "backend 'doubler'" in reason
    assert "Known backends: onnxruntime, python, pytorch" in reason


def test_a_plug_in_that_cannot_be_imported_stops_no_other(
    tmp_path: Path, start_server: Callable[..., Running]
) -> None:
    broken = tmp_path / "site" / "broken-1.0.dist-info"
    broken.mkdir(parents=True)
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[microkernel.plugins]\nbroken = no_such_module\n")
    environment = {"PYTHONPATH": str(broken.parent)}
    row = listed(tmp_path, environment)["broken"]
    assert row[:4] == ["1.0", "none", "yes", "no"]
    assert "no_such_module" in " ".join(row)
    (tmp_path / "models").mkdir()
    server = start_server(tmp_path / "models", environment=environment)
    assert server.get("/v2/health/ready").status == 200


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_our_package_alone_serves_a_python_model(tmp_path: Path) -> None:
    """A wheel installed with one extra into an empty environment; asks the package registry."""
    wheels, home = tmp_path / "wheels", tmp_path / "venv"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*build, str(wheels), str(ROOT)], check=True)
    [wheel] = wheels.iterdir()
    venv.create(home, with_pip=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, f"microkernel[http] @ {wheel.as_uri()}"], check=True)
    config = (
        'input { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }\n'
        'output { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] }\n'
    )
    body = "def execute(self, requests):\n    return [answer(Y=read(r, 'X')) for r in requests]"
    write_python_model(tmp_path / "models", "echo", config, body)
    command = home / "bin" / "microkernel"
    running = launch(tmp_path / "models", command=command)
    try:
        running.wait_started()
        assert set(running.ports) == {"HTTPService", "Metrics"}
        assert running.infer("echo", ("X", "INT32", [7])).json["outputs"][0]["data"] == [7]
    finally:
        assert running.stop() == 0
