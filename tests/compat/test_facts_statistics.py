"""What statistics and metrics count, and the metrics page."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from facts_harness import A, B, Fact, X, an_input, request, write_models
from server_harness import Running, ask

LOADED = ("echo", "later", "many", "pair")
DURATIONS = ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output"]
PAGE_TYPE = "text/plain; charset=utf-8"
REFUSED = {**A, "data": [-2, 0, 0, 0]}


@pytest.fixture(scope="module")
def counted(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    """A server of which nobody else asks anything."""
    repository = write_models(tmp_path_factory.mktemp("counted") / "models")
    loads = [f"--load-model={name}" for name in LOADED]
    return start_server(repository, "--model-control-mode=explicit", *loads)


def statistics(server: Running, model: str) -> dict[str, Any]:
    """The statistics of a model's only version."""
    (entry,) = server.get(f"/v2/models/{model}/stats").json["model_stats"]
    return dict(entry)


def counts(entry: dict[str, Any]) -> dict[str, int]:
    """How often each duration was measured, those of no time left out."""
    return {k: d["count"] for k, d in entry["inference_stats"].items() if d["count"]}


def of(model: str, metrics: dict[str, float]) -> dict[str, float]:
    """The counters of a model, by name and, behind a colon, the reason of a failure."""
    found = {}
    for series, value in metrics.items():
        labels = dict(re.findall(r'(\w+)="([^"]*)"', series))
        if labels.get("model") == model and labels["version"] == "1":
            reason = f":{labels['reason']}" if "reason" in labels else ""
            found[series.split("{")[0] + reason] = value
    return found


def test_a_version_begins_at_zero(counted: Running) -> None:
    entry = statistics(counted, "later")
    assert list(entry) == [
        *("name", "version", "last_inference", "inference_count", "execution_count"),
        *("inference_stats", "response_stats", "batch_stats", "memory_usage"),
    ]
    assert (entry["name"], entry["version"]) == ("later", "1")
    assert entry["last_inference"] == entry["inference_count"] == entry["execution_count"] == 0
    assert list(entry["inference_stats"]) == [*DURATIONS, "cache_hit", "cache_miss"]
    assert {json.dumps(d) for d in entry["inference_stats"].values()} == {'{"count": 0, "ns": 0}'}
    assert (entry["response_stats"], entry["batch_stats"]) == ({}, [])


def test_a_batch_of_n_counts_n(counted: Running) -> None:
    two = {**X, "shape": [2, 2], "data": [1, 2, 3, 4]}
    for body in (request(two), request(X), request(two)):
        assert counted.post("/v2/models/echo/infer", body).status == 200
    # What is refused before it waits is not counted.
    assert counted.post("/v2/models/echo/infer", request({**X, "datatype": "INT32"})).status == 400
    entry = statistics(counted, "echo")
    assert (entry["inference_count"], entry["execution_count"]) == (5, 3)
    succeeded = [name for name in DURATIONS if name != "fail"]
    assert counts(entry) == dict.fromkeys(succeeded, 3)
    sizes = {batch["batch_size"]: batch for batch in entry["batch_stats"]}
    assert {size: batch["compute_infer"]["count"] for size, batch in sizes.items()} == {1: 1, 2: 2}
    for batch in sizes.values():
        assert list(batch) == ["batch_size", "compute_input", "compute_infer", "compute_output"]
        assert len({batch[part]["count"] for part in list(batch)[1:]}) == 1
    assert abs(time.time() - entry["last_inference"] / 1000) < 3600
    ns = {name: duration["ns"] for name, duration in entry["inference_stats"].items()}
    assert ns["success"] >= ns["queue"] + ns["compute_infer"] > 0

    found = of("echo", counted.metrics())
    assert found["nv_inference_request_success"] == 3
    assert found["nv_inference_count"] == 5
    assert found["nv_inference_exec_count"] == 3
    assert found["nv_inference_request_duration_us"] == ns["success"] // 1000
    assert found["nv_inference_pending_request_count"] == 0
    assert found["nv_model_load_duration_secs"] > 0


def test_a_model_that_does_not_batch_counts_requests(counted: Running) -> None:
    for first in (A, A, REFUSED):
        counted.post("/v2/models/pair/infer", request(first, B))
    entry = statistics(counted, "pair")
    assert (entry["inference_count"], entry["execution_count"]) == (2, 3)
    assert (counts(entry)["success"], counts(entry)["fail"]) == (2, 1)
    assert [batch["batch_size"] for batch in entry["batch_stats"]] == [1]
    found = of("pair", counted.metrics())
    reasons = {"REJECTED": 0, "CANCELED": 0, "BACKEND": 1, "OTHER": 0}
    name = "nv_inference_request_failure:"
    failures = {k.removeprefix(name): v for k, v in found.items() if k.startswith(name)}
    assert failures == reasons


def test_responses_of_a_decoupled_model_are_counted_by_their_number(counted: Running) -> None:
    for count in (2, 1, -1):
        counted.post("/v2/models/many/generate_stream", b'{"COUNT": %d}' % count)
    entry = statistics(counted, "many")
    found = {
        number: {kind: d["count"] for kind, d in durations.items() if d["count"]}
        for number, durations in entry["response_stats"].items()
    }
    kinds = ("success", "fail", "empty_response")
    assert {number: [one.get(kind, 0) for kind in kinds] for number, one in found.items()} == {
        "0": [2, 1, 0],
        "1": [1, 0, 2],
        "2": [0, 0, 1],
    }
    assert list(entry["response_stats"]["0"]) == [
        *("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")
    ]
    assert (counts(entry)["success"], counts(entry)["fail"]) == (2, 1)


def test_grpc_counts_the_same(counted: Running) -> None:
    client = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
    with client.InferenceServerClient(counted.grpc_url) as calls:
        found = calls.get_inference_statistics(as_json=True)
    entries = {entry["name"]: entry for entry in found["model_stats"]}
    assert sorted(entries) == sorted(LOADED)
    for name, entry in entries.items():
        here = statistics(counted, name)
        assert int(entry.get("inference_count", 0)) == here["inference_count"]
        assert int(entry.get("execution_count", 0)) == here["execution_count"]
        assert entry.get("response_stats", {}).keys() == here["response_stats"].keys()


def test_loading_again_begins_at_zero_and_unloading_ends_the_series(counted: Running) -> None:
    body = request(an_input("X", "FP32", [1], data=[1]))
    assert counted.post("/v2/models/later/infer", body).status == 200
    assert statistics(counted, "later")["inference_count"] == 1
    counted.unload("later")
    assert of("later", counted.metrics()) == {}
    assert counted.get("/v2/models/later/stats").status == 400
    assert counted.post("/v2/repository/models/later/load").status == 200
    assert statistics(counted, "later")["inference_count"] == 0
    assert of("later", counted.metrics())["nv_inference_count"] == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "empty"),
    [
        ("GET", "/metrics", 200, False),
        ("GET", "/metrics/", 200, False),
        ("GET", "/metrics?name=x", 200, False),
        ("GET", "/", 200, True),
        ("GET", "/other", 200, True),
        ("POST", "/metrics", 405, False),
        ("PUT", "/other", 405, False),
    ],
)
def test_the_port_of_metrics(
    counted: Running, method: str, path: str, status: int, empty: bool
) -> None:
    found = ask(counted.ports["Metrics"], method, path)
    assert (found.status, found.body == b"") == (status, empty)
    if status == 200:
        assert found.headers["content-type"] == PAGE_TYPE


def test_metrics_are_on_a_port_of_their_own(counted: Running) -> None:
    Fact("GET", "/metrics", 404, "text/plain", "Not Found").check(counted)


def test_a_family_without_series_is_not_named(counted: Running) -> None:
    text = ask(counted.ports["Metrics"], "GET", "/metrics").body.decode()
    for name in ("nv_cache_num_hits_per_model", "nv_inference_request_summary_us", "histogram_ms"):
        assert name not in text
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    samples = {re.split(r"[{ ]", line)[0] for line in text.splitlines() if line[0] != "#"}
    for name in types:
        assert any(sample.startswith(name) for sample in samples), name
