"""Models that give back what they are given, of every backend: one input and one output of each
data type that the backend can carry, in one model whose requests batch and one whose do not."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
from server_harness import write_python_model

from microkernel import DATA_TYPES

BACKENDS = ("python", "onnx", "torch")
CARRIED = {
    "python": tuple(DATA_TYPES),
    "onnx": tuple(name for name in DATA_TYPES if name != "BF16"),
    "torch": tuple(DATA_TYPES),
}
"""The data types of each backend."""
NOT_CARRIED = [(b, d) for b in BACKENDS for d in DATA_TYPES if d not in CARRIED[b]]
FORMS = ("batching", "plain")
LARGEST = 8
_CONFIGURED = {"python": "python", "onnx": "onnxruntime", "torch": "pytorch"}
_ECHO = """
def execute(self, requests):
    return [self.echo(request) for request in requests]

def echo(self, request):
    outputs = []
    for tensor in request.inputs():
        name = "OUT_" + tensor.name()[3:]
        if tensor.name() == "IN_BF16":
            outputs.append(pb_utils.Tensor.from_dlpack(name, tensor))
        else:
            outputs.append(pb_utils.Tensor(name, tensor.as_numpy()))
    return pb_utils.InferenceResponse(outputs)
"""


def write_identities(repository: Path) -> None:
    """`<backend>_batching` and `<backend>_plain` for every backend, with inputs `IN_<type>` and
    outputs `OUT_<type>`. Shapes are `[batch, n]` and `[n, 2]`; strings of TorchScript, which have
    one dimension only, are `[batch, 1]` and `[n]`."""
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is missing")
    pytest.importorskip("torch", reason="the extra 'torchscript' is missing")
    for form in FORMS:
        for backend in BACKENDS:
            write_identity(repository, f"{backend}_{form}", backend, form, CARRIED[backend])


def write_identity(
    repository: Path, name: str, backend: str, form: str, types: Sequence[str], extra: str = ""
) -> None:
    """One such model, also of types that its backend cannot carry. `extra` is added to every input
    of its configuration."""
    config = f'name: "{name}"\n'
    if form == "batching":
        config += f"max_batch_size: {LARGEST}\ndynamic_batching {{ }}\n"
    for kind in types:
        config += f'input {{ name: "IN_{kind}" {_tensor(backend, form, kind)} {extra} }}\n'
        config += f'output {{ name: "OUT_{kind}" {_tensor(backend, form, kind)} }}\n'
    if backend == "python":
        write_python_model(repository, name, config, _ECHO)
        return
    files = repository / name / "1"
    files.mkdir(parents=True)
    text = f'backend: "{_CONFIGURED[backend]}"\n{config}'
    (repository / name / "config.pbtxt").write_text(text)
    {"onnx": _save_graph, "torch": _save_script}[backend](files, form, types)


def _tensor(backend: str, form: str, kind: str) -> str:
    """Type and dims in the configuration."""
    data_type = f"data_type: {DATA_TYPES[kind].config_name}"
    if (backend, kind) == ("torch", "BYTES"):
        dims = "dims: [ 1 ] reshape { shape: [ ] }" if form == "batching" else "dims: [ -1 ]"
    else:
        dims = "dims: [ -1 ]" if form == "batching" else "dims: [ -1, 2 ]"
    return f"{data_type} {dims}"


def _save_graph(files: Path, form: str, types: Sequence[str]) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx, of the group 'dev', is missing")
    helper, kinds = onnx.helper, onnx.TensorProto
    spelled = {"BYTES": "STRING", "FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE"}
    spelled["BF16"] = "BFLOAT16"
    shape = [None, None if form == "batching" else 2]
    nodes, inputs, outputs = [], [], []
    for kind in types:
        element = getattr(kinds, spelled.get(kind, kind))
        given, made = f"IN_{kind}", f"OUT_{kind}"
        nodes.append(helper.make_node("Identity", [given], [made]))
        inputs.append(helper.make_tensor_value_info(given, element, shape))
        outputs.append(helper.make_tensor_value_info(made, element, shape))
    graph = helper.make_graph(nodes, "identity", inputs, outputs)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), files / "model.onnx")


def _save_script(files: Path, form: str, types: Sequence[str]) -> None:
    arguments = [f"IN_{kind}: {'List[str]' if kind == 'BYTES' else 'Tensor'}" for kind in types]
    results = ", ".join(f"IN_{kind}" for kind in types)
    save_script(files, f"def forward(self, {', '.join(arguments)}):\n    return ({results},)\n")


def save_script(files: Path, source: str) -> None:
    """A TorchScript module whose methods are those of `source`."""
    import torch

    class Module(torch.jit.ScriptModule):
        def __init__(self) -> None:
            super().__init__()
            self.define(source)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        Module().eval().save(str(files / "model.pt"))
