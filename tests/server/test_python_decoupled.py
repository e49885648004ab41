"""Decoupled Python models and response senders over the protocols, in real workers."""

import queue
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_harness import PATIENCE, Running

grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is missing")

REPEAT = Path(__file__).parents[2] / "examples" / "repository" / "repeat_int32"

KINDS = """
import threading
import triton_python_backend_utils as pb_utils
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            kind = request.inputs()[0].as_numpy()[0].decode()
            sender = request.get_response_sender()
            output = pb_utils.Tensor("OUT", request.inputs()[0].as_numpy())
            getattr(self, kind)(sender, pb_utils.InferenceResponse([output]))

    def now(self, sender, answer):
        sender.send(answer, FINAL)

    def later(self, sender, answer):
        threading.Thread(target=sender.send, args=(answer, FINAL)).start()

    def never(self, sender, answer):
        pass

    def fail(self, sender, answer):
        raise ValueError("no")

    def until_cancelled(self, sender, answer):
        def work():
            sender.send(answer)
            while not sender.is_cancelled():
                threading.Event().wait(0.01)
            pb_utils.Logger.log_info("saw the cancellation")
            sender.send(flags=FINAL)
        threading.Thread(target=work).start()
"""
CONFIG = """
backend: "python"
max_batch_size: 0
input [{ name: "KIND", data_type: TYPE_STRING, dims: [ 1 ] }]
output [{ name: "OUT", data_type: TYPE_STRING, dims: [ 1 ] }]
"""
DECOUPLED = "model_transaction_policy { decoupled: true }\n"

BATCHED = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.set_model_transaction_policy({"decoupled": True})
        config.add_input({"name": "IN", "data_type": "TYPE_INT32", "dims": [1]})
        config.add_output({"name": "OUT", "data_type": "TYPE_INT32", "dims": [1]})
        return config

    def execute(self, requests):
        number = np.array([[len(requests)]], np.int32)
        for request in reversed(requests):
            sender = request.get_response_sender()
            sender.send(pb_utils.InferenceResponse(request.inputs()[:0]))
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", number)]), flags=1)
"""
BATCHED_CONFIG = """
backend: "python"
max_batch_size: 8
dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 30000000 }
"""


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    repository = tmp_path_factory.mktemp("decoupled") / "models"
    shutil.copytree(REPEAT, repository / "repeat_int32")
    models = {
        "once": (KINDS, CONFIG),
        "many": (KINDS, CONFIG + DECOUPLED),
        "batched": (BATCHED, BATCHED_CONFIG),
    }
    for name, (code, config) in models.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.py").write_text(code)
        (repository / name / "config.pbtxt").write_text(config)
    return start_server(repository)


class Stream:
    """A stream of the official client: its responses and errors in a queue."""

    def __init__(self, url: str) -> None:
        self._client = grpc.InferenceServerClient(url)
        self._arrived: queue.Queue[Any] = queue.Queue()
        self._client.start_stream(lambda result, error: self._arrived.put(error or result))

    def ask(
        self, model: str, name: str, array: np.ndarray[Any, Any], datatype: str, identity: str = ""
    ) -> None:
        tensor = grpc.InferInput(name, array.shape, datatype)
        tensor.set_data_from_numpy(array)
        self._client.async_stream_infer(
            model, [tensor], request_id=identity, enable_empty_final_response=True
        )

    def next(self) -> Any:
        return self._arrived.get(timeout=PATIENCE)

    def close(self, *, cancel: bool = False) -> None:
        self._client.stop_stream(cancel_requests=cancel)
        self._client.close()


@pytest.fixture
def stream(server: Running) -> Iterator[Stream]:
    opened = Stream(server.grpc_url)
    yield opened
    opened.close(cancel=True)


def is_final(result: Any) -> bool:
    flag: bool = result.get_response().parameters["triton_final_response"].bool_param
    return flag


def kind(name: str) -> np.ndarray[Any, Any]:
    return np.array([name.encode()], dtype=object)


def test_a_response_per_element_and_an_empty_final_one(stream: Stream) -> None:
    stream.ask("repeat_int32", "IN", np.array([4, 2, 1], np.int32), "INT32")
    for index, value in enumerate([4, 2, 1]):
        result = stream.next()
        found = [int(result.as_numpy(name)[0]) for name in ("OUT", "IDX")]
        assert (found, is_final(result)) == ([value, index], False)
    last = stream.next()
    assert (list(last.get_response().outputs), is_final(last)) == ([], True)


@pytest.mark.parametrize("how", ["now", "later"])
@pytest.mark.parametrize("model", ["once", "many"])
def test_answers_from_execute_and_from_a_thread(stream: Stream, model: str, how: str) -> None:
    stream.ask(model, "KIND", kind(how), "BYTES")
    result = stream.next()
    assert (result.as_numpy("OUT").tolist(), is_final(result)) == ([how.encode()], True)


@pytest.mark.parametrize(
    ("model", "how", "text"),
    [
        ("once", "never", "execute returned no response for the request, and none was sent"),
        ("many", "never", "the model let go of the request and its response sender"),
        ("once", "fail", "ValueError: no"),
        ("many", "fail", "ValueError: no"),
    ],
)
def test_a_request_without_an_answer_is_an_error(
    stream: Stream, model: str, how: str, text: str
) -> None:
    stream.ask(model, "KIND", kind(how), "BYTES")
    message = str(stream.next())
    assert f"Failed to process the request(s) for model '{model}_0" in message
    assert f"', message: {text}" in message


def test_a_model_sees_that_its_client_left(server: Running) -> None:
    leaving = Stream(server.grpc_url)
    leaving.ask("many", "KIND", kind("until_cancelled"), "BYTES")
    assert leaving.next().as_numpy("OUT").tolist() == [b"until_cancelled"]
    leaving.close(cancel=True)
    server.log.wait("saw the cancellation")


def test_a_model_that_made_itself_decoupled_gets_batches(stream: Stream) -> None:
    for number in range(4):
        stream.ask("batched", "IN", np.array([[number]], np.int32), "INT32", str(number))
    sizes: dict[str, list[int]] = {}
    for _ in range(8):
        response = (result := stream.next()).get_response()
        empty = not response.outputs
        sizes.setdefault(response.id, []).append(0 if empty else result.as_numpy("OUT").item())
    assert sizes == {str(number): [0, 4] for number in range(4)}
