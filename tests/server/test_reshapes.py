"""Models of every backend that see other shapes than their clients, scalars of a batch too."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from identity_models import save_script
from server_harness import Running, in_threads, write_python_model

http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")
grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

BACKENDS = ("python", "onnx", "torch")
CONFIG = """
max_batch_size: 8
dynamic_batching { preferred_batch_size: 4 max_queue_delay_microseconds: 30000000 }
instance_group { kind: KIND_CPU count: 1 }
input [
  { name: "FOUR__0" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 2, 2 ] } },
  { name: "ONE__1" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } },
  { name: "ROWS__2" data_type: TYPE_FP32 dims: [ 2, -1, 6 ] reshape { shape: [ 2, -1, 3, 2 ] } }
]
output [
  { name: "FOUR_OUT__0" data_type: TYPE_FP32 dims: [ 1, 4 ] reshape { shape: [ 2, 2 ] } },
  { name: "ONE_OUT__1" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } },
  {
    name: "ROWS_OUT__2" data_type: TYPE_FP32 dims: [ 2, -1, 6 ]
    reshape { shape: [ 2, -1, 3, 2 ] }
  }
]
"""
PYTHON = """
def execute(self, requests):
    return [self.one(request) for request in requests]

def one(self, request):
    four, one, rows = (read(request, name) for name in ("FOUR__0", "ONE__1", "ROWS__2"))
    size = len(one)
    right = four.shape == (size, 2, 2) and one.shape == (size,) and rows.shape[3:] == (3, 2)
    if not right:
        raise ValueError(f"{four.shape} {one.shape} {rows.shape}")
    return answer(FOUR_OUT__0=four * 2, ONE_OUT__1=one * 2, ROWS_OUT__2=rows * 2)
"""
SCRIPT = """
def forward(self, four: Tensor, one: Tensor, rows: Tensor):
    if four.dim() != 3 or one.dim() != 1 or rows.dim() != 5:
        raise ValueError("these are not the shapes of the model")
    return four * 2, one * 2, rows * 2
"""


def write_onnx(files: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx, of the group 'dev', is missing")
    shapes = {"FOUR": ("N", 2, 2), "ONE": ("N",), "ROWS": ("N", 2, "R", 3, 2)}
    nodes, inputs, outputs = [], [], []
    for index, (name, shape) in enumerate(shapes.items()):
        given, made = f"{name}__{index}", f"{name}_OUT__{index}"
        nodes.append(onnx.helper.make_node("Add", [given, given], [made]))
        port = partial(onnx.helper.make_tensor_value_info, elem_type=1, shape=shape)
        inputs.append(port(given))
        outputs.append(port(made))
    graph = onnx.helper.make_graph(nodes, "twice", inputs, outputs)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), files / "model.onnx"
    )


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is missing")
    pytest.importorskip("torch", reason="the extra 'torchscript' is missing")
    repository = tmp_path_factory.mktemp("reshapes") / "models"
    write_python_model(repository, "python", CONFIG, PYTHON)
    for name, backend in (("onnx", "onnxruntime"), ("torch", "pytorch")):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(f'backend: "{backend}"\n{CONFIG}')
    write_onnx(repository / "onnx" / "1")
    save_script(repository / "torch" / "1", SCRIPT)
    return start_server(repository)


def inputs_of(size: int, rows: int, start: float) -> dict[str, Any]:
    shapes = {"FOUR__0": (size, 4), "ONE__1": (size, 1), "ROWS__2": (size, 2, rows, 6)}
    return {
        name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + start
        for name, shape in shapes.items()
    }


def ask(server: Running, model: str, arrays: dict[str, Any], over_grpc: bool) -> dict[str, Any]:
    kinds, url = (grpc, server.grpc_url) if over_grpc else (http, server.http_url)
    given = []
    for name, array in arrays.items():
        entry = kinds.InferInput(name, list(array.shape), "FP32")
        entry.set_data_from_numpy(array)
        given.append(entry)
    names = ("FOUR_OUT__0", "ONE_OUT__1", "ROWS_OUT__2")
    with kinds.InferenceServerClient(url) as client:
        result = client.infer(model, given)
    return {name: result.as_numpy(name) for name in names}


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_clients_see_their_own_shapes(server: Running, backend: str, rows: int) -> None:
    """A batch of two requests, whose sizes differ."""
    asked = [inputs_of(1, rows, 0.5), inputs_of(3, rows, 100.0)]
    calls = [partial(ask, server, backend, each, bool(i)) for i, each in enumerate(asked)]
    for arrays, found in zip(asked, in_threads(calls), strict=True):
        four, one, row = arrays.values()
        assert found["FOUR_OUT__0"].tolist() == (four * 2)[:, None].tolist()
        assert found["ONE_OUT__1"].tolist() == (one * 2).tolist()
        assert found["ROWS_OUT__2"].shape == row.shape
        assert found["ROWS_OUT__2"].tolist() == (row * 2).tolist()
