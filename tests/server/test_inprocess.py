"""The in-process API with real models and workers: from a thread, from many, from event loops."""

import asyncio
import gc
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from inprocess_models import (
    own_log,
    write_counting,
    write_echo,
    write_gated,
    write_graph,
    write_line,
)
from server_harness import PATIENCE, Gate, in_threads

import microkernel
import microkernel.inprocess as tritonserver
from microkernel.inprocess import Model, Server

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

X = np.array([[1, 2, 3]], np.float32)
LINE = [[3.0, 5.0, 7.0]]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("inprocess") / "models"
    write_echo(repository)
    write_gated(repository)
    write_counting(repository)
    write_graph(repository)
    write_line(repository, "line")
    write_line(repository, "threaded", worker="thread")
    return repository


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    """A server whose models are all loaded."""
    with own_log(), Server(model_repository=repository).start(wait_until_ready=True) as server:
        yield server


def only(model: Model, **members: Any) -> tritonserver.InferenceResponse:
    """The one response to a request."""
    [response] = model.infer(**members)
    assert response.final
    return response


@pytest.mark.parametrize("name", ["line", "threaded", "graph"])
def test_numpy_in_and_out(server: Server, name: str) -> None:
    response = only(server.model(name), inputs={"x": X}, request_id="seven")
    found = response.outputs["y"]
    array = np.from_dlpack(found)
    assert array.tolist() == LINE
    assert array.ctypes.data == found.data_ptr
    assert (response.model.name, response.model.version) == (name, 1)
    assert (response.request_id, response.error) == ("seven", None)


@pytest.mark.parametrize("name", ["line", "threaded", "graph"])
def test_torch_in_and_out(server: Server, name: str) -> None:
    torch = pytest.importorskip("torch", reason="the extra 'torchscript' is missing")
    response = only(server.model(name), inputs={"x": torch.from_numpy(X)})
    found = torch.from_dlpack(response.outputs["y"])
    assert found.tolist() == LINE
    assert found.data_ptr() == response.outputs["y"].data_ptr


def test_outputs_outlive_the_response_and_what_comes_after(server: Server) -> None:
    """A worker's memory is not used again while anything made from an output lives."""
    model = server.model("echo")
    kept = []
    for i in range(8):
        given = np.full((1, 100_000), i, np.float32)
        kept.append(np.from_dlpack(only(model, inputs={"X": given}).outputs["Y"]))
    gc.collect()
    assert [set(array.reshape(-1).tolist()) for array in kept] == [{float(i)} for i in range(8)]


def test_memory_that_was_read_is_used_again(server: Server) -> None:
    model = server.model("echo")
    given = np.ones((1, 100_000), np.float32)
    places = set()
    for _ in range(50):
        places.add(only(model, inputs={"X": given}).outputs["Y"].data_ptr)
    assert len(places) < 20


def test_text_and_parameters(server: Server) -> None:
    told = {"one": 1, "half": 0.5, "yes": True, "word": "für"}
    response = only(server.model("echo"), inputs={"WORDS": [["für", "zwei\0"]]}, parameters=told)
    assert response.outputs["SAID"].to_string_array().tolist() == [["für", "zwei\0"]]
    assert json.loads(response.outputs["TOLD"].to_string_array()[0][0]) == told


def test_a_request_may_be_run_again(server: Server) -> None:
    request = server.models()["line"].create_request(inputs={"x": X})
    for _ in range(2):
        [response] = server.model("line").infer(request)
        assert np.asarray(response.outputs["y"]).tolist() == LINE
    made = tritonserver.InferenceRequest(server.model("line"), inputs={"x": X.tolist()})
    with pytest.raises(tritonserver.InvalidArgumentError, match="FP64"):
        server.model("line").infer(made)


@pytest.mark.parametrize(
    ("members", "error", "words"),
    [
        ({"parameters": {"bad": {}}}, "InvalidArgumentError", "parameter 'bad' must be a str"),
        ({"parameters": {"bad": None}}, "InvalidArgumentError", "got NoneType"),
        ({"parameters": [1]}, "InvalidArgumentError", "parameters must be a mapping"),
        ({"inputs": [X]}, "InvalidArgumentError", "inputs must be a mapping"),
        ({"priority": -1}, "InvalidArgumentError", "priority must be an unsigned"),
        ({"timeout": 1.5}, "InvalidArgumentError", "timeout must be an unsigned"),
        ({"request_id": 7}, "InvalidArgumentError", "request_id must be text"),
        ({"correlation_id": 1.5}, "InvalidArgumentError", "correlation_id must be"),
        ({"output_memory_type": "nowhere"}, "InvalidArgumentError", "'nowhere' names no memory"),
        ({"output_memory_type": "gpu"}, "UnsupportedError", "output_memory_type: memory of kind"),
        ({"inputs": {"x": np.zeros((1, 3), np.int8)}}, "InvalidArgumentError", "INT8"),
        ({"inputs": {}}, "InvalidArgumentError", "expected 1 inputs but got 0"),
        ({"response_queue": []}, "InvalidArgumentError", "must be a queue.SimpleQueue"),
    ],
)
def test_requests_that_are_refused(
    server: Server, members: dict[str, Any], error: str, words: str
) -> None:
    given = {"inputs": {"x": X}} | members
    with pytest.raises(getattr(tritonserver, error), match=words):
        server.model("line").infer(**given)


def test_models_that_are_not_there(server: Server) -> None:
    absent = server.model("absent")
    assert not absent.ready()
    for call in (absent.metadata, absent.config, lambda: absent.infer(inputs={"x": X})):
        with pytest.raises(tritonserver.NotFoundError, match="'absent' is not found"):
            call()
    with pytest.raises(microkernel.NotFound):
        server.model("line", 7).infer(inputs={"x": X})


def test_an_error_of_the_model(server: Server) -> None:
    model = server.model("gated")
    with pytest.raises(tritonserver.TritonError, match="three is too much"):
        list(model.infer(inputs={"X": np.array([3], np.int32)}))
    [response] = model.infer(inputs={"X": np.array([3], np.int32)}, raise_on_error=False)
    assert isinstance(response.error, tritonserver.TritonError)
    assert (dict(response.outputs), response.final) == ({}, True)


def test_a_worker_that_dies(repository: Path, tmp_path: Path) -> None:
    write_gated(tmp_path / "models", "mortal")
    with Server(model_repository=tmp_path / "models") as server:
        model = server.model("mortal")
        with pytest.raises(tritonserver.UnavailableError, match="ended: exit code 3"):
            list(model.infer(inputs={"X": np.array([2], np.int32)}))


def test_from_many_threads_at_once(server: Server) -> None:
    def ask(worker: int) -> bool:
        name = ["line", "threaded"][worker % 2]
        for i in range(30):
            value = np.full((1, 5), 100 * worker + i, np.float32)
            response = only(server.model(name), inputs={"x": value}, request_id=f"{worker}-{i}")
            assert response.request_id == f"{worker}-{i}"
            assert np.array_equal(np.from_dlpack(response.outputs["y"]), 2 * value + 1)
        return True

    calls = [lambda worker=worker: ask(worker) for worker in range(8)]
    assert in_threads(calls) == [True] * 8


async def test_from_an_event_loop(server: Server) -> None:
    async def ask(i: int) -> list[list[float]]:
        given = np.full((1, 2), i, np.float32)
        found = []
        async for response in server.model("line").async_infer(inputs={"x": given}):
            found += np.from_dlpack(response.outputs["y"]).tolist()
        return found

    answers = await asyncio.gather(*map(ask, range(40)))
    assert answers == [[[2 * i + 1] * 2] for i in range(40)]


async def test_what_is_refused_raises_at_the_first_step(server: Server) -> None:
    iterator = server.model("absent").async_infer(inputs={"x": X})
    with pytest.raises(tritonserver.NotFoundError):
        await anext(iterator)
    with pytest.raises(StopAsyncIteration):
        await anext(iterator)


def test_one_server_for_several_event_loops(server: Server) -> None:
    async def ask() -> Any:
        responses = [r async for r in server.model("threaded").async_infer(inputs={"x": X})]
        return np.from_dlpack(responses[0].outputs["y"]).tolist()

    assert in_threads([lambda: asyncio.run(ask())] * 3) == [LINE] * 3


def test_a_queue_gets_the_responses_too(server: Server) -> None:
    queue: SimpleQueue[tritonserver.InferenceResponse] = SimpleQueue()
    model = server.model("line")
    iterators = [model.infer(inputs={"x": X}, response_queue=queue) for _ in range(2)]
    model.infer(inputs={"x": X}, response_queue=queue)  # whose iterator is dropped
    for _ in range(3):
        response = queue.get(timeout=PATIENCE)
        assert np.from_dlpack(response.outputs["y"]).tolist() == LINE
    for iterator in iterators:
        assert [np.asarray(r.outputs["y"]).tolist() for r in iterator] == [LINE]
    assert queue.empty()


@pytest.mark.parametrize("size", [0, 1])
async def test_a_queue_of_the_event_loop(server: Server, size: int) -> None:
    queue: asyncio.Queue[tritonserver.InferenceResponse] = asyncio.Queue(size)
    numbers = {"N": np.array([20], np.int32)}
    server.model("counting").async_infer(inputs=numbers, response_queue=queue)
    found: list[int] = []
    while not (response := await queue.get()).final:
        found += np.asarray(response.outputs["I"]).tolist()
    assert found == list(range(20))
    server.model("absent").async_infer(inputs=numbers, response_queue=queue)
    assert isinstance((await queue.get()).error, tritonserver.NotFoundError)


@pytest.mark.parametrize("count", [0, 1, 50])
def test_a_decoupled_model_answers_many_times(server: Server, count: int) -> None:
    model = server.model("counting")
    assert model.transaction_properties() is tritonserver.ModelTxnPropertyFlag.DECOUPLED
    *responses, last = model.infer(inputs={"N": np.array([count], np.int32)})
    assert [np.asarray(r.outputs["I"]).tolist() for r in responses] == [[i] for i in range(count)]
    assert not any(response.final for response in responses)
    assert (last.final, dict(last.outputs)) == (True, {})


def test_the_statistics_of_many_responses(server: Server) -> None:
    model = server.model("counting")
    list(model.infer(inputs={"N": np.array([2], np.int32)}))
    [found] = model.statistics()["model_stats"]
    assert {"0", "1", "2"} <= found["response_stats"].keys()
    assert found["response_stats"]["0"]["success"]["count"] > 0


def test_leaving_a_stream_abandons_the_request(server: Server) -> None:
    """A million responses would take minutes; the model is told that nobody reads them."""
    model = server.model("counting")
    for response in model.infer(inputs={"N": np.array([1_000_000], np.int32)}):
        assert np.asarray(response.outputs["I"]).tolist() == [0]
        break
    iterator = model.infer(inputs={"N": np.array([1_000_000], np.int32)})
    next(iterator)
    iterator.cancel()
    assert len(list(iterator)) < 100
    assert len(list(model.infer(inputs={"N": np.array([3], np.int32)}))) == 4


async def test_cancelling_a_task_abandons_the_request(server: Server) -> None:
    read = asyncio.Event()

    async def ask() -> None:
        numbers = {"N": np.array([1_000_000], np.int32)}
        async for _ in server.model("counting").async_infer(inputs=numbers):
            read.set()

    task = asyncio.create_task(ask())
    await read.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gc.collect()
    numbers = {"N": np.array([3], np.int32)}
    assert len([r async for r in server.model("counting").async_infer(inputs=numbers)]) == 4


def test_cancelling_a_request_that_waits(server: Server, repository: Path) -> None:
    gate = Gate(repository / "gated" / "gate")
    model = server.model("gated")
    running = model.infer(inputs={"X": np.array([1], np.int32)})
    descriptor = gate.reached()
    waiting = model.infer(inputs={"X": np.array([7], np.int32)})
    waiting.cancel()
    assert list(waiting) == []
    gate.open(descriptor)
    assert len(list(running)) == 1
    gate.path.unlink()


def test_what_the_server_tells(server: Server) -> None:
    assert server.live()
    assert server.ready()
    assert server.metadata()["name"] == "triton"
    assert "statistics" in server.metadata()["extensions"]
    models = server.models()
    assert {name for name, _ in models} == {
        *("counting", "echo", "gated", "graph", "line", "threaded"),
    }
    assert models["line", 1].state == "READY"
    assert models["line"].version == -1
    assert models.get("line") is not None
    assert models.get("absent") is None
    assert "line" in models
    assert "absent" not in models
    with pytest.raises(KeyError):
        models["absent"]
    only(server.model("line"), inputs={"x": X})
    assert 'nv_inference_request_success{model="line",version="1"}' in server.metrics()


def test_a_program_declares_metrics(server: Server) -> None:
    kinds = tritonserver.MetricKind
    family = tritonserver.MetricFamily(kinds.GAUGE, "queue_length", "What waits.")
    metric = tritonserver.Metric(family, {"queue": "für"})
    metric.increment(3)
    metric.set_value(2.5)
    assert metric.value() == 2.5
    assert 'queue_length{queue="für"} 2.5' in server.metrics()
    with pytest.raises(tritonserver.InvalidArgumentError, match="'queue_length' is a gauge"):
        metric.observe(1)
    with pytest.raises(tritonserver.InvalidArgumentError, match="is a gauge, it cannot be a"):
        tritonserver.MetricFamily(kinds.COUNTER, "queue_length", "The same.")
    sizes = tritonserver.MetricFamily(kinds.HISTOGRAM, "sizes", "How much at once.")
    tritonserver.Metric(sizes, buckets=[1, 10]).observe(7)
    assert 'sizes_bucket{le="10"} 1' in server.metrics()
    del metric, family
    gc.collect()
    assert "queue_length" not in server.metrics()


def test_what_a_model_tells(server: Server) -> None:
    model = server.model("line")
    assert model.ready()
    assert model.metadata() == {
        "name": "line",
        "versions": ["1"],
        "platform": "pytorch_libtorch",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, -1]}],
    }
    assert model.config()["max_batch_size"] == 8
    assert model.batch_properties() is tritonserver.ModelBatchFlag.FIRST_DIM
    assert model.transaction_properties() is tritonserver.ModelTxnPropertyFlag.ONE_TO_ONE
    assert server.model("gated").batch_properties() is tritonserver.ModelBatchFlag.UNKNOWN
    before = model.statistics()["model_stats"][0]["inference_stats"]["success"]["count"]
    only(model, inputs={"x": X})
    [found] = model.statistics()["model_stats"]
    assert (found["name"], found["version"]) == ("line", "1")
    assert found["inference_stats"]["success"]["count"] == before + 1
    with pytest.raises(tritonserver.InvalidArgumentError, match="no version 2"):
        model.config(2)


def test_what_is_not_offered(server: Server, tmp_path: Path) -> None:
    for call in (server.register_model_repository, server.unregister_model_repository):
        with pytest.raises(tritonserver.UnsupportedError, match="control mode is not EXPLICIT"):
            call(tmp_path)
    with pytest.raises(tritonserver.UnavailableError, match="polling is disabled"):
        server.poll_model_repository()
    with pytest.raises(tritonserver.UnavailableError, match="explicit model load"):
        server.load("line")
    version: Any = "1"
    with pytest.raises(TypeError, match="version of model 'line' must be an int, got '1'"):
        server.model("line", version)


def test_the_server_goes_on_beside_threads_that_end(server: Server) -> None:
    """A worker's process must not end with the thread that asked for it."""
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.append(only(server.model("line"), inputs={"x": X}))
    )
    thread.start()
    thread.join()
    assert np.asarray(found[0].outputs["y"]).tolist() == LINE
