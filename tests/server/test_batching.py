"""Requests that arrive together run together, and each gets its own answer."""

from collections.abc import Callable
from functools import partial

import pytest
from server_harness import Running, in_threads, write_python_model

TOGETHER = 16
CONFIG = """
max_batch_size: 8
input { name: "X" data_type: TYPE_INT32 dims: [ 2 ] }
output [
  { name: "TWICE" data_type: TYPE_INT32 dims: [ 2 ] },
  { name: "BATCH" data_type: TYPE_INT32 dims: [ 1 ] }
]
instance_group { kind: KIND_CPU count: 1 }
"""
BODY = """
def execute(self, requests):
    size = np.array([[len(requests)]], np.int32)
    return [answer(TWICE=2 * read(r, "X"), BATCH=size) for r in requests]
"""


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    repository = tmp_path_factory.mktemp("batching") / "models"
    delay = "dynamic_batching { max_queue_delay_microseconds: 500000 }\n"
    write_python_model(repository, "patient", CONFIG + delay, BODY)
    write_python_model(repository, "direct", CONFIG, BODY)
    return start_server(repository)


def counted(server: Running, model: str) -> dict[str, float]:
    """The model's counters by the name of their family."""
    labels = f'{{model="{model}",version="1"}}'
    found = server.metrics()
    names = ("nv_inference_count", "nv_inference_exec_count", "nv_inference_request_success")
    return {name: found[name + labels] for name in names}


@pytest.mark.parametrize(("model", "batches"), [("patient", True), ("direct", False)])
def test_requests_sent_together(server: Running, model: str, batches: bool) -> None:
    before = counted(server, model)
    calls = [partial(server.infer, model, ("X", "INT32", [[i, -i]])) for i in range(TOGETHER)]
    answers = in_threads(calls)
    sizes = []
    for i, found in enumerate(answers):
        assert found.status == 200
        outputs = {output["name"]: output["data"] for output in found.json["outputs"]}
        assert outputs["TWICE"] == [2 * i, -2 * i]
        sizes += outputs["BATCH"]
    after = counted(server, model)
    difference = {name: after[name] - before[name] for name in after}
    assert difference["nv_inference_request_success"] == TOGETHER
    assert difference["nv_inference_count"] == TOGETHER
    # A batch of n was seen by its n requests, so the sizes tell how many batches there were.
    assert difference["nv_inference_exec_count"] == round(sum(1 / size for size in sizes))
    assert (difference["nv_inference_exec_count"] < TOGETHER) is batches


def test_a_batch_keeps_to_the_largest_size(server: Running) -> None:
    rows = [[i, i] for i in range(9)]
    found = server.infer("patient", ("X", "INT32", rows))
    assert found.status == 400
    assert "inference request batch-size must be <= 8 for 'patient'" in found.error
