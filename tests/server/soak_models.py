"""The models of the soak test."""

import shutil
from pathlib import Path

from identity_models import write_identity
from server_harness import write_python_model

REPEAT = Path(__file__).parents[2] / "examples" / "repository" / "repeat_int32"
KINDS = ("INT64", "BYTES")
STEADY = ("python_echo", "onnx_echo", "abused", "repeat_int32")
"""Models whose workers live as long as the server."""

_MORTAL = """
input { name: "IN" data_type: TYPE_INT64 dims: [ -1 ] }
output [
  { name: "OUT" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "PID" data_type: TYPE_INT64 dims: [ 1 ] }
]
"""
_MORTAL_BODY = """
def execute(self, requests):
    pid = np.array([os.getpid()])
    return [answer(OUT=read(request, "IN"), PID=pid) for request in requests]
"""


def write_models(repository: Path) -> None:
    """Models that give back what they are given: `python_echo` and `onnx_echo`, which only clients
    that mean well use; `abused` for the others; `guest`, which comes and goes; `mortal`, which also
    tells the pid of its worker. And `repeat_int32` of the examples, which is decoupled."""
    for name, backend in (
        ("python_echo", "python"),
        ("onnx_echo", "onnx"),
        ("abused", "python"),
        ("guest", "python"),
    ):
        write_identity(repository, name, backend, "batching", KINDS)
    config = repository / "python_echo" / "config.pbtxt"
    config.write_text(config.read_text() + "instance_group { kind: KIND_CPU count: 2 }\n")
    write_python_model(repository, "mortal", _MORTAL, _MORTAL_BODY)
    shutil.copytree(REPEAT, repository / "repeat_int32")
