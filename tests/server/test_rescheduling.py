"""Python models that ask to see a request again, as a client sees them."""

import queue
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from server_harness import PATIENCE, Running, in_threads, write_python_model

http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")
grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

CONFIG = """
max_batch_size: 4
input { name: "STEPS" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "SEEN" data_type: TYPE_INT32 dims: [ 1 ] }
instance_group { kind: KIND_CPU count: 1 }
"""
ITERATIVE = "sequence_batching { iterative_sequence: true }\n"
DECOUPLED = "model_transaction_policy { decoupled: true }\n"
SINGLE = """
seen = {}

def execute(self, requests):
    return [self.step(request) for request in requests]

def step(self, request):
    key = request.request_id()
    self.seen[key] = self.seen.get(key, 0) + 1
    if self.seen[key] < read(request, "STEPS").item():
        request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
        return None
    return answer(SEEN=np.array([[self.seen.pop(key)]], np.int32))
"""
MANY = """
seen = {}

def execute(self, requests):
    for request in requests:
        key = request.request_id()
        self.seen[key] = self.seen.get(key, 0) + 1
        sender = request.get_response_sender()
        sender.send(answer(SEEN=np.array([[self.seen[key]]], np.int32)))
        if self.seen[key] < read(request, "STEPS").item():
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
        else:
            del self.seen[key]
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    repository = tmp_path_factory.mktemp("rescheduling") / "models"
    write_python_model(repository, "single", CONFIG + ITERATIVE, SINGLE)
    write_python_model(repository, "many", CONFIG + ITERATIVE + DECOUPLED, MANY)
    write_python_model(repository, "plain", CONFIG + "dynamic_batching { }", SINGLE)
    return start_server(repository)


def steps(kinds: Any, count: int) -> list[Any]:
    given = kinds.InferInput("STEPS", [1, 1], "INT32")
    given.set_data_from_numpy(np.array([[count]], np.int32))
    return [given]


def ask(server: Running, model: str, count: int, name: str) -> int:
    """What the last step says over either protocol, by turns."""
    kinds, url = (grpc, server.grpc_url) if count % 2 else (http, server.http_url)
    with kinds.InferenceServerClient(url) as client:
        result = client.infer(model, steps(kinds, count), request_id=name)
    return int(result.as_numpy("SEEN").item())


def test_a_request_comes_again_until_it_is_answered(server: Running) -> None:
    counts = [1, 5, 2, 7, 3, 3, 8, 1]
    calls = [partial(ask, server, "single", n, f"r{i}") for i, n in enumerate(counts)]
    assert in_threads(calls) == counts


def test_a_decoupled_model_answers_at_every_step(server: Running) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(1, 5):
            client.async_stream_infer(
                "many",
                steps(grpc, number),
                request_id=f"r{number}",
                enable_empty_final_response=True,
            )
        found: dict[str, list[int]] = {}
        open_ = 4
        while open_:
            result, error = answers.get(timeout=PATIENCE)
            assert error is None, error
            response = result.get_response()
            if response.parameters["triton_final_response"].bool_param:
                open_ -= 1
            if response.outputs:
                found.setdefault(response.id, []).append(int(result.as_numpy("SEEN").item()))
        client.stop_stream()
    assert found == {f"r{n}": list(range(1, n + 1)) for n in range(1, 5)}


def test_a_model_whose_sequences_are_not_iterative_is_refused_it(server: Running) -> None:
    assert ask(server, "plain", 1, "once") == 1
    with pytest.raises(Exception, match="TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model"):
        ask(server, "plain", 2, "twice")
