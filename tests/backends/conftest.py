"""What every test of a backend starts from: a batch, laid out in memory as the kernel lays it."""

import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microkernel import (
    Batch,
    InferRequest,
    Instance,
    MicrokernelError,
    Model,
    ModelConfig,
    Outcome,
    Placement,
    Tensor,
)
from microkernel_python.backend import PythonBackend
from microkernel_python.instance import PythonInstance

sys.path.append(str(Path(__file__).parent / "support"))

from decoupled_models import CONFIG, HEAD, LIMIT, Start, model_module  # found by the path above

Inputs = Mapping[str, np.ndarray[Any, Any]]


def _raw(array: np.ndarray[Any, Any]) -> bytes:
    return bytes(Tensor.from_numpy("", array).data)


def _stack(name: str, arrays: Sequence[np.ndarray[Any, Any]]) -> tuple[Tensor, list[Tensor]]:
    """One region for all requests, and each request's own view of its part."""
    parts = [_raw(array) for array in arrays]
    region = memoryview(bytearray(b"".join(parts)))
    first = Tensor.from_numpy(name, arrays[0])
    shape = first.shape
    if len(arrays) > 1:
        shape = (sum(array.shape[0] for array in arrays), *shape[1:])
    own, position = [], 0
    for array, part in zip(arrays, parts, strict=True):
        end = position + len(part)
        own.append(Tensor(name, first.datatype, array.shape, region[position:end]))
        position = end
    return Tensor(name, first.datatype, shape, region), own


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """`make_batch(inputs, outputs=(), batching=True, model="m")`: one request per mapping of input
    names to arrays, all with the same names; `outputs` are the names each request asks for. The
    arrays carry the batch dimension where `batching`, else there is one request only."""

    def make(
        inputs: Sequence[Inputs],
        outputs: Sequence[str] = (),
        batching: bool = True,
        model: str = "m",
    ) -> Batch:
        assert batching or len(inputs) == 1
        stacked: dict[str, Tensor] = {}
        tensors: list[list[Tensor]] = [[] for _ in inputs]
        for name in inputs[0]:
            stacked[name], own = _stack(name, [entry[name] for entry in inputs])
            for request, tensor in zip(tensors, own, strict=True):
                request.append(tensor)
        requests = [
            InferRequest(model, tuple(own), version=1, id=str(i), outputs=tuple(outputs))
            for i, own in enumerate(tensors)
        ]
        sizes = [next(iter(e.values())).shape[0] if batching else 1 for e in inputs]
        return Batch(requests, stacked, sizes)

    return make


@pytest.fixture
def output_of() -> Callable[..., np.ndarray[Any, Any]]:
    """`output_of(outcome, name)`: that output of a response as an array; an error is raised."""

    def find(outcome: Any, name: str) -> np.ndarray[Any, Any]:
        if isinstance(outcome, Exception):
            raise outcome
        tensor: Tensor = next(t for t in outcome.outputs if t.name == name)
        return tensor.as_numpy()

    return find


class Served:
    """One instance on a thread of its own, as the kernel hosts it."""

    def __init__(self, model: Model, placement: Placement) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._instance: Instance = self.on_thread(lambda: model.instance(placement))

    def on_thread(self, work: Callable[[], Any]) -> Any:
        return self._thread.submit(work).result(timeout=60)

    def execute(self, batch: Batch) -> list[Outcome]:
        return list(self.on_thread(lambda: self._instance.execute(batch)))

    def close(self) -> None:
        self.on_thread(self._instance.close)
        self._thread.shutdown()


@pytest.fixture
def save_module() -> Callable[..., Path]:
    """`save_module(module, files, *example, training=False)`: `model.pt` in a version directory,
    traced where there is an example, else scripted."""
    import torch

    def save(module: Any, files: Path, *example: Any, training: bool = False) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module.train(training)
            make: Any = torch.jit.trace if example else torch.jit.script
            made = make(module, example, strict=False) if example else make(module)
            made.save(files / "model.pt")
        return files

    return save


@pytest.fixture
def host() -> Iterator[Callable[..., Served]]:
    """`host(model, threads=1)`: an instance of a loaded model, closed at the end."""
    made: list[Served] = []

    def hosted(model: Model, threads: int = 1) -> Served:
        made.append(Served(model, Placement(f"m_{len(made)}", "KIND_CPU", threads=threads)))
        return made[-1]

    yield hosted
    for served in made:
        served.close()


@pytest.fixture
def serve_module(host: Callable[..., Served]) -> Callable[..., Served]:
    """`serve_module(config, files, threads=1)`: an instance of a TorchScript model, whose
    configuration is completed if need be."""
    from microkernel_torchscript.backend import PyTorchBackend

    def serve(config: ModelConfig, files: Path, threads: int = 1) -> Served:
        backend = PyTorchBackend()
        return host(backend.load(backend.complete(config, files), files), threads)

    return serve


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python modules are called as they are written."""
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A version directory, which is not there yet."""
    return tmp_path / "m" / "1"


@pytest.fixture
def ask(
    files: Path,
    serve_module: Callable[..., Served],
    make_batch: Callable[..., Batch],
    output_of: Callable[..., np.ndarray[Any, Any]],
) -> Callable[..., list[Any]]:
    """`ask(source, config, *requests, weights=None)`: of a Python module, output `y` of each
    request, or its error."""
    from module_files import write_module

    def run(source: str, config: ModelConfig, *requests: Inputs, weights: object = None) -> Any:
        served = serve_module(config, write_module(files, source, weights))
        outcomes = served.execute(make_batch(requests, batching=config.max_batch_size > 0))
        return [o if isinstance(o, MicrokernelError) else output_of(o, "y") for o in outcomes]

    return run


@pytest.fixture
def run_module(
    tmp_path: Path,
    save_module: Callable[..., Path],
    serve_module: Callable[..., Served],
    make_batch: Callable[..., Batch],
) -> Callable[..., list[Outcome]]:
    """`run_module(module, config, *requests)`: the outcomes of one batch through a scripted module,
    saved, loaded and completed; each request is a mapping of input names to arrays."""

    def run(module: Any, config: ModelConfig, *requests: Inputs) -> list[Outcome]:
        served = serve_module(config, save_module(module, tmp_path))
        return served.execute(make_batch(requests, batching=config.max_batch_size > 0))

    return run


@pytest.fixture(autouse=True)
def _own_interpreter_state(own_interpreter_state: None) -> None:
    """A model's process is its own; here all tests share one."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(body, config, asynchronous)`: an instance of a model whose `execute` has this body.
    Its threads are at an end when the test is."""
    made: list[PythonInstance] = []

    def make(body: str, config: ModelConfig = CONFIG, asynchronous: bool = False) -> PythonInstance:
        folder = tmp_path / "m" / "1"
        folder.mkdir(parents=True)
        lines = textwrap.indent(textwrap.dedent(body).strip(), " " * 8)
        head = "class TritonPythonModel:\n    " + "async " * asynchronous
        (folder / "model.py").write_text(f"{HEAD}{head}def execute(self, requests):\n{lines}\n")
        made.append(PythonBackend().load(config, folder).instance(Placement("m_0_0", "KIND_CPU")))
        return made[-1]

    yield make
    if made:
        model_module().GO.set()
        for thread in model_module().THREADS:
            thread.join(LIMIT)
        made[0].close()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of tuning go nowhere but to the folder of the test, and nobody else is waited for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where who measures waits for others


@pytest.fixture
def saved_net(save_module: Callable[..., Path], tmp_path: Path) -> Callable[[Any], Path]:
    """`saved_net(module)`: the version directory of a model 'net'."""

    def save(module: Any) -> Path:
        files = tmp_path / "models" / "net" / "1"
        files.mkdir(parents=True)
        return save_module(module, files)

    return save
