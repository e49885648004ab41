"""Python models that say whether they are ready."""

from collections.abc import Callable
from pathlib import Path

import pytest
from server_harness import Running, write_python_model

CONFIG = """
input { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] }
instance_group { kind: KIND_CPU count: 2 }
"""
BODY = """
def initialize(self, args):
    self.file = os.path.dirname(os.path.dirname(__file__)) + "/busy_" + args["model_instance_name"]

%s

def execute(self, requests):
    return [answer(Y=read(r, "X")) for r in requests]
"""
PLAIN = """
def is_ready(self):
    return not os.path.exists(self.file)
"""
ASYNC = "async " + PLAIN.lstrip()
ENSEMBLE = """
platform: "ensemble"
input { name: "A" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "B" data_type: TYPE_INT32 dims: [ 1 ] }
ensemble_scheduling {
  step {
    model_name: "plain" model_version: -1
    input_map { key: "X" value: "A" }
    output_map { key: "Y" value: "B" }
  }
}
"""
ONE = ("X", "INT32", [7])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("readiness") / "models"
    for name, method in (("plain", PLAIN), ("async", ASYNC), ("silent", "")):
        write_python_model(repository, name, CONFIG, BODY % method)
    (repository / "chain" / "1").mkdir(parents=True)
    (repository / "chain" / "config.pbtxt").write_text(ENSEMBLE)
    return repository


@pytest.fixture(scope="module")
def server(repository: Path, start_server: Callable[..., Running]) -> Running:
    return start_server(repository)


def status(server: Running, model: str = "") -> int:
    """The answer to the question whether a model, or the server, is ready."""
    return server.get(f"/v2/models/{model}/ready" if model else "/v2/health/ready").status


@pytest.mark.parametrize("model", ["plain", "async"])
def test_a_model_is_ready_when_every_instance_says_so(
    server: Running, repository: Path, model: str
) -> None:
    busy = repository / model / f"busy_{model}_0_1"
    assert (status(server, model), status(server)) == (200, 200)
    busy.touch()
    try:
        assert (status(server, model), status(server)) == (400, 400)
        assert status(server, "silent") == 200
        assert server.infer(model, ONE).status == 200  # it is asked for nothing else
    finally:
        busy.unlink()
    assert (status(server, model), status(server)) == (200, 200)


def test_an_ensemble_is_ready_when_its_models_say_so(server: Running, repository: Path) -> None:
    busy = repository / "plain" / "busy_plain_0_0"
    assert status(server, "chain") == 200
    busy.touch()
    assert status(server, "chain") == 400
    busy.unlink()


@pytest.mark.parametrize("body", ["raise ValueError('no')", "return np.bool_(True)", "pass"])
def test_what_is_no_answer_means_no(
    tmp_path: Path, start_server: Callable[..., Running], body: str
) -> None:
    method = f"def is_ready(self):\n    {body}"
    write_python_model(tmp_path / "models", "odd", CONFIG, BODY % method)
    server = start_server(tmp_path / "models")
    assert status(server, "odd") == 400
    assert "instance odd_0_0 cannot say whether it is ready" in server.log.text
    assert server.infer("odd", ONE).status == 200
