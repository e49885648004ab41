"""A model that tells how often it ran, so that an answer from the cache shows."""

import json
from pathlib import Path
from typing import Any

from server_harness import Running, write_python_model

CONFIG = """
max_batch_size: 8
input { name: "X" data_type: TYPE_INT32 dims: [ -1 ] }
input { name: "S" data_type: TYPE_STRING dims: [ 1 ] optional: true }
output { name: "TWICE" data_type: TYPE_INT32 dims: [ -1 ] }
output { name: "RUN" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "WORDS" data_type: TYPE_STRING dims: [ 2 ] }
instance_group { kind: KIND_CPU count: 1 }
"""
CACHED = CONFIG + "response_cache { enable: true }\n"
BODY = """
def initialize(self, args):
    self.runs = 0

def execute(self, requests):
    return [self.one(request) for request in requests]

def one(self, request):
    self.runs += 1
    x = read(request, "X")
    if x.size and x[0, 0] < 0:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError("below zero"))
    words = np.full((len(x), 2), f"run {self.runs}".encode(), dtype=object)
    run = np.full((len(x), 1), self.runs, np.int32)
    given = dict(TWICE=2 * x, RUN=run, WORDS=words)
    return answer(**{name: given[name] for name in request.requested_output_names()})
"""


def write_counting(repository: Path, name: str, config: str = CACHED, body: str = BODY) -> Path:
    """A model `X` to `TWICE`, with `RUN` and `WORDS` that are others at every run."""
    return write_python_model(repository, name, config, body)


def run_of(
    server: Running, model: str, *values: int, parameters: dict[str, Any] | None = None
) -> int:
    """At which run of the model its answer was made."""
    document: dict[str, Any] = {
        "id": "own",
        "inputs": [
            {"name": "X", "datatype": "INT32", "shape": [1, len(values)], "data": list(values)}
        ],
    }
    if parameters is not None:
        document["parameters"] = parameters
    found = server.post(f"/v2/models/{model}/infer", json.dumps(document).encode())
    assert found.status == 200, found.body
    outputs = {output["name"]: output["data"] for output in found.json["outputs"]}
    assert outputs["TWICE"] == [2 * value for value in values]
    assert found.json["id"] == "own"
    return int(outputs["RUN"][0])


def counted(server: Running, model: str) -> dict[str, int]:
    """The counts of a model's statistics over HTTP."""
    [entry] = server.get(f"/v2/models/{model}/stats").json["model_stats"]
    counts = {name: stats["count"] for name, stats in entry["inference_stats"].items()}
    return counts | {"executions": entry["execution_count"], "inferences": entry["inference_count"]}
