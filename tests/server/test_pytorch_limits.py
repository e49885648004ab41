"""A model that takes too much memory fails its batch, or dies of it, and others never notice."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from server_harness import Running, in_threads, write_python_model

pytest.importorskip("torch", reason="the extra 'torchscript' is missing")

import torch

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

TENSORS = """
input { name: "x" data_type: TYPE_INT64 dims: [ 1 ] }
output { name: "y" data_type: TYPE_INT64 dims: [ 1 ] }
instance_group { kind: KIND_CPU count: 1 }
parameters { key: "WARMUP" value { string_value: "false" } }
"""
LIMIT = """
parameters { key: "WORKER_MEMORY_LIMIT" value { string_value: "%s" } }
"""
BODY = """
def execute(self, requests):
    [request] = requests
    count = read(request, "x")
    return [answer(y=np.ones(count[0], np.uint8)[:1].astype(np.int64))]
"""
GIB = 1 << 30


class Takes(torch.nn.Module):
    """Takes as many bytes as it is asked to."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones([int(x[0].item())], dtype=torch.uint8)[:1].to(torch.int64)


def write_scripted(repository: Path, name: str, config: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    text = f'platform: "pytorch_libtorch"\n{config}'
    (repository / name / "config.pbtxt").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module: Any = torch.jit.script(Takes())
        module.save(repository / name / "1" / "model.pt")


@pytest.fixture
def server(tmp_path: Path, start_server: Callable[..., Running]) -> Running:
    for name, limit in (("limited", LIMIT % "600MiB"), ("free", "")):
        write_python_model(tmp_path, f"python_{name}", TENSORS + limit, BODY)
        write_scripted(tmp_path, f"scripted_{name}", TENSORS + limit)
    return start_server(tmp_path)


def take(server: Running, model: str, count: int) -> tuple[int, str]:
    """The status and, where there is one, the error of a request for so many bytes."""
    found = server.infer(model, ("x", "INT64", [count]))
    if found.status == 200:
        assert found.json["outputs"][0]["data"] == [1]
        return found.status, ""
    return found.status, found.error


def test_each_model_has_its_limit_and_others_have_none(server: Running) -> None:
    words = {"python": "Unable to allocate", "scripted": "can't allocate memory"}
    since = len(server.log.lines)
    for kind, said in words.items():
        asked = [(f"{kind}_limited", 2 * GIB), (f"{kind}_free", 1000), (f"{kind}_free", GIB)]
        (status, error), *others = in_threads([partial(take, server, *one) for one in asked])
        assert status == 500
        assert said in error
        assert others == [(200, "")] * 2
        assert take(server, f"{kind}_limited", 1 << 20) == (200, "")
    assert not [line for line in server.log.lines[since:] if line.get("event") == "worker lost"]
