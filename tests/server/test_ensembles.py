"""Ensembles of real models, asked by the official clients."""

import json
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_harness import PATIENCE, Gate, Running, ask, in_threads, launch, write_python_model

http = pytest.importorskip("tritonclient.http", reason="tritonclient is missing")
grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is missing")

INTEGER = "data_type: TYPE_INT32 dims: [ 1 ]"
ONE_INSTANCE = "instance_group { kind: KIND_CPU count: 1 }\n"
PLAIN = f"""
max_batch_size: 8
input {{ name: "X" {INTEGER} }}
output {{ name: "Y" {INTEGER} }}
{ONE_INSTANCE}"""
BODY = """
def execute(self, requests):
    return [self.one(request) for request in requests]

def one(self, request):
    x = read(request, "X")
    gate = os.path.dirname(os.path.dirname(__file__)) + "/gate"
    if os.path.exists(gate):
        open(gate).read()
    if x[0, 0] == 13:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError("unlucky"))
    return answer(Y={})
"""
MANY = """
def execute(self, requests):
    for request in requests:
        sender, x = request.get_response_sender(), read(request, "X")
        for number in range(x[0]):
            sender.send(answer(Y=np.array([20 + number], np.int32)))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
BATCHES = "max_batch_size: 8\n"


def step(model: str, inputs: str, outputs: str, version: int = -1) -> str:
    maps = [
        f'{kind} {{ key: "{key}" value: "{value}" }}'
        for kind, pairs in (("input_map", inputs), ("output_map", outputs))
        for key, _, value in (pair.partition("=") for pair in pairs.split())
    ]
    return f'step {{ model_name: "{model}" model_version: {version} {" ".join(maps)} }}\n'


def write_ensemble(
    repository: Path, name: str, inputs: str, outputs: str, *steps: str, more: str = BATCHES
) -> Path:
    """An ensemble all of whose tensors are integers; returns its directory."""
    folder = repository / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    tensors = [f'input {{ name: "{n}" {INTEGER} }}' for n in inputs.split()]
    tensors += [f'output {{ name: "{n}" {INTEGER} }}' for n in outputs.split()]
    steps_ = f"ensemble_scheduling {{ {''.join(steps)} }}"
    (folder / "config.pbtxt").write_text(
        "\n".join(['platform: "ensemble"', *tensors, steps_, more])
    )
    return folder


def write_model(repository: Path, name: str, result: str, more: str = "") -> Path:
    """A model that computes `result` of `x`; it waits at a gate that lies in its directory."""
    return write_python_model(repository, name, PLAIN + more, BODY.format(result))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`chain` is 2 * (x + 1); `diamond` is (x + 1) + 2 * x; `deep` is `chain` in an ensemble in an
    ensemble; `fan` counts x numbers from 20 on and
    doubles them."""
    folder = tmp_path_factory.mktemp("ensembles") / "models"
    write_model(folder, "increment", "x + 1")
    write_model(folder, "double", "2 * x")
    add = PLAIN + f'input {{ name: "Z" {INTEGER} }}\n'
    write_python_model(folder, "add", add, BODY.format('x + read(request, "Z")'))
    write_python_model(
        folder,
        "many",
        PLAIN.replace("max_batch_size: 8", "max_batch_size: 0")
        + "model_transaction_policy { decoupled: true }\n",
        MANY,
    )
    chain = step("increment", "X=a", "Y=t"), step("double", "X=t", "Y=y")
    write_ensemble(folder, "chain", "a", "y", *chain)
    branches = step("increment", "X=a", "Y=l"), step("double", "X=a", "Y=r")
    write_ensemble(folder, "diamond", "a", "y", *branches, step("add", "X=l Z=r", "Y=y"))
    write_ensemble(folder, "middle", "a", "y", step("chain", "a=a", "y=y"))
    write_ensemble(folder, "deep", "a", "y", step("middle", "a=a", "y=y"))
    fan = step("many", "X=a", "Y=t"), step("double", "X=t", "Y=y")
    write_ensemble(folder, "fan", "a", "y", *fan, more="max_batch_size: 0\n")
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, start_server: Callable[..., Running]) -> Running:
    return start_server(repository, "--allow-client-shm=true")


def infer(server: Running, model: str, value: int, kinds: Any = http, **more: Any) -> Any:
    """The output of a model for one number, by an official client."""
    url = server.grpc_url if kinds is grpc else server.http_url
    with kinds.InferenceServerClient(url) as client:
        tensor = kinds.InferInput("a", [1, 1], "INT32")
        tensor.set_data_from_numpy(np.array([[value]], np.int32))
        found = client.infer(model, [tensor], **more)
        return found.as_numpy("y").tolist()


@pytest.mark.parametrize("kinds", [http, grpc], ids=["http", "grpc"])
@pytest.mark.parametrize(
    ("model", "value", "expected"), [("chain", 3, 8), ("diamond", 3, 10), ("deep", 3, 8)]
)
def test_answers(server: Running, kinds: Any, model: str, value: int, expected: int) -> None:
    assert infer(server, model, value, kinds) == [[expected]]


def test_both_branches_run_at_the_same_time(server: Running, repository: Path) -> None:
    """Each waits at a gate of its own; both are reached before either is opened."""
    gates = [Gate(repository / name / "gate") for name in ("increment", "double")]
    try:
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        asker = threading.Thread(target=lambda: answers.put(infer(server, "diamond", 3)))
        asker.start()
        reached = [gate.reached() for gate in gates]
        for gate, descriptor in zip(gates, reached, strict=True):
            gate.path.unlink()
            gate.open(descriptor)
        assert answers.get(timeout=PATIENCE) == [[10]]
        asker.join(PATIENCE)
    finally:
        for gate in gates:
            gate.path.unlink(missing_ok=True)


@pytest.mark.parametrize("kinds", [http, grpc], ids=["http", "grpc"])
def test_the_error_of_a_step(server: Running, kinds: Any) -> None:
    with pytest.raises(
        Exception, match="in ensemble 'deep', in ensemble 'middle', in ensemble 'ch"
    ):
        infer(server, "deep", 13, kinds)
    found = server.infer("chain", ("a", "INT32", [[13]]))
    assert found.status == 500
    assert found.error == "in ensemble 'chain', unlucky"


def test_what_the_server_says_of_an_ensemble(server: Running) -> None:
    config = server.get("/v2/models/fan/config").json
    assert config["platform"] == "ensemble"
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert [s["model_name"] for s in config["ensemble_scheduling"]["step"]] == ["many", "double"]
    assert "optimization" not in config
    metadata = server.get("/v2/models/chain").json
    assert metadata["platform"] == "ensemble"
    assert metadata["inputs"] == [{"name": "a", "datatype": "INT32", "shape": [-1, 1]}]
    assert server.index()["deep"] == ("READY", "")
    assert server.get("/v2/models/deep/ready").status == 200
    assert "model_repository(unload_dependents)" in server.get("/v2").json["extensions"]


def counted(server: Running, model: str) -> dict[str, int]:
    (stats,) = server.get(f"/v2/models/{model}/stats").json["model_stats"]
    infer_stats = stats["inference_stats"]
    return {
        "success": infer_stats["success"]["count"],
        "fail": infer_stats["fail"]["count"],
        "executions": stats["execution_count"],
        "inferences": stats["inference_count"],
        "infer_ns": infer_stats["compute_infer"]["ns"],
    }


def test_the_statistics_of_an_ensemble_are_those_of_its_steps(server: Running) -> None:
    names = ("chain", "increment", "double")
    before = {name: counted(server, name) for name in names}
    infer(server, "chain", 1)
    server.infer("chain", ("a", "INT32", [[13]]))
    after = {name: counted(server, name) for name in names}
    grown = {
        name: {key: after[name][key] - before[name][key] for key in after[name]} for name in names
    }
    spent = [grown[name].pop("infer_ns") for name in names]
    assert spent[0] == spent[1] + spent[2] > 0
    assert grown["chain"] == {"success": 1, "fail": 2, "executions": 1, "inferences": 1}
    assert grown["increment"]["fail"] == 1
    assert grown["double"]["success"] == 1
    found = server.metrics()
    series = 'nv_inference_request_failure{model="chain",reason="OTHER",version="1"}'
    assert found[series] >= 2
    assert found['nv_inference_pending_request_count{model="chain",version="1"}'] == 0


def streamed(server: Running, value: int) -> list[Any]:
    """What a stream gives: numbers, None for a mere end, an error."""
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with grpc.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        tensor = grpc.InferInput("a", [1], "INT32")
        tensor.set_data_from_numpy(np.array([value], np.int32))
        client.async_stream_infer("fan", [tensor], enable_empty_final_response=True)
        found: list[Any] = []
        while True:
            result, error = answers.get(timeout=PATIENCE)
            if error is not None:
                return [*found, error]
            response = result.get_response()
            found.append(int(result.as_numpy("y")[0]) if response.outputs else None)
            if response.parameters["triton_final_response"].bool_param:
                client.stop_stream()
                return found


@pytest.mark.parametrize("value", [0, 1, 5, 3000])
def test_every_answer_of_a_decoupled_step_goes_on(server: Running, value: int) -> None:
    found = [number for number in streamed(server, value) if number is not None]
    assert found == [2 * (20 + number) for number in range(value)]


def test_a_decoupled_ensemble_that_answers_once(server: Running) -> None:
    found = server.infer("fan", ("a", "INT32", [1]))
    assert (found.status, found.json["outputs"][0]["data"]) == (200, [40])
    assert server.infer("fan", ("a", "INT32", [2])).status == 501


def test_generate(server: Running) -> None:
    found = server.post("/v2/models/fan/generate_stream", b'{"a": 2}')
    events = [
        json.loads(line[6:]) for line in found.body.splitlines() if line.startswith(b"data: ")
    ]
    assert [event["y"] for event in events] == [40, 42]


def test_many_at_once(server: Running) -> None:
    def many(first: int) -> list[Any]:
        kinds = grpc if first % 2 else http
        return [infer(server, "deep", n, kinds) for n in range(20, 30)]

    found = in_threads([partial(many, number) for number in range(20)])
    assert found == [[[[2 * (n + 1)]] for n in range(20, 30)]] * 20


def test_a_worker_that_dies_in_a_step(server: Running, repository: Path) -> None:
    gate = Gate(repository / "increment" / "gate")
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    asker = threading.Thread(
        target=lambda: answers.put(server.infer("chain", ("a", "INT32", [[1]])))
    )
    asker.start()
    descriptor = gate.reached()
    since = len(server.log.lines)
    server.until(lambda: holders(server, gate.path))  # its own call of `open` may still return
    (worker,) = holders(server, gate.path)
    gate.path.unlink()
    os.kill(worker.pid, signal.SIGKILL)
    found = answers.get(timeout=PATIENCE)
    asker.join(PATIENCE)
    gate.open(descriptor)
    assert found.status == 503
    assert found.error.startswith("in ensemble 'chain', ")
    assert "'increment_0" in found.error
    server.log.wait("worker restarted", since=since)
    assert infer(server, "chain", 1) == [[4]]


def holders(server: Running, path: Path) -> list[Any]:
    """The processes of a server that have the file open."""
    return [process for process in server.processes() if holds(process, path)]


def holds(process: Any, path: Path) -> bool:
    """Whether a process has the file open."""
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if link.readlink() == path:
                return True
    return False


@pytest.fixture
def explicit(tmp_path: Path) -> Iterator[tuple[Running, Path]]:
    """A server on request, with `increment`, `double` and an ensemble `e` of both."""
    repository = tmp_path / "models"
    write_model(repository, "increment", "x + 1")
    write_model(repository, "double", "2 * x")
    chain = step("increment", "X=a", "Y=t"), step("double", "X=t", "Y=y")
    write_ensemble(repository, "e", "a", "y", *chain)
    running = launch(repository, "--model-control-mode=explicit").wait_started()
    yield running, repository
    running.stop()


def load(server: Running, name: str) -> None:
    """Load a model, from any thread."""
    found = ask(server.http, "POST", f"/v2/repository/models/{name}/load", b"{}")
    assert found.status == 200, found.body


def states(server: Running) -> dict[str, str]:
    return {name: state for name, (state, _) in server.index().items()}


def test_loading_and_unloading(explicit: tuple[Running, Path]) -> None:
    server, _ = explicit
    with http.InferenceServerClient(server.http_url) as client:
        client.load_model("e")
        assert states(server) == dict.fromkeys(("double", "e", "increment"), "READY")
        client.unload_model("double")
        with pytest.raises(Exception, match="Request for unknown model: 'e' has no available vers"):
            infer(server, "e", 1)
        client.load_model("double")
        assert infer(server, "e", 1) == [[4]]
        client.unload_model("e", unload_dependents=True)
        assert not client.is_model_ready("increment")
        assert client.is_model_ready("double")  # which was loaded by its own name


def test_why_an_ensemble_cannot_be_loaded(explicit: tuple[Running, Path]) -> None:
    server, repository = explicit
    write_ensemble(repository, "bad", "a", "y", step("missing", "X=a", "Y=y"))
    found = ask(server.http, "POST", "/v2/repository/models/bad/load", b"{}")
    assert found.status == 400
    assert found.error.strip() == (
        "load failed for model 'bad': ensemble bad contains models that are not available or "
        "ambiguous: missing"
    )


def test_no_request_is_lost_when_a_model_is_loaded_anew(explicit: tuple[Running, Path]) -> None:
    server, repository = explicit
    over, seen = threading.Event(), list[list[list[int]]]()
    load(server, "e")

    def asking() -> int:
        asked = 0
        while not over.is_set():
            seen.append(infer(server, "e", 1))
            asked += 1
        return asked

    def reloading() -> None:
        try:
            for number in range(3):
                write_model(repository, "double", f"{3 + number} * x", "#" * number)
                load(server, "double")
        finally:
            over.set()

    results = in_threads([asking, asking, asking, reloading])
    assert [type(result) for result in results] == [int, int, int, type(None)], results
    assert {value for ((value,),) in seen} <= {4, 6, 8, 10}
    assert infer(server, "e", 1) == [[10]]


def test_a_request_in_a_step_finishes_when_its_models_go(explicit: tuple[Running, Path]) -> None:
    server, repository = explicit
    with http.InferenceServerClient(server.http_url) as client:
        client.load_model("e")
        gate = Gate(repository / "increment" / "gate")
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        asker = threading.Thread(target=lambda: answers.put(infer(server, "e", 1)))
        asker.start()
        descriptor = gate.reached()
        for name in ("double", "increment"):
            client.unload_model(name)
        assert not client.is_model_ready("e")
        gate.path.unlink()
        gate.open(descriptor)
        assert answers.get(timeout=PATIENCE) == [[4]]
        asker.join(PATIENCE)
