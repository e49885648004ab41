"""Models whose requests can be wrong in every way, of every backend."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from identity_models import save_script
from server_harness import write_python_model

BACKENDS = {"python": "python", "onnx": "onnxruntime", "torch": "pytorch"}
ADDER = """
max_batch_size: 4
input [
  { name: "A" data_type: TYPE_FP32 dims: [ 3 ] },
  { name: "B" data_type: TYPE_INT32 dims: [ -1 ] }
]
output { name: "SUM" data_type: TYPE_FP32 dims: [ 3 ] }
"""
ADDER_BODY = """
def execute(self, requests):
    return [answer(SUM=read(r, "A") + read(r, "B").sum(dtype=np.float32)) for r in requests]
"""
PICKER = """
input { name: "INDEX" data_type: TYPE_INT64 dims: [ 1 ] }
output { name: "PICKED" data_type: TYPE_FP32 dims: [ 1 ] }
"""
PICKER_BODY = """
def execute(self, requests):
    return [answer(PICKED=np.array([1, 2, 3], np.float32)[read(r, "INDEX")]) for r in requests]
"""
WORDS = """
input [
  { name: "TEXT" data_type: TYPE_STRING dims: [ 2 ] },
  { name: "MORE" data_type: TYPE_FP32 dims: [ 1 ] optional: true }
]
output { name: "SAID" data_type: TYPE_STRING dims: [ 2 ] }
"""
WORDS_BODY = """
def execute(self, requests):
    return [answer(SAID=read(request, "TEXT")) for request in requests]
"""
SCRIPTS = {
    "adder_torch": "def forward(self, A, B):\n    return A + B.sum([1], True).float()\n",
    "picker_torch": "def forward(self, INDEX):\n    return INDEX.new_ones([3]).float()[INDEX]\n",
}


def write_graphs(repository: Path) -> None:
    """`adder_onnx` and `picker_onnx`."""
    onnx = pytest.importorskip("onnx", reason="onnx, of the group 'dev', is missing")
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is missing")
    helper, kinds = onnx.helper, onnx.TensorProto

    def save(name: str, nodes: Sequence[Any], values: Sequence[Any], constant: Any) -> None:
        graph = helper.make_graph(nodes, "g", values[:-1], values[-1:], [constant])
        opset = [helper.make_opsetid("", 17)]
        made = helper.make_model(graph, opset_imports=opset, ir_version=8)
        onnx.save(made, repository / name / "1" / "model.onnx")

    value = helper.make_tensor_value_info
    save(
        "adder_onnx",
        [
            helper.make_node("ReduceSum", ["B", "axis"], ["sum"], keepdims=1),
            helper.make_node("Cast", ["sum"], ["float"], to=kinds.FLOAT),
            helper.make_node("Add", ["A", "float"], ["SUM"]),
        ],
        [
            value("A", kinds.FLOAT, ["N", 3]),
            value("B", kinds.INT32, ["N", "M"]),
            value("SUM", kinds.FLOAT, ["N", 3]),
        ],
        helper.make_tensor("axis", kinds.INT64, [1], [1]),
    )
    save(
        "picker_onnx",
        [helper.make_node("Gather", ["three", "INDEX"], ["PICKED"])],
        [value("INDEX", kinds.INT64, [1]), value("PICKED", kinds.FLOAT, [1])],
        helper.make_tensor("three", kinds.FLOAT, [3], [1, 2, 3]),
    )


def write_scripts(repository: Path) -> None:
    """`adder_torch` and `picker_torch`."""
    pytest.importorskip("torch", reason="the extra 'torchscript' is missing")
    for name, source in SCRIPTS.items():
        save_script(repository / name / "1", source)


def write_checked(repository: Path) -> None:
    """The models `adder_*` and `picker_*` of every backend, `words` and `gone`, which are alike,
    and `failed`, which cannot be loaded."""
    for kind, config, body in (("adder", ADDER, ADDER_BODY), ("picker", PICKER, PICKER_BODY)):
        write_python_model(repository, f"{kind}_python", config, body)
        for backend in ("onnx", "torch"):
            folder = repository / f"{kind}_{backend}"
            (folder / "1").mkdir(parents=True)
            (folder / "config.pbtxt").write_text(f'backend: "{BACKENDS[backend]}"\n{config}')
    write_graphs(repository)
    write_scripts(repository)
    write_python_model(repository, "words", WORDS, WORDS_BODY)
    write_python_model(repository, "gone", WORDS, WORDS_BODY)
    write_python_model(repository, "failed", WORDS, "def initialize(self, args):\n    1 / 0")
