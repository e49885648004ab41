"""Models with sequences, of every backend."""

from pathlib import Path

import pytest
from identity_models import save_script
from server_harness import write_python_model

BACKENDS = ("python", "torch", "onnx")
DIRECT = "direct { }"
OLDEST = "oldest { max_candidate_sequences: 8 }"
_CONFIGURED = {"python": "python", "onnx": "onnxruntime", "torch": "pytorch"}
_SUM = """
def execute(self, requests):
    return [self.step(request) for request in requests]

def step(self, request):
    given = read(request, "INPUT__0")
    if given.item() < -1000:
        os.kill(os.getpid(), 9)
    total = given + read(request, "STATE__1")
    return answer(OUTPUT__0=total, NEXT__1=total)
"""
_SUM_SCRIPT = """
def forward(self, INPUT__0: Tensor, STATE__1: Tensor):
    total = INPUT__0 + STATE__1
    return total, total
"""
_ECHO = """
def execute(self, requests):
    return [self.step(request, len(requests)) for request in requests]

def step(self, request, rows):
    names = ("START", "END", "READY", "CORRID")
    told = np.array([[int(read(request, name).item()) for name in names]], np.int64)
    said = np.array([[request.correlation_id(), request.flags()]], np.int64)
    return answer(TOLD=told, SAID=said, ROWS=np.array([[rows]], np.int32))
"""
_NAMES = """
def execute(self, requests):
    return [answer(NAME=read(request, "CORRID")) for request in requests]
"""


def write_sum(repository: Path, name: str, backend: str, strategy: str, more: str = "") -> None:
    """OUTPUT__0 is the sum of INPUT__0 over the sequence so far, kept in a state; it begins at 100.
    The Python model kills itself at numbers below -1000."""
    config = f"""
max_batch_size: 4
input {{ name: "INPUT__0" data_type: TYPE_FP32 dims: [ 1 ] }}
output {{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 1 ] }}
sequence_batching {{
  {strategy}
  state {{
    input_name: "STATE__1" output_name: "NEXT__1" data_type: TYPE_FP32 dims: [ 1 ]
    initial_state {{ name: "hundred" data_type: TYPE_FP32 dims: [ 1 ] data_file: "hundred" }}
  }}
  {more}
}}
"""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "initial_state").mkdir()
    (folder / "initial_state" / "hundred").write_bytes(b"\0\0\xc8\x42")
    if backend == "python":
        write_python_model(repository, name, config, _SUM)
        return
    (folder / "config.pbtxt").write_text(f'backend: "{_CONFIGURED[backend]}"\n{config}')
    if backend == "torch":
        save_script(folder / "1", _SUM_SCRIPT)
    else:
        _save_sum(folder / "1")


def _save_sum(files: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx, of the group 'dev', is missing")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    names = ("INPUT__0", "STATE__1", "OUTPUT__0", "NEXT__1")
    given = [helper.make_tensor_value_info(name, kind, [None, 1]) for name in names]
    nodes = [helper.make_node("Add", names[:2], [name]) for name in names[2:]]
    graph = helper.make_graph(nodes, "sum", given[:2], given[2:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), files / "model.onnx")


def write_echoes(repository: Path) -> None:
    """`echo` says what it is told of a sequence, `names` the text of its id."""
    flags = "".join(
        f'control_input {{ name: "{kind}" control {{ kind: CONTROL_SEQUENCE_{kind} {values} }} }}\n'
        for kind, values in (
            ("START", "int32_false_true: [ 0, 1 ]"),
            ("END", "fp32_false_true: [ 0, 1 ]"),
            ("READY", "bool_false_true: [ false, true ]"),
        )
    )
    correlation = (
        'control_input { name: "CORRID" control { kind: CONTROL_SEQUENCE_CORRID data_type: %s } }'
    )
    config = """
max_batch_size: 4
input { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }
sequence_batching { %s }
"""
    told = """
output { name: "TOLD" data_type: TYPE_INT64 dims: [ 4 ] }
output { name: "SAID" data_type: TYPE_INT64 dims: [ 2 ] }
output { name: "ROWS" data_type: TYPE_INT32 dims: [ 1 ] }
"""
    controls = flags + correlation % "TYPE_UINT64"
    write_python_model(repository, "echo", config % controls + told, _ECHO)
    named = 'output { name: "NAME" data_type: TYPE_STRING dims: [ 1 ] }'
    write_python_model(repository, "names", config % (correlation % "TYPE_STRING") + named, _NAMES)
