"""TorchScript models with opposite flags, side by side on a real server: in workers of their own,
and as threads of one process; what their first calls took; and many instances of one module."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from server_harness import Running, in_threads

torch: Any = pytest.importorskip("torch", reason="the extra 'torchscript' is missing")

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Start = Callable[..., Running]

CONFIG = """
platform: "pytorch_libtorch"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "y__0" data_type: TYPE_FP32 dims: [ 2 ] }
"""
OPPOSITE = (
    {"INFERENCE_MODE": "true", "DISABLE_OPTIMIZED_EXECUTION": "true", "DISABLE_CUDNN": "false"},
    {"INFERENCE_MODE": "false", "ENABLE_TENSOR_FUSER": "false", "DISABLE_CUDNN": "true"},
)
SHARING = {"ENABLE_WEIGHT_SHARING": "true"}
STEADY = 'microkernel_pytorch_call_seconds{{call="steady",model="{0}",version="1"}}'
FIRST = 'microkernel_pytorch_call_seconds{{call="first",model="{0}",version="1"}}'
WARMUP = 'microkernel_pytorch_warmup_seconds{{model="{0}",version="1"}}'


class Modes(torch.nn.Module):  # type: ignore[misc]
    """Adds what the modes of its thread are worth to the first and to the second column."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 1.0
        return x + torch.tensor([float(y.is_inference()), float(torch.is_grad_enabled())])


class Counting(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x * 0 + self.count


class Linear(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.eye_(self.layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def write(
    repository: Path, name: str, module: Any, texts: Mapping[str, str], instances: int = 1
) -> None:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    lines = [
        f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in texts.items()
    ]
    lines.append(f"instance_group {{ kind: KIND_CPU count: {instances} }}")
    (folder / "config.pbtxt").write_text(CONFIG + "\n".join(lines))
    torch.jit.script(module.eval()).save(str(folder / "1" / "model.pt"))


@pytest.fixture(scope="module")
def server(start_server: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    repository = tmp_path_factory.mktemp("flags") / "models"
    for number, flags in enumerate(OPPOSITE):
        write(repository, f"process{number}", Modes(), flags)
        write(repository, f"thread{number}", Modes(), {"WORKER": "thread", **flags})
    write(repository, "shared", Linear(), SHARING, 16)
    write(repository, "apart", Linear(), {}, 16)
    write(repository, "counting", Counting(), SHARING, 4)
    write(repository, "cold", Linear(), {"WARMUP": "false"})
    write(repository, "spread", Linear(), {"WORKER": "instance", **SHARING}, 2)
    write(repository, "single", Linear(), {"WORKER": "instance"}, 2)
    return start_server(repository)


def rows(server: Running, model: str, *values: float) -> list[float]:
    answer = server.infer(model, ("x", "FP32", [[value, value] for value in values]))
    assert answer.status == 200, answer.body
    return [float(value) for value in answer.json["outputs"][0]["data"]]


@pytest.mark.parametrize("worker", ["process", "thread"])
def test_each_model_has_its_own_modes(server: Running, worker: str) -> None:
    for _ in range(3):
        assert rows(server, f"{worker}0", 0) == [1, 0]
        assert rows(server, f"{worker}1", 0) == [0, 0]


def events(server: Running) -> list[str]:
    return [str(line.get("event", "")) for line in server.log.lines]


@pytest.mark.parametrize("worker", ["process", "thread"])
def test_each_model_says_what_it_was_told(server: Running, worker: str) -> None:
    said = events(server)
    for line in (
        f"Optimized execution is disabled for model instance '{worker}0'",
        f"Optimized execution is enabled for model instance '{worker}1'",
        f"Inference Mode is disabled for model instance '{worker}1'",
        f"cuDNN is enabled for model instance '{worker}0'",
        f"cuDNN is disabled for model instance '{worker}1'",
        f"Tensor fuser is disabled for model instance '{worker}1'",
    ):
        assert said.count(line) == 1


def test_only_models_of_one_process_can_contradict_each_other(server: Running) -> None:
    (warning,) = [line for line in events(server) if "wants cuDNN" in line]
    assert "'thread0'" in warning
    assert "'thread1'" in warning


@pytest.mark.parametrize("model", ["process0", "thread1", "shared"])
def test_first_calls_are_on_the_metrics_page(server: Running, model: str) -> None:
    page = server.metrics()
    total, first, steady = (page[series.format(model)] for series in (WARMUP, FIRST, STEADY))
    assert steady > 0
    assert 0 < first < total


def test_a_model_that_starts_cold_has_no_times_of_first_calls(server: Running) -> None:
    assert WARMUP.format("cold") not in server.metrics()
    assert rows(server, "cold", 3) == [3, 3]


def reused(server: Running, model: str) -> int:
    return events(server).count(f"Reusing TorchScript model for instance '{model}'")


@pytest.mark.parametrize(("model", "lines"), [("shared", 15), ("apart", 0)])
def test_sixteen_instances_answer_a_crowd(server: Running, model: str, lines: int) -> None:
    assert reused(server, model) == lines
    calls = [lambda value=value: rows(server, model, value) for value in range(128)]
    assert in_threads(calls) == [[value, value] for value in range(128)]


@pytest.mark.parametrize(("model", "processes"), [("spread", 2), ("single", 0)])
def test_processes_share_weights_through_the_file(
    server: Running, model: str, processes: int
) -> None:
    assert rows(server, model, 5) == [5, 5]
    maps = [Path(f"/proc/{process.pid}/maps").read_text() for process in server.processes()]
    assert sum(f"/{model}/1/model.pt" in text for text in maps) == processes


def test_instances_that_keep_state_do_not_share_it(server: Running) -> None:
    """Whichever instance answers has counted its own calls only, from the first on."""
    assert reused(server, "counting") == 0
    (warning,) = [line for line in events(server) if "ENABLE_WEIGHT_SHARING" in line]
    assert "model 'counting'" in warning
    assert "it changes its attribute 'count' in place" in warning
    counts = Counter(rows(server, "counting", 0)[0] for _ in range(8))
    assert max(counts) <= 8
    assert sum(counts.values()) == 8
    assert counts[1.0] >= 1
    assert all(counts[value] >= counts[value + 1] for value in range(1, 8))
