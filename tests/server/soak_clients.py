"""The clients of the soak test. Each is a context that has a `turn`: one exchange with the server,
which raises where an answer is not the right one."""

import http.client
import itertools
import json
import queue
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, TypeAlias

import numpy as np
import psutil
import pytest
from server_harness import ADDRESS, PATIENCE, Running

http_client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")
grpc_client = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")
shm = pytest.importorskip("tritonclient.utils.shared_memory", reason="tritonclient is missing")

Turn: TypeAlias = Callable[[], str]
"""Makes one exchange; what became of it, to be counted."""
Client: TypeAlias = Callable[[Running], AbstractContextManager[Turn]]

GOOD, REFUSED, LEFT = "good", "refused", "left"
KILLED = "good, then the worker was killed"
LOST = "lost with its worker"
KILLED_EVERY = 50
"""Answers of the mortal model until its worker is killed."""
SIZES = (1, 3, 64, 5000, 200_000)
DIED = ("killed by signal SIGKILL", "is not at ready state")
"""What the message of a request says that was lost with its worker, or found none."""
_NUMBERS = itertools.count(1)


def numbers() -> np.ndarray[Any, np.dtype[np.int64]]:
    """A batch of one to three rows with numbers that no other request has, small or large."""
    turn = next(_NUMBERS)
    shape = (turn % 3 + 1, SIZES[turn % len(SIZES)] if turn % 25 == 0 else SIZES[turn % 3])
    return turn * 10**7 + np.arange(shape[0] * shape[1]).reshape(shape)


@contextmanager
def over_json(server: Running, model: str = "python_echo") -> Iterator[Turn]:
    """JSON over HTTP, on one connection."""
    with closing(http.client.HTTPConnection(ADDRESS, server.http, timeout=PATIENCE)) as connection:

        def turn() -> str:
            rows, identity = numbers()[:, :100], uuid.uuid4().hex
            text = [[f"{n}\u00e9" for n in row] for row in rows.tolist()]
            inputs = [_entry("INT64", rows, rows.tolist()), _entry("BYTES", rows, text)]
            document = {"id": identity, "inputs": inputs}
            connection.request("POST", f"/v2/models/{model}/infer", json.dumps(document).encode())
            answer = json.loads(connection.getresponse().read())
            assert answer["id"] == identity
            outputs = {output["name"]: output["data"] for output in answer["outputs"]}
            assert outputs["OUT_INT64"] == rows.reshape(-1).tolist()
            assert outputs["OUT_BYTES"] == list(itertools.chain.from_iterable(text))
            return GOOD

        yield turn


def _entry(kind: str, rows: Any, data: Any) -> dict[str, Any]:
    return {"name": f"IN_{kind}", "datatype": kind, "shape": list(rows.shape), "data": data}


def _asked(client: Any, rows: Any) -> list[Any]:
    """The inputs of a request in raw bytes, and what they should come back as."""
    text = np.array([b"%d" % n for n in rows.reshape(-1)[:3]] * rows.shape[0], np.object_)
    arrays = {"INT64": rows, "BYTES": text.reshape(rows.shape[0], -1)}
    inputs = []
    for kind, array in arrays.items():
        inputs.append(client.InferInput(f"IN_{kind}", list(array.shape), kind))
        inputs[-1].set_data_from_numpy(array)
    return [inputs, arrays]


def _check(result: Any, arrays: dict[str, Any], identity: str) -> None:
    told = result.get_response()
    assert (told["id"] if isinstance(told, dict) else told.id) == identity
    for kind, array in arrays.items():
        read = result.as_numpy(f"OUT_{kind}")
        assert read.shape == array.shape
        assert (read == array).all()


def _over_client(client: Any, url: str, model: str) -> Iterator[Turn]:
    with client.InferenceServerClient(url) as caller:

        def turn() -> str:
            identity = uuid.uuid4().hex
            inputs, arrays = _asked(client, numbers())
            _check(caller.infer(model, inputs, request_id=identity), arrays, identity)
            return GOOD

        yield turn


@contextmanager
def over_http(server: Running, model: str = "onnx_echo") -> Iterator[Turn]:
    """Raw bytes over HTTP."""
    yield from _over_client(http_client, server.http_url, model)


@contextmanager
def over_grpc(server: Running, model: str = "python_echo") -> Iterator[Turn]:
    """Raw bytes over gRPC."""
    yield from _over_client(grpc_client, server.grpc_url, model)


@contextmanager
def in_shared_memory(server: Running) -> Iterator[Turn]:
    """Inputs and outputs in a region, which is registered for each request."""
    with grpc_client.InferenceServerClient(server.grpc_url) as caller:
        name, half = f"soak_{uuid.uuid4().hex}", 8 * 3 * 5000
        region = shm.create_shared_memory_region(name, f"/{name}", 2 * half)

        def turn() -> str:
            rows = numbers()[:, :5000]
            shm.set_shared_memory_region(region, [rows])
            caller.register_system_shared_memory(name, f"/{name}", 2 * half)
            inputs = [grpc_client.InferInput("IN_INT64", list(rows.shape), "INT64")]
            inputs[0].set_shared_memory(name, rows.nbytes)
            inputs.append(grpc_client.InferInput("IN_BYTES", [rows.shape[0], 1], "BYTES"))
            inputs[1].set_data_from_numpy(np.array([[b"x"]] * rows.shape[0], np.object_))
            outputs = [grpc_client.InferRequestedOutput("OUT_INT64")]
            outputs[0].set_shared_memory(name, rows.nbytes, half)
            caller.infer("onnx_echo", inputs, outputs=outputs)
            caller.unregister_system_shared_memory(name)
            read = shm.get_contents_as_numpy(region, np.int64, list(rows.shape), half)
            assert (read == rows).all()
            return GOOD

        try:
            yield turn
        finally:
            shm.destroy_shared_memory_region(region)


@contextmanager
def on_stream(server: Running) -> Iterator[Turn]:
    """Requests of a decoupled model on one stream: every response of each, in order, once."""
    with grpc_client.InferenceServerClient(server.grpc_url) as caller:
        answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        caller.start_stream(lambda result, error: answers.put((result, error)))

        def turn() -> str:
            asked = {uuid.uuid4().hex: _repeated() for _ in range(3)}
            for identity, (inputs, _) in asked.items():
                caller.async_stream_infer(
                    "repeat_int32", inputs, request_id=identity, enable_empty_final_response=True
                )
            _collect(answers, {identity: values for identity, (_, values) in asked.items()})
            return GOOD

        yield turn
        caller.stop_stream()
        assert answers.empty()


def _repeated() -> tuple[list[Any], list[int]]:
    values = np.arange(next(_NUMBERS) % 4 + 1, dtype=np.int32) + next(_NUMBERS)
    inputs = [grpc_client.InferInput("IN", [len(values)], "INT32")]
    inputs[0].set_data_from_numpy(values)
    return inputs, values.tolist()


def _collect(answers: "queue.SimpleQueue[tuple[Any, Any]]", left: dict[str, list[int]]) -> None:
    """Take answers until every request has had all of its own and the news of their end."""
    while left:
        result, error = answers.get(timeout=PATIENCE)
        assert error is None
        response = result.get_response()
        wanted = left[response.id]
        if response.outputs:
            assert result.as_numpy("OUT").tolist() == [wanted.pop(0)]
        if response.parameters["triton_final_response"].bool_param:
            assert left.pop(response.id) == []


@contextmanager
def as_events(server: Running) -> Iterator[Turn]:
    """A decoupled model's responses as server-sent events."""
    with closing(http.client.HTTPConnection(ADDRESS, server.http, timeout=PATIENCE)) as connection:

        def turn() -> str:
            values = [next(_NUMBERS) for _ in range(3)]
            body = json.dumps({"IN": values}).encode()
            connection.request("POST", "/v2/models/repeat_int32/generate_stream", body)
            events = connection.getresponse().read().decode().split("\n\n")
            assert events.pop() == ""
            found = [json.loads(event.removeprefix("data: "))["OUT"] for event in events]
            assert found == values
            return GOOD

        yield turn


@contextmanager
def at_a_mortal_model(server: Running) -> Iterator[Turn]:
    """Requests of a model whose worker this client kills now and then. What is lost is UNAVAILABLE
    and says why."""
    wait_ready(server, "mortal")
    turns, killed = itertools.count(1), set[int]()
    with grpc_client.InferenceServerClient(server.grpc_url) as caller:

        def turn() -> str:
            rows = numbers()[0, :64]
            inputs = [grpc_client.InferInput("IN", list(rows.shape), "INT64")]
            inputs[0].set_data_from_numpy(rows)
            try:
                result = caller.infer("mortal", inputs)
            except grpc_client.InferenceServerException as error:
                check_lost(error, killed)
                wait_ready(server, "mortal")
                return LOST
            assert (result.as_numpy("OUT") == rows).all()
            pid = int(result.as_numpy("PID")[0])
            assert pid not in killed
            if next(turns) % KILLED_EVERY:
                return GOOD
            killed.add(pid)
            psutil.Process(pid).kill()
            return KILLED

        yield turn


def check_lost(error: Any, killed: set[int]) -> None:
    """Raise an error again that is not the death of a worker."""
    known = any(words in str(error) for words in DIED)
    if not killed or error.status() != "StatusCode.UNAVAILABLE" or not known:
        raise error


def wait_ready(server: Running, model: str) -> None:
    """Ask until the model is ready; fails after a while."""
    end = time.monotonic() + PATIENCE
    while server.get(f"/v2/models/{model}/ready").status != 200:
        assert time.monotonic() < end


@contextmanager
def as_operator(server: Running) -> Iterator[Turn]:
    """A model that is loaded, used and unloaded again."""
    with grpc_client.InferenceServerClient(server.grpc_url) as caller:

        def turn() -> str:
            caller.load_model("guest")
            with over_http(server, "guest") as ask:
                for _ in range(3):
                    ask()
            caller.unload_model("guest")
            return GOOD

        yield turn


BAD = (
    (b"", 400),
    (b"{", 500),
    (b"[" * 5000, 400),
    (b'{"inputs": "' + b'\\"' * 20_000, 500),
    (b'{"inputs": []}', 400),
    (b'{"inputs": [{"name": "IN_INT64", "datatype": "INT64", "shape": [1, 2], "data": [1]}]}', 500),
    (b'{"inputs": [{"name": "X", "datatype": "INT64", "shape": [1], "data": [1]}]}', 400),
    (b'{"inputs": [{"name": "X", "datatype": "FP7", "shape": [1], "data": [1]}]}', 400),
)
"""Bodies that are wrong, and the status of the answer."""


@contextmanager
def with_bad_bodies(server: Running) -> Iterator[Turn]:
    """Requests that are wrong, over both protocols."""
    with (
        closing(http.client.HTTPConnection(ADDRESS, server.http, timeout=PATIENCE)) as connection,
        grpc_client.InferenceServerClient(server.grpc_url) as caller,
    ):

        def turn() -> str:
            body, status = BAD[next(_NUMBERS) % len(BAD)]
            connection.request("POST", "/v2/models/abused/infer", body)
            answer = connection.getresponse()
            assert json.loads(answer.read())["error"]
            assert answer.status == status, body[:100]
            with pytest.raises(grpc_client.InferenceServerException) as refused:
                caller.infer("abused", [grpc_client.InferInput("IN_INT64", [1, 2], "INT64")])
            assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
            return REFUSED

        yield turn


@contextmanager
def that_leaves(server: Running) -> Iterator[Turn]:
    """Clients that go away: in a head, in a body, before an answer, in the midst of a stream."""
    document = {"inputs": [_entry(kind, np.zeros((1, 2)), [0, 0]) for kind in ("INT64",)]}
    body = json.dumps(document).encode()
    head = (
        f"POST /v2/models/abused/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    whole = head.encode() + body
    repeat = json.dumps({"IN": [0] * 50, "DELAY": [20] * 50}).encode()
    events = "POST /v2/models/repeat_int32/generate_stream HTTP/1.1\r\nHost: x\r\n"
    stream = f"{events}Content-Length: {len(repeat)}\r\n\r\n".encode() + repeat
    sent = itertools.cycle((whole[:20], whole[:-10], whole, stream))

    def turn() -> str:
        part = next(sent)
        with socket.create_connection((ADDRESS, server.http), PATIENCE) as leaving:
            leaving.sendall(part)
            if part is stream:
                assert leaving.recv(12) == b"HTTP/1.1 200"
        _leave_stream(server)
        return LEFT

    yield turn


def _leave_stream(server: Running) -> None:
    with grpc_client.InferenceServerClient(server.grpc_url) as caller:
        first: queue.SimpleQueue[Any] = queue.SimpleQueue()
        caller.start_stream(lambda result, error: first.put(error))
        inputs, values = _repeated()
        delays = grpc_client.InferInput("DELAY", [len(values)], "UINT32")
        delays.set_data_from_numpy(np.full(len(values), 30, np.uint32))
        caller.async_stream_infer("repeat_int32", [*inputs, delays])
        assert first.get(timeout=PATIENCE) is None
        caller.stop_stream(cancel_requests=True)


CLIENTS: dict[str, Client] = {
    "JSON": over_json,
    "binary HTTP": over_http,
    "gRPC": over_grpc,
    "shared memory": in_shared_memory,
    "stream": on_stream,
    "events": as_events,
    "mortal model": at_a_mortal_model,
    "operator": as_operator,
    "bad bodies": with_bad_bodies,
    "leaving": that_leaves,
}
