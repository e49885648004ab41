"""A fault of a GPU ends the worker that met it, and the model goes on in another one."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_harness import Running

pytest.importorskip("torch", reason="the extra 'torchscript' is missing")

import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

CONFIG = """
platform: "pytorch_libtorch"
input { name: "x" data_type: TYPE_INT64 dims: [ 2 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 2 ] }
instance_group { kind: KIND_GPU count: 1 }
"""


class Looks(torch.nn.Module):
    """Looks numbers up in a table of four; beyond it the GPU's own check fails."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.arange(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[x]


@pytest.fixture
def server(tmp_path: Path, start_server: Callable[..., Running]) -> Running:
    for name in ("broken", "neighbour"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").write_text(CONFIG)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module: Any = torch.jit.script(Looks())
        module.save(tmp_path / name / "1" / "model.pt")
    return start_server(tmp_path)


def test_a_failed_assertion_on_the_gpu_costs_one_batch(server: Running) -> None:
    for _ in range(2):
        since = len(server.log.lines)
        failed = server.infer("broken", ("x", "INT64", [1, 1000]))
        assert failed.status == 503
        assert "device-side assert" in failed.error
        beside = server.infer("neighbour", ("x", "INT64", [3, 1]))
        assert beside.json["outputs"][0]["data"] == [3.0, 1.0]
        server.log.wait("worker restarted", since=since)
        after = server.infer("broken", ("x", "INT64", [2, 0]))
        assert after.json["outputs"][0]["data"] == [2.0, 0.0]
