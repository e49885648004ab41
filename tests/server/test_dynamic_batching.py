"""A real server whose dynamic batchers have limits, as the official clients see it: priorities,
timeouts, full queues, requests that are given up, answers in order, and what the metrics say."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_harness import PATIENCE, Gate, Running, in_threads, write_python_model

grpc_client = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")
http_client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")
from tritonclient.utils import InferenceServerException  # noqa: E402

CONFIG = """
max_batch_size: 4
input { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }
output [
  { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "RANK" data_type: TYPE_INT32 dims: [ 1 ] }
]
"""
ONE = "instance_group { kind: KIND_CPU count: 1 }\n"
TWO = "instance_group { kind: KIND_CPU count: 2 }\n"
GATED = """
def initialize(self, args):
    self.count = 0

def execute(self, requests):
    answers = []
    for request in requests:
        self.count += 1
        x = read(request, "X")
        if x[0, 0] < 0:
            with open({gate!r}) as gate:
                gate.read()
        answers.append(answer(Y=x, RANK=np.array([[self.count]], np.int32)))
    return answers
"""
"""A negative number waits at the gate; RANK is the place in which a request was executed."""

QUEUES = {
    "levels": "priority_levels: 3 default_priority_level: 2 "
    "priority_queue_policy { key: 3 value { max_queue_size: 1 } }",
    "short": "default_queue_policy { max_queue_size: 10 }",
    "timed": "default_queue_policy { default_timeout_microseconds: 60000000 "
    "allow_timeout_override: true }",
}


FAIR = """
dynamic_batching { }
parameters { key: "FAIR_QUEUE_KEY" value { string_value: "header:X-Client" } }
parameters { key: "FAIR_QUEUE_MAX_PER_KEY" value { string_value: "4" } }
"""


@dataclass
class Served:
    """The server, and the gate of each model."""

    server: Running
    gates: dict[str, Gate] = field(default_factory=dict)


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Served:
    folder = tmp_path_factory.mktemp("dynamic")
    repository, gates = folder / "models", {}
    batchers = {name: f"dynamic_batching {{ {text} }}\n" for name, text in QUEUES.items()}
    batchers["fair"] = FAIR
    batchers["ordered"] = "dynamic_batching { preserve_ordering: true }\n"
    for name, batcher in batchers.items():
        gates[name] = Gate(folder / f"{name}.gate")
        body = GATED.replace("{gate!r}", repr(str(gates[name].path)))
        groups = TWO if name == "ordered" else ONE
        write_python_model(repository, name, _single(CONFIG) + batcher + groups, body)
    return Served(start_server(repository, "--grpc-header-forward-pattern=x-client"), gates)


def _single(config: str) -> str:
    """Batches of one, so that the order of execution shows."""
    return config.replace("max_batch_size: 4", "max_batch_size: 1")


class Caller:
    """Asks over gRPC without waiting. `answers` holds what came, in the order in which it did."""

    def __init__(self, server: Running, model: str) -> None:
        self.answers: list[tuple[int, Any]] = []
        self._model = model
        self._client = grpc_client.InferenceServerClient(server.grpc_url)
        self._changed = threading.Condition()

    def call(self, number: int, **options: Any) -> Any:
        tensor = grpc_client.InferInput("X", [1, 1], "INT32")
        tensor.set_data_from_numpy(np.array([[number]], np.int32))

        def done(result: Any, error: Any) -> None:
            with self._changed:
                rank = error or int(result.as_numpy("RANK").item())
                self.answers.append((number, rank))
                self._changed.notify_all()

        return self._client.async_infer(self._model, [tensor], done, **options)

    def wait(self, count: int) -> list[tuple[int, Any]]:
        """The answers, when there are so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.answers) >= count, PATIENCE)
            return list(self.answers)

    def close(self) -> None:
        self._client.close()


def metric(server: Running, family: str, model: str, **labels: str) -> float:
    """A series of a model; labels in the order of the page."""
    pairs = {"model": model, **labels, "version": "1"}
    wanted = {f'{name}="{value}"' for name, value in pairs.items()}
    (found,) = [
        value
        for series, value in server.metrics().items()
        if series.startswith(family + "{")
        and wanted <= set(series[len(family) + 1 : -1].split(","))
    ]
    return found


def pending(server: Running, model: str) -> float:
    return metric(server, "nv_inference_pending_request_count", model)


def until_pending(server: Running, model: str, count: int) -> None:
    """Wait until so many requests wait; the page is the only one who knows."""
    server.until(lambda: pending(server, model) == count)


def until_successful(server: Running, model: str, count: float) -> None:
    """Wait until so many requests were successful."""
    server.until(lambda: successes(server, model) == count)


def successes(server: Running, model: str) -> float:
    return metric(server, "nv_inference_request_success", model)


def failures(server: Running, model: str) -> dict[str, float]:
    reasons = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    family = "nv_inference_request_failure"
    return {reason: metric(server, family, model, reason=reason) for reason in reasons}


@pytest.fixture
def occupy(served: Served) -> Any:
    """`caller, open = occupy(model)`: the model's only instance waits at its gate."""
    callers: list[Caller] = []

    def make(model: str) -> tuple[Caller, Callable[[], None]]:
        caller, gate = Caller(served.server, model), served.gates[model]
        callers.append(caller)
        caller.call(-1)
        waits = gate.reached()
        return caller, lambda: gate.open(waits)

    yield make
    for caller in callers:
        caller.close()


Occupy = Callable[[str], tuple[Caller, Callable[[], None]]]


def test_the_urgent_run_first(served: Served, occupy: Occupy) -> None:
    caller, open_gate = occupy("levels")
    for count, (number, priority) in enumerate([(30, 3), (20, 0), (21, 9), (10, 1), (11, 1)], 1):
        caller.call(number, priority=priority)
        until_pending(served.server, "levels", count)
    caller.call(31, priority=3)
    ((refused, error),) = caller.wait(1)
    assert refused == 31
    assert "Exceeds maximum queue size" in error.message()
    assert error.status() == "StatusCode.UNAVAILABLE"
    open_gate()
    answers = caller.wait(7)[1:]
    assert [number for number, _ in sorted(answers, key=lambda pair: pair[1])] == [
        -1,
        10,
        11,
        20,
        21,
        30,
    ]
    assert pending(served.server, "levels") == 0


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_flood_is_answered_or_refused(served: Served, occupy: Occupy, protocol: str) -> None:
    _, open_gate = occupy("short")
    before = successes(served.server, "short")
    results: list[Any] = []
    with {"http": _over_http, "grpc": _over_grpc}[protocol](served.server) as clients:
        flood = threading.Thread(
            target=lambda: results.extend(in_threads([partial(c, "short") for c in clients]))
        )
        flood.start()
        until_pending(served.server, "short", 10)
        open_gate()
        flood.join(PATIENCE)
    refused = [r for r in results if isinstance(r, InferenceServerException)]
    answered = [r for r in results if not isinstance(r, Exception)]
    assert len(refused) + len(answered) == len(results) == 200
    assert len(answered) >= 10
    assert all("Exceeds maximum queue size" in error.message() for error in refused)
    assert pending(served.server, "short") == 0
    after = successes(served.server, "short")
    assert after - before == len(answered) + 1
    assert sum(failures(served.server, "short").values()) == 0


@contextmanager
def _over_http(server: Running) -> Iterator[Sequence[Callable[[str], Any]]]:
    def ask(model: str) -> Any:
        with http_client.InferenceServerClient(server.http_url) as client:
            tensor = http_client.InferInput("X", [1, 1], "INT32")
            tensor.set_data_from_numpy(np.array([[5]], np.int32))
            return client.infer(model, [tensor]).as_numpy("Y").item()

    yield [ask] * 200


@contextmanager
def _over_grpc(server: Running) -> Iterator[Sequence[Callable[[str], Any]]]:
    with grpc_client.InferenceServerClient(server.grpc_url) as client:

        def ask(model: str) -> Any:
            tensor = grpc_client.InferInput("X", [1, 1], "INT32")
            tensor.set_data_from_numpy(np.array([[5]], np.int32))
            return client.infer(model, [tensor]).as_numpy("Y").item()

        yield [ask] * 200


def test_a_timeout_of_the_client_ends_the_wait(served: Served, occupy: Occupy) -> None:
    before = failures(served.server, "timed")
    caller, open_gate = occupy("timed")
    caller.call(1, timeout=1000)
    ((number, error),) = caller.wait(1)
    assert (number, error.status()) == (1, "StatusCode.UNAVAILABLE")
    assert error.message() == "Request timeout expired"
    open_gate()
    caller.wait(2)
    after = failures(served.server, "timed")
    assert {reason: after[reason] - before[reason] for reason in after} == {
        "REJECTED": 1,
        "CANCELED": 0,
        "BACKEND": 0,
        "OTHER": 0,
    }
    assert pending(served.server, "timed") == 0


def test_one_that_is_given_up_while_it_waits_does_not_run(served: Served, occupy: Occupy) -> None:
    before = failures(served.server, "timed")
    caller, open_gate = occupy("timed")
    call = caller.call(1)
    until_pending(served.server, "timed", 1)
    call.cancel()
    until_pending(served.server, "timed", 0)
    caller.call(2)
    until_pending(served.server, "timed", 1)
    open_gate()
    answers = dict(caller.wait(3))
    assert answers[2] == answers[-1] + 1  # nothing ran between them
    after = failures(served.server, "timed")
    assert after["CANCELED"] - before["CANCELED"] == 1


def test_answers_leave_in_the_order_of_arrival(served: Served, occupy: Occupy) -> None:
    caller, open_gate = occupy("ordered")
    before = successes(served.server, "ordered")
    for number in range(5):
        caller.call(number)
        until_successful(served.server, "ordered", before + number + 1)  # by the other instance
    assert caller.answers == []
    open_gate()
    assert [number for number, _ in caller.wait(6)] == [-1, 0, 1, 2, 3, 4]


def test_a_client_that_floods_waits_for_its_turns(served: Served, occupy: Occupy) -> None:
    caller, open_gate = occupy("fair")
    for number in range(4):
        caller.call(number, headers={"x-client": "flood"})
        until_pending(served.server, "fair", number + 1)
    caller.call(4, headers={"x-client": "flood"})
    ((refused, error),) = caller.wait(1)
    assert refused == 4
    assert "4 requests of 'header:X-Client' 'flood' wait already" in error.message()
    for count, number in enumerate((10, 11), 5):
        caller.call(number, headers={"x-client": "polite"})
        until_pending(served.server, "fair", count)
    open_gate()
    ranks = {rank: number for number, rank in caller.wait(8)[1:]}
    assert [ranks[rank] for rank in sorted(ranks)] == [-1, 0, 10, 1, 11, 2, 3]


def test_a_strategy_of_a_model_decides_who_runs_together(
    tmp_path: Path, start_server: Callable[..., Running]
) -> None:
    body = 'def execute(self, requests):\n    return [answer(Y=read(r, "X"), '
    body += "RANK=np.array([[len(requests)]], np.int32)) for r in requests]\n"
    delay = "dynamic_batching { max_queue_delay_microseconds: 60000000 }\n"
    folder = write_python_model(tmp_path / "models", "own", CONFIG + delay + ONE, body)
    (folder / "batchstrategy.py").write_text(
        "from microkernel import BatchingStrategy, OpenBatch\n\n\n"
        "class Pairs(BatchingStrategy, OpenBatch):\n"
        "    def open_batch(self):\n        self.count = 0\n        return self\n\n"
        "    def include(self, request):\n        self.count += 1\n"
        "        return self.count <= 2\n\n\n"
        "def batching_strategy(config):\n    return Pairs()\n"
    )
    server = start_server(tmp_path / "models")
    caller = Caller(server, "own")
    for number in range(5):
        caller.call(number)
    assert [size for _, size in caller.wait(4)] == [2, 2, 2, 2]  # in a batch of four, without it
    for number in range(5, 8):
        caller.call(number)
    assert [size for _, size in caller.wait(6)] == [2] * 6
    caller.close()


@pytest.mark.parametrize("longest", ["", "max_queue_delay_microseconds: 2000"])
def test_a_delay_that_finds_itself(
    tmp_path: Path, start_server: Callable[..., Running], longest: str
) -> None:
    """Clients that wait for their answers get them, and share batches."""
    body = "def execute(self, requests):\n    time.sleep(0.005)\n"
    body += '    return [answer(Y=read(r, "X"), RANK=read(r, "X")) for r in requests]\n'
    batcher = f"dynamic_batching {{ {longest} }}\n"
    batcher += 'parameters { key: "ADAPTIVE_QUEUE_DELAY" value { string_value: "true" } }\n'
    write_python_model(tmp_path / "models", "finds", CONFIG + batcher + ONE, body)
    server = start_server(tmp_path / "models")
    client = grpc_client.InferenceServerClient(server.grpc_url)

    def ask(first: int) -> list[int]:
        answers = []
        for number in range(first, first + 20):
            tensor = grpc_client.InferInput("X", [1, 1], "INT32")
            tensor.set_data_from_numpy(np.array([[number]], np.int32))
            answers.append(int(client.infer("finds", [tensor]).as_numpy("Y").item()))
        return answers

    clients = range(0, 400, 100)
    answers = in_threads([partial(ask, first) for first in clients])
    client.close()
    assert answers == [list(range(first, first + 20)) for first in clients]
    assert successes(server, "finds") == 80
    assert metric(server, "nv_inference_exec_count", "finds") < 80
