"""What the tests of the in-process API have in common: models, and the log put back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from server_harness import write_python_model

ECHO = """
max_batch_size: 8
input [
  { name: "X" data_type: TYPE_FP32 dims: [ -1 ] optional: true },
  { name: "WORDS" data_type: TYPE_STRING dims: [ -1 ] optional: true }
]
output [
  { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "SAID" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "TOLD" data_type: TYPE_STRING dims: [ 1 ] }
]
instance_group { kind: KIND_CPU count: 1 }
"""
ECHO_BODY = """
def execute(self, requests):
    return [self.answered(request) for request in requests]

def answered(self, request):
    outputs = {"TOLD": np.array([[request.parameters()]], dtype=object)}
    for given, name in (("X", "Y"), ("WORDS", "SAID")):
        tensor = pb_utils.get_input_tensor_by_name(request, given)
        if tensor is not None:
            outputs[name] = tensor.as_numpy()
    return answer(**outputs)
"""
"""Answers what it is given, and the parameters of the request."""

GATED = """
input { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] }
instance_group { kind: KIND_CPU count: 1 }
"""
GATED_BODY = """
def initialize(self, args):
    self.folder = os.path.dirname(os.path.dirname(__file__))
    if os.path.exists(self.folder + "/start"):
        open(self.folder + "/start").read()

def execute(self, requests):
    [request] = requests
    number = read(request, "X")
    if number[0] == 1:
        open(self.folder + "/gate").read()
    if number[0] == 2:
        os._exit(3)
    if number[0] == 3:
        raise ValueError("three is too much")
    return [answer(Y=number)]
"""
"""Waits for 1, dies of 2, and fails for 3."""

COUNTING = """
model_transaction_policy { decoupled: true }
input { name: "N" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "I" data_type: TYPE_INT32 dims: [ 1 ] }
instance_group { kind: KIND_CPU count: 1 }
"""
COUNTING_BODY = """
def execute(self, requests):
    for request in requests:
        sender = request.get_response_sender()
        for i in range(int(read(request, "N")[0])):
            if sender.is_cancelled():
                break
            sender.send(answer(I=np.array([i], np.int32)))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
"""Answers as often as it is told, and then with nothing."""


@contextmanager
def own_log() -> Iterator[None]:
    """As in a program that has not set up structlog, which a server then does; afterwards it is
    set up as before."""
    before = structlog.get_config() if structlog.is_configured() else None
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    if before is not None:
        structlog.configure(**before)


def write_echo(repository: Path, name: str = "echo") -> Path:
    """A Python model that answers what it is given."""
    return write_python_model(repository, name, ECHO, ECHO_BODY)


def write_gated(repository: Path, name: str = "gated") -> Path:
    """A Python model that waits, dies or fails on request."""
    return write_python_model(repository, name, GATED, GATED_BODY)


def write_counting(repository: Path, name: str = "counting") -> Path:
    """A decoupled Python model."""
    return write_python_model(repository, name, COUNTING, COUNTING_BODY)


def write_line(repository: Path, name: str, worker: str = "process") -> Path:
    """A TorchScript model: y = 2 x + 1 over batches of any number of values."""
    torch: Any = pytest.importorskip("torch", reason="the extra 'torchscript' is missing")
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(
        'platform: "pytorch_libtorch"\nmax_batch_size: 8\ndynamic_batching { }\n'
        'input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }\n'
        f'parameters {{ key: "WORKER" value {{ string_value: "{worker}" }} }}\n'
    )

    class Line(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return 2 * x + 1

    torch.jit.trace(Line(), torch.zeros(1, 3)).save(folder / "1" / "model.pt")
    return folder


def write_graph(repository: Path, name: str = "graph") -> Path:
    """An ONNX model: y = 2 x + 1."""
    onnx: Any = pytest.importorskip("onnx", reason="onnx, of the group 'dev', is missing")
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is missing")
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["twice"]),
            helper.make_node("Add", ["twice", "one"], ["y"]),
        ],
        "line",
        [helper.make_tensor_value_info("x", kind, ["N", "M"])],
        [helper.make_tensor_value_info("y", kind, ["N", "M"])],
        [onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "1" / "model.onnx")
    return folder
