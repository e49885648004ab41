"""Responses that are kept: who gets one, who does not, and how it is counted."""

import json
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils.shared_memory as shm
from cached_models import BODY, CACHED, CONFIG, counted, run_of, write_counting
from inprocess_models import own_log
from server_harness import Running, launch

from microkernel import Server

SIZE = "--cache-config=local,size=16777216"
ORDERED = "dynamic_batching { preserve_ordering: true }\n"


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    repository = tmp_path_factory.mktemp("cache") / "models"
    write_counting(repository, "counting")
    write_counting(repository, "ordered", CACHED + ORDERED)
    write_counting(repository, "other")
    write_counting(repository, "uncached", CONFIG)
    return start_server(
        repository,
        SIZE,
        "--allow-client-shm=true",
        "--metrics-config=summary_latencies=true",
    )


def lines(server: Running, model: str) -> dict[str, float]:
    """The series of one model by the name of their family."""
    found = server.metrics()
    end = f'{{model="{model}",version="1"}}'
    return {name.removesuffix(end): value for name, value in found.items() if name.endswith(end)}


@pytest.mark.parametrize("model", ["counting", "ordered"])
def test_the_second_of_two_equal_requests_is_a_hit(server: Running, model: str) -> None:
    before = counted(server, model)
    first = run_of(server, model, 1, 2)
    assert [run_of(server, model, 1, 2), run_of(server, model, 1, 2)] == [first, first]
    assert run_of(server, model, 1, 3) == first + 1
    after = counted(server, model)
    assert {name: after[name] - before[name] for name in after} == {
        "success": 4,
        "fail": 0,
        "queue": 4,
        "cache_hit": 2,
        "cache_miss": 2,
        **dict.fromkeys(("compute_input", "compute_infer", "compute_output"), 2),
        "executions": 2,
        "inferences": 2,
    }


def test_a_model_that_does_not_ask_for_it_is_not_cached(server: Running) -> None:
    assert run_of(server, "uncached", 7) + 1 == run_of(server, "uncached", 7)
    assert counted(server, "uncached")["cache_miss"] == 0
    assert not [name for name in lines(server, "uncached") if name.startswith("nv_cache")]


def test_models_do_not_share_responses(server: Running) -> None:
    run_of(server, "counting", 90)
    assert run_of(server, "other", 90) == 1


@pytest.mark.parametrize(
    "parameters", [{"depth": 1}, {"depth": 2}, {"depth": True}, {"depth": "1"}, {"width": 1}]
)
def test_parameters_that_the_model_sees_count(server: Running, parameters: dict[str, Any]) -> None:
    plain = run_of(server, "counting", 11)
    found = run_of(server, "counting", 11, parameters=parameters)
    assert found > plain
    assert run_of(server, "counting", 11, parameters=parameters) == found


def test_what_only_the_scheduler_sees_does_not_count(server: Running) -> None:
    plain = run_of(server, "counting", 12)
    assert run_of(server, "counting", 12, parameters={"timeout": 10**9}) == plain


def test_a_request_of_a_sequence_is_not_cached(server: Running) -> None:
    plain = run_of(server, "counting", 13)
    of_sequence = {"sequence_id": 5}
    found = [run_of(server, "counting", 13, parameters=of_sequence) for _ in range(2)]
    assert found == [plain + 1, plain + 2]


@pytest.fixture
def http_client(server: Running) -> Iterator[Any]:
    with tritonclient.http.InferenceServerClient(server.http_url) as client:
        yield client


def test_shapes_of_equal_bytes_are_other_requests(http_client: Any) -> None:
    values = np.arange(1000, 1004, dtype=np.int32)
    shapes = ((1, 4), (2, 2), (4, 1))
    answers = [_http(http_client, values.reshape(shape)) for shape in shapes]
    assert [found.as_numpy("TWICE").shape for found in answers] == list(shapes)
    again = [_http(http_client, values.reshape(shape)) for shape in shapes]
    for one, other in zip(answers, again, strict=True):
        assert np.array_equal(one.as_numpy("RUN"), other.as_numpy("RUN"))
        assert np.array_equal(one.as_numpy("WORDS"), other.as_numpy("WORDS"))


def _http(client: Any, rows: Any, *outputs: str, classes: int = 0, **options: Any) -> Any:
    tensor = tritonclient.http.InferInput("X", list(rows.shape), "INT32")
    tensor.set_data_from_numpy(rows)
    wanted = [tritonclient.http.InferRequestedOutput(n, class_count=classes) for n in outputs]
    return client.infer("counting", [tensor], outputs=wanted or None, **options)


def test_only_the_outputs_that_are_asked_for(http_client: Any) -> None:
    rows = np.array([[21, 22]], np.int32)
    for outputs in (("TWICE",), ("RUN",), ("TWICE", "RUN"), ("TWICE",), ("RUN",)):
        found = _http(http_client, rows, *outputs)
        assert {output["name"] for output in found.get_response()["outputs"]} == set(outputs)


def test_classes_are_found_in_what_was_kept(server: Running, http_client: Any) -> None:
    rows = np.array([[31, 33, 32]], np.int32)
    plain = _http(http_client, rows, "TWICE").as_numpy("TWICE").tolist()
    hits = counted(server, "counting")["cache_hit"]
    for count, classes in ((1, [b"66:1"]), (2, [b"66:1", b"64:2"])):
        found = _http(http_client, rows, "TWICE", classes=count)
        assert found.as_numpy("TWICE").tolist() == [classes]
    assert _http(http_client, rows, "TWICE").as_numpy("TWICE").tolist() == plain == [[62, 66, 64]]
    assert counted(server, "counting")["cache_hit"] == hits + 3


def test_errors_are_not_kept(server: Running) -> None:
    before = counted(server, "counting")
    for _ in range(3):
        found = server.infer("counting", ("X", "INT32", [[-1]]))
        assert (found.status, found.error) == (500, "below zero")
    after = counted(server, "counting")
    assert after["fail"] - before["fail"] == 3
    assert after["cache_hit"] == before["cache_hit"]
    assert after["cache_miss"] == before["cache_miss"]


def test_large_tensors(http_client: Any) -> None:
    rows = np.arange(2**19, dtype=np.int32).reshape(1, -1)
    first, second = _http(http_client, rows), _http(http_client, rows)
    assert np.array_equal(second.as_numpy("TWICE"), 2 * rows)
    assert first.as_numpy("RUN").tolist() == second.as_numpy("RUN").tolist()
    rows[0, -1] += 1
    assert _http(http_client, rows).as_numpy("RUN").tolist() != first.as_numpy("RUN").tolist()


def test_a_response_that_is_larger_than_the_cache_is_given_all_the_same(http_client: Any) -> None:
    rows = np.zeros((1, 5 << 20), np.int32)
    runs = [_http(http_client, rows).as_numpy("RUN").item() for _ in range(2)]
    assert runs[1] == runs[0] + 1


@pytest.fixture
def grpc_client(server: Running) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


def _input(*values: int) -> Any:
    rows = np.array([values], np.int32)
    tensor = tritonclient.grpc.InferInput("X", list(rows.shape), "INT32")
    tensor.set_data_from_numpy(rows)
    return tensor


def test_grpc(server: Running, grpc_client: Any) -> None:
    run = run_of(server, "counting", 51, 52)
    found = grpc_client.infer("counting", [_input(51, 52)], request_id="mine")
    assert found.as_numpy("RUN").tolist() == [[run]]
    assert found.as_numpy("TWICE").tolist() == [[102, 104]]
    assert found.as_numpy("WORDS").tolist() == [[f"run {run}".encode()] * 2]
    assert found.get_response().id == "mine"
    told = grpc_client.get_inference_statistics("counting").model_stats[0].inference_stats
    http = counted(server, "counting")
    assert (told.cache_hit.count, told.cache_miss.count) == (http["cache_hit"], http["cache_miss"])
    assert told.cache_hit.ns > 0
    assert told.success.ns >= told.cache_hit.ns + told.cache_miss.ns


@pytest.mark.parametrize("model", ["counting", "ordered"])
def test_a_grpc_stream(server: Running, grpc_client: Any, model: str) -> None:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    grpc_client.start_stream(lambda result, error: answers.put((result, error)))
    before = counted(server, model)
    for number, values in enumerate(((61,), (61,), (62,), (61,))):
        grpc_client.async_stream_infer(model, [_input(*values)], request_id=str(number))
        result, error = answers.get(timeout=60)
        assert error is None
        assert result.get_response().id == str(number)
        assert result.as_numpy("TWICE").tolist() == [[2 * values[0]]]
    grpc_client.stop_stream()
    after = counted(server, model)
    assert after["cache_hit"] - before["cache_hit"] == 2
    assert after["cache_miss"] - before["cache_miss"] == 2


def test_tensors_in_shared_memory(server: Running, http_client: Any) -> None:
    """What lies there counts as it was when the request came."""
    region = shm.create_shared_memory_region("cached", "/microkernel_cached", 12)
    before = counted(server, "counting")
    found = []
    try:
        http_client.register_system_shared_memory("cached", "/microkernel_cached", 12)
        for value in (71, 71, 72, 71):
            shm.set_shared_memory_region(region, [np.array([value, 0, 0], np.int32)])
            tensor = tritonclient.http.InferInput("X", [1, 1], "INT32")
            tensor.set_shared_memory("cached", 4)
            outputs = [tritonclient.http.InferRequestedOutput(name) for name in ("TWICE", "RUN")]
            for number, output in enumerate(outputs):
                output.set_shared_memory("cached", 4, 4 + 4 * number)
            http_client.infer("counting", [tensor], outputs=outputs)
            found.append(shm.get_contents_as_numpy(region, np.int32, [3]).tolist())
        after = counted(server, "counting")
    finally:
        http_client.unregister_system_shared_memory("cached")
        shm.destroy_shared_memory_region(region)
    run = found[0][2]
    assert found == [[71, 142, run], [71, 142, run], [72, 144, run + 1], [71, 142, run]]
    assert after["cache_hit"] - before["cache_hit"] == 2
    assert after["cache_miss"] - before["cache_miss"] == 2


def test_the_metrics_page(server: Running) -> None:
    run_of(server, "other", 81)
    run_of(server, "other", 81)
    found, told = lines(server, "other"), counted(server, "other")
    assert found["nv_cache_num_hits_per_model"] == told["cache_hit"] > 0
    assert found["nv_cache_num_misses_per_model"] == told["cache_miss"] > 0
    assert found["nv_inference_request_success"] == told["cache_hit"] + told["cache_miss"]
    assert found["nv_inference_exec_count"] == told["cache_miss"]
    assert {"nv_cache_hit_duration_per_model", "nv_cache_miss_duration_per_model"} <= found.keys()
    assert found["nv_cache_hit_summary_per_model_count"] == told["cache_hit"]
    assert found["nv_cache_miss_summary_per_model_count"] == told["cache_miss"]
    assert "nv_inference_request_summary_us_count" not in found
    assert "nv_inference_request_summary_us_count" in lines(server, "uncached")
    assert found["nv_inference_queue_summary_us_count"] == told["success"]


def test_a_hit_is_traced(tmp_path: Path, start_server: Callable[..., Running]) -> None:
    write_counting(tmp_path / "models", "counting")
    trace = tmp_path / "trace.json"
    flags = ("level=TIMESTAMPS", "rate=1", f"triton,file={trace}")
    server = start_server(tmp_path / "models", SIZE, *(f"--trace-config={f}" for f in flags))
    for _ in range(2):
        run_of(server, "counting", 1)
    assert server.stop() == 0
    records = json.loads(trace.read_text())
    stamps: dict[int, list[str]] = {}
    for record in records:
        names = [stamp["name"] for stamp in record.get("timestamps", ())]
        stamps.setdefault(record["id"], []).extend(n for n in names if not n.startswith("HTTP"))
    miss, hit = stamps.values()
    assert "COMPUTE_START" in miss
    assert hit == ["REQUEST_START", "QUEUE_START", "INFER_RESPONSE_COMPLETE", "REQUEST_END"]


def test_a_model_with_other_files_has_no_old_responses(
    tmp_path: Path, start_server: Callable[..., Running]
) -> None:
    folder = write_counting(tmp_path / "models", "counting")
    server = start_server(
        tmp_path / "models", SIZE, "--model-control-mode=explicit", "--load-model=counting"
    )
    load = "/v2/repository/models/counting/load"
    assert [run_of(server, "counting", 1), run_of(server, "counting", 1)] == [1, 1]
    run_of(server, "counting", 2)
    (folder / "1" / "model.py").touch()
    assert server.post(load).status == 200
    assert run_of(server, "counting", 1) == 1
    assert counted(server, "counting")["cache_hit"] == 1
    (folder / "notes.txt").write_text("which the model may read")
    assert server.post(load).status == 200
    run_of(server, "counting", 2)
    assert counted(server, "counting")["cache_hit"] == 0


def test_a_model_that_asks_for_a_cache_that_is_not_there(
    tmp_path: Path, start_server: Callable[..., Running]
) -> None:
    write_counting(tmp_path / "models", "counting")
    server = start_server(tmp_path / "models")
    line = server.log.wait("responses are not cached")
    assert (line["model"], line["reason"]) == (
        "counting",
        "the server has no cache, see --cache-config",
    )
    assert [run_of(server, "counting", 1), run_of(server, "counting", 1)] == [1, 2]
    assert "nv_cache_num_hits_per_model" not in lines(server, "counting")


def test_the_older_flag(tmp_path: Path, start_server: Callable[..., Running]) -> None:
    write_counting(tmp_path / "models", "counting", body=BODY)
    server = start_server(tmp_path / "models", "--response-cache-byte-size=1048576")
    server.log.wait("--response-cache-byte-size is deprecated")
    assert [run_of(server, "counting", 1), run_of(server, "counting", 1)] == [1, 1]


def test_a_server_in_this_process(tmp_path: Path) -> None:
    write_counting(tmp_path / "models", "counting")
    rows, kept = np.array([[1, 2]], np.int32), {"local": {"size": 4096}}
    made = Server(model_repository=str(tmp_path / "models"), cache_config=kept)
    with own_log(), made.start(wait_until_ready=True) as server:
        model = server.model("counting")
        runs = []
        for number in range(3):
            [response] = model.infer(inputs={"X": rows}, request_id=str(number))
            assert response.request_id == str(number)
            runs.append(np.from_dlpack(response.outputs["RUN"]).tolist())
            assert np.from_dlpack(response.outputs["TWICE"]).tolist() == [[2, 4]]
        [entry] = model.statistics()["model_stats"]
        page = server.metrics()
    assert runs == [[[1]]] * 3
    found = entry["inference_stats"]
    assert (found["cache_hit"]["count"], found["cache_miss"]["count"]) == (2, 1)
    assert 'nv_cache_num_hits_per_model{model="counting",version="1"} 2' in page


def test_a_cache_that_cannot_be_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    running = launch(tmp_path / "models", "--cache-config=local,size=10")
    assert running.wait_exit() == 1
    message = "--cache-config local: 'size' must be at least 1024, got 10"
    assert message in [line.get("event") for line in running.log.lines]
