"""What clients may ask of an ensemble as of any model: sequences, shared memory, an answer from the
cache, classes, and to be let go."""

import json
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_harness import PATIENCE, Running, write_python_model

http = pytest.importorskip("tritonclient.http", reason="tritonclient is missing")
grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is missing")
shm = pytest.importorskip("tritonclient.utils.shared_memory", reason="tritonclient is missing")

MODEL = """
max_batch_size: 8
input { name: "X" data_type: TYPE_INT32 dims: [ 2 ] }
output { name: "Y" data_type: TYPE_INT32 dims: [ 2 ] label_filename: "names.txt" }
instance_group { kind: KIND_CPU count: 1 }
"""
RUNS = """
def initialize(self, args):
    self.runs = 0

def execute(self, requests):
    self.runs += len(requests)
    return [answer(Y=read(r, "X") + np.int32(100 * self.runs)) for r in requests]
"""
SUMS = """
def initialize(self, args):
    self.sums = {}

def execute(self, requests):
    return [self.one(request) for request in requests]

def one(self, request):
    x, start = read(request, "X"), read(request, "START")[0, 0]
    sequence = request.correlation_id()
    self.sums[sequence] = x if start else self.sums[sequence] + x
    return answer(Y=self.sums[sequence])
"""
SEQUENCES = """
sequence_batching { control_input {
  name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] }
} }
"""
ENDLESS = """
def execute(self, requests):
    import threading
    for request in requests:
        threading.Thread(target=self.work, args=(request.get_response_sender(),)).start()

def work(self, sender):
    sender.send(answer(Y=np.zeros((1, 2), np.int32)))
    while not sender.is_cancelled():
        time.sleep(0.01)
    pb_utils.Logger.log_info("saw the cancellation")
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
DECOUPLED = "model_transaction_policy { decoupled: true }\n"
CACHED = "response_cache { enable: true }\n"


def write(repository: Path, name: str, body: str, inner: str = "", outer: str = "") -> None:
    """A model, and an ensemble whose only step it is."""
    folder = write_python_model(repository, f"{name}_step", MODEL + inner, body)
    (folder / "names.txt").write_text("left\nright\n")
    ensemble = repository / name
    (ensemble / "1").mkdir(parents=True)
    (ensemble / "config.pbtxt").write_text(
        f"""
        platform: "ensemble"
        max_batch_size: 8
        input {{ name: "a" data_type: TYPE_INT32 dims: [ 2 ] }}
        output {{ name: "y" data_type: TYPE_INT32 dims: [ 2 ] }}
        ensemble_scheduling {{ step {{
          model_name: "{name}_step" model_version: -1
          input_map {{ key: "X" value: "a" }} output_map {{ key: "Y" value: "y" }}
        }} }}
        {outer}"""
    )


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    repository = tmp_path_factory.mktemp("ensembles") / "models"
    write(repository, "runs", RUNS)
    write(repository, "cached", RUNS, outer=CACHED)
    write(repository, "sums", SUMS, inner=SEQUENCES)
    write(repository, "endless", ENDLESS, inner=DECOUPLED)
    return start_server(
        repository,
        "--allow-client-shm=true",
        "--cache-config=local,size=1048576",
        "--model-control-mode=explicit",
        "--load-model=*",
    )


def numbers(server: Running, model: str, *values: int, **more: Any) -> list[int]:
    """What an ensemble gives for a row of numbers."""
    with http.InferenceServerClient(server.http_url) as client:
        tensor = http.InferInput("a", [1, len(values)], "INT32")
        tensor.set_data_from_numpy(np.array([values], np.int32))
        found: list[int] = client.infer(model, [tensor], **more).as_numpy("y")[0].tolist()
        return found


def test_sequences_pass_through(server: Running) -> None:
    found = [
        numbers(server, "sums", 1, n, sequence_id=5, sequence_start=n == 0, sequence_end=n == 3)
        for n in range(4)
    ]
    assert found == [[1, 0], [2, 1], [3, 3], [4, 6]]
    refused = server.infer("sums", ("a", "INT32", [[1, 2]]))
    assert refused.status == 400
    assert refused.error.startswith("in ensemble 'sums', ")
    assert "must specify a non-zero or non-empty correlation ID" in refused.error


def test_an_answer_from_the_cache(server: Running) -> None:
    first = numbers(server, "cached", 1, 2)
    assert numbers(server, "cached", 1, 2) == first
    assert numbers(server, "cached", 1, 3) != first
    (stats,) = server.get("/v2/models/cached/stats").json["model_stats"]
    counts = {name: stats["inference_stats"][name]["count"] for name in ("cache_hit", "success")}
    assert counts == {"cache_hit": 1, "success": 3}
    assert stats["execution_count"] == 2


def test_the_cache_forgets_with_the_models_of_the_steps(server: Running) -> None:
    numbers(server, "cached", 7, 7)
    ran = numbers(server, "cached", 8, 8)[0] // 100
    config = json.dumps({"backend": "python", **_config(server, "cached_step")})
    body = json.dumps({"parameters": {"config": config}}).encode()
    assert server.post("/v2/repository/models/cached_step/load", body).status == 200
    assert ran > 1
    assert numbers(server, "cached", 8, 8) == [108, 108]  # a new model counts its runs anew


def _config(server: Running, model: str) -> dict[str, Any]:
    config = server.get(f"/v2/models/{model}/config").json
    return {key: config[key] for key in ("max_batch_size", "input", "output", "instance_group")}


def test_tensors_in_shared_memory(server: Running) -> None:
    region = shm.create_shared_memory_region("ensemble", "/microkernel_ensemble", 16)
    try:
        shm.set_shared_memory_region(region, [np.array([[3, 4]], np.int32)])
        with http.InferenceServerClient(server.http_url) as client:
            client.register_system_shared_memory("ensemble", "/microkernel_ensemble", 16)
            tensor, output = http.InferInput("a", [1, 2], "INT32"), http.InferRequestedOutput("y")
            tensor.set_shared_memory("ensemble", 8)
            output.set_shared_memory("ensemble", 8, 8)
            client.infer("runs", [tensor], outputs=[output])
            client.unregister_system_shared_memory("ensemble")
        found = shm.get_contents_as_numpy(region, np.int32, [2, 2])
        assert (found % 100).tolist() == [[3, 4], [3, 4]]
    finally:
        shm.destroy_shared_memory_region(region)


def test_classes_with_the_labels_of_the_step(server: Running) -> None:
    with http.InferenceServerClient(server.http_url) as client:
        tensor = http.InferInput("a", [1, 2], "INT32")
        tensor.set_data_from_numpy(np.array([[1, 2]], np.int32))
        output = http.InferRequestedOutput("y", class_count=1)
        ((found,),) = client.infer("runs", [tensor], outputs=[output]).as_numpy("y").tolist()
    assert found.endswith(b"02:1:right")


def test_one_who_goes_is_gone_for_the_steps(server: Running) -> None:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    since = len(server.log.lines)
    with grpc.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put(error))
        tensor = grpc.InferInput("a", [1, 2], "INT32")
        tensor.set_data_from_numpy(np.array([[1, 2]], np.int32))
        client.async_stream_infer("endless", [tensor])
        assert answers.get(timeout=PATIENCE) is None
        client.stop_stream(cancel_requests=True)
        server.log.wait("saw the cancellation", since=since)
