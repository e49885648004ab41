"""Models whose load never ends: the caller hears so in time, the neighbours serve, and nothing is
left running."""

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from server_harness import PATIENCE, Gate, Running, launch, write_python_model

torch: Any = pytest.importorskip("torch", reason="the extra 'torchscript' is missing")

Start = Callable[..., Running]

TENSORS = """
input { name: "X" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "Y" data_type: TYPE_FP32 dims: [ 2 ] }
"""
SCRIPT_TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
"""
ECHO = 'def execute(self, requests):\n    return [answer(Y=read(r, "X")) for r in requests]\n'
ENDLESS = (
    "def initialize(self, args):\n"
    "    open(os.path.dirname(os.path.dirname(__file__)) + '/gate').read()\n" + ECHO
)
X = ("X", "FP32", [1, 2])
LATE = "it took longer to load than the {} seconds of the model's parameter 'LOAD_TIMEOUT_SECS', "


class StuckOnZeros(torch.nn.Module):  # type: ignore[misc]
    """Twice its input, which takes for ever where all of it lies between -1 and 1, as what is made
    up does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        going = True
        while going:
            going = bool((x.abs() <= 1).all())
        return x * 2


def parameters(**given: str) -> str:
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in given.items()
    )


def write_stuck(repository: Path, config: str = "") -> None:
    files = repository / "stuck" / "1"
    files.mkdir(parents=True, exist_ok=True)
    (files.parent / "config.pbtxt").write_text(f'backend: "pytorch"\n{config}')
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        torch.jit.script(StuckOnZeros()).save(files / "model.pt")


def workers(server: Running) -> set[psutil.Process]:
    """The processes that fork servers have forked."""
    own = psutil.Process(server.process.pid)
    return {worker for fork in own.children() for worker in fork.children(recursive=True)}


@pytest.mark.slow
def test_a_python_model_that_never_initialises(start_server: Start, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_python_model(repository, "neighbour", TENSORS, ECHO)
    limit = parameters(LOAD_TIMEOUT_SECS="5")
    gate = Gate(write_python_model(repository, "endless", TENSORS + limit, ENDLESS) / "gate")
    server = start_server(repository, "--model-control-mode=explicit", "--load-model=neighbour")
    before = workers(server)
    answers: list[Any] = []
    thread = threading.Thread(
        target=lambda: answers.append(server.post("/v2/repository/models/endless/load"))
    )
    thread.start()
    descriptor = gate.reached()  # it is in `initialize`
    assert server.infer("neighbour", X).status == 200
    assert server.get("/v2/models/neighbour/ready").status == 200
    thread.join(PATIENCE)
    assert answers[0].status == 400
    assert answers[0].error == (
        "load failed for model 'endless': version 1 is at UNAVAILABLE state: Unavailable: the "
        "worker process of model 'endless' (instances: 'endless_0') ended: "
        f"{LATE.format(5)}and was still starting the instances;\n"
    )
    assert workers(server) == before
    assert server.infer("neighbour", X).status == 200
    gate.open(descriptor)

    # A load that fails leaves what served before.
    limit = parameters(LOAD_TIMEOUT_SECS="1")
    write_python_model(repository, "neighbour", TENSORS + limit, ENDLESS)
    other = Gate(repository / "neighbour" / "gate")
    answer = server.post("/v2/repository/models/neighbour/load")
    assert LATE.format(1) in answer.error
    other.path.unlink()
    assert workers(server) == before
    assert server.infer("neighbour", X).json["outputs"][0]["data"] == [1, 2]


@pytest.mark.slow
def test_a_script_that_loops_on_made_up_inputs(start_server: Start, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_python_model(repository, "neighbour", TENSORS, ECHO)
    server = start_server(repository, "--model-control-mode=explicit", "--load-model=*")
    before = workers(server)

    def refused(**given: str) -> str:
        write_stuck(repository, parameters(LOAD_TIMEOUT_SECS="3", **given))
        answer = server.post("/v2/repository/models/stuck/load")
        assert answer.status == 400
        assert workers(server) == before
        assert server.infer("neighbour", X).status == 200
        return answer.error

    assert f"{LATE.format(3)}and was still completing the configuration;\n" in refused()
    assert "and was still completing the configuration;\n" in refused(WARMUP="false")
    write_stuck(repository, SCRIPT_TENSORS + parameters(LOAD_TIMEOUT_SECS="6"))
    answer = server.post("/v2/repository/models/stuck/load")
    assert f"{LATE.format(6)}and was still starting the instances;\n" in answer.error
    assert workers(server) == before
    told = [line for line in server.log.lines if "on made-up inputs for" in str(line)]
    assert [line["level"] for line in told] == ["warning"] * 3

    full = SCRIPT_TENSORS + parameters(LOAD_TIMEOUT_SECS="30", WARMUP="false")
    write_stuck(repository, full)
    assert server.post("/v2/repository/models/stuck/load").status == 200
    found = server.infer("stuck", ("x", "FP32", [2, 3, 4, 5]))
    assert found.json["outputs"][0]["data"] == [4, 6, 8, 10]


def test_a_start_does_not_wait_for_ever(start_server: Start, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_python_model(repository, "neighbour", TENSORS, ECHO)
    limit = parameters(LOAD_TIMEOUT_SECS="1")
    gate = Gate(write_python_model(repository, "endless", TENSORS + limit, ENDLESS) / "gate")
    server = start_server(repository, "--exit-on-error=false")
    state, reason = server.index()["endless"]
    assert state == "UNAVAILABLE"
    assert LATE.format(1) in reason
    assert server.infer("neighbour", X).status == 200
    gate.path.unlink()


def test_a_start_that_is_to_fail_does(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    limit = parameters(LOAD_TIMEOUT_SECS="1")
    gate = Gate(write_python_model(repository, "endless", TENSORS + limit, ENDLESS) / "gate")
    server = launch(repository)
    assert server.wait_exit() == 1
    assert LATE.format(1) in server.log.text
    gate.path.unlink()
