"""Every built-in backend keeps the contract of backends, each with a tiny model."""

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microkernel import (
    BackendType,
    InferRequest,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Tensor,
)
from microkernel.plugins import discover
from microkernel.testing import check_backend


def kind_of(name: str) -> tuple[BackendType, Any]:
    """A backend as its plug-in announces it, and the plug-in's settings."""
    plugins = discover()
    for plugin in plugins.all:
        for backend in plugin.backends:
            if backend.name == name:
                return backend, plugins.settings(plugin, {})
    raise LookupError(name)


def requests_of(
    *rows: list[list[float]], name: str = "x", dtype: type[np.generic] = np.float32
) -> list[InferRequest]:
    return [
        InferRequest(
            "tiny", (Tensor.from_numpy(name, np.array(r, dtype)),), version=1, id=str(number)
        )
        for number, r in enumerate(rows)
    ]


ROWS = ([[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], [[-1.0, 0.5, 0.25]])


def config_of(backend: str, **more: Any) -> ModelConfig:
    return ModelConfig(
        name="tiny",
        backend=backend,
        max_batch_size=8,
        input=(ModelInput("x", "TYPE_FP32", dims=(3,)),),
        output=(ModelOutput("y", "TYPE_FP32", (2,)), ModelOutput("s", "TYPE_FP32", (1,))),
        **more,
    )


def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    onnx = pytest.importorskip("onnx", reason="needs the package 'onnx' to make models")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("ReduceSum", ["x", "axes"], ["s"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", kind, ["N", 3])],
        [
            helper.make_tensor_value_info("y", kind, ["N", 2]),
            helper.make_tensor_value_info("s", kind, ["N", 1]),
        ],
        initializer=[onnx.numpy_helper.from_array(weight, "w"), axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "model.onnx")
    backend, settings = kind_of("onnxruntime")
    check_backend(
        backend, config_of("onnxruntime"), tmp_path, requests_of(*ROWS), settings=settings
    )
    bare = ModelConfig(name="tiny", backend="onnxruntime")
    check_backend(backend, bare, tmp_path, requests_of(*ROWS), settings=settings)


def test_torchscript(tmp_path: Path, save_module: Callable[..., Path]) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra 'torchscript'")

    class Tiny(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch comes in at run time
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)

        def forward(self, x: Any) -> Any:
            return self.linear(x), x.sum(1, keepdim=True)

    torch.manual_seed(0)
    save_module(Tiny(), tmp_path, torch.zeros(1, 3))
    config = ModelConfig(
        name="tiny",
        backend="pytorch",
        max_batch_size=8,
        input=(ModelInput("x", "TYPE_FP32", dims=(3,)),),
        output=(ModelOutput("y__0", "TYPE_FP32", (2,)), ModelOutput("s__1", "TYPE_FP32", (1,))),
    )
    backend, settings = kind_of("pytorch")
    check_backend(backend, config, tmp_path, requests_of(*ROWS), settings=settings)


MODEL = """
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def execute(self, requests):
            return [self._one(request) for request in requests]

        def _one(self, request):
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            if np.isnan(x).any():
                return pb_utils.InferenceResponse(error=pb_utils.TritonError("not a number"))
            outputs = {"y": x[:, :2] * 2, "s": x.sum(axis=1, keepdims=True)}
            wanted = request.requested_output_names()
            return pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, outputs[name]) for name in outputs if name in wanted]
            )
"""


@pytest.fixture
def clean_imports() -> Iterator[None]:
    """A Python model leaves modules and a path behind in its own process; here they go."""
    modules, path = set(sys.modules), sys.path[:]
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("1", "triton_python_backend_utils", "c_python_backend_utils"):
            del sys.modules[name]


def test_python(tmp_path: Path, clean_imports: None) -> None:
    files = tmp_path / "tiny" / "1"
    files.mkdir(parents=True)
    (files / "model.py").write_text(textwrap.dedent(MODEL))
    (failing,) = requests_of([[1.0, float("nan"), 3.0]])
    backend, settings = kind_of("python")
    check_backend(
        backend,
        config_of("python"),
        files,
        requests_of(*ROWS),
        settings=settings,
        failing=failing,
    )
