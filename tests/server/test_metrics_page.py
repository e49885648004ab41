"""The metrics page of a real server, and the Grafana board that shows it."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from server_harness import Running, ask, launch, write_python_model

from microkernel.metrics import gpu

BOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana" / "microkernel.json"

CONFIG = """
max_batch_size: 4
input { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] }
metric_tags { key: "team" value: "red" }
model_metrics {
  metric_control {
    metric_identifier { family: "nv_inference_first_response_histogram_ms" }
    histogram_options { buckets: [ 60000, 600000 ] }
  }
}
"""
EXECUTE = """
def execute(self, requests):
    if read(requests[0], "X")[0][0] < 0:
        raise ValueError("negative")
    return [answer(Y=read(request, "X")) for request in requests]
"""


@pytest.fixture(scope="module")
def server(
    start_server: Callable[..., Running], tmp_path_factory: pytest.TempPathFactory
) -> Running:
    """A server whose model has answered three requests, one of two rows, and failed once."""
    repository = tmp_path_factory.mktemp("metrics") / "models"
    write_python_model(repository, "m", CONFIG, EXECUTE)
    running = start_server(
        repository,
        "--model-control-mode=explicit",
        "--load-model=m",
        "--metrics-config=histogram_latencies=true",
        "--metrics-config=summary_latencies=true",
        "--metrics-config=summary_quantiles=0.5:0.05,0.99:0.001",
        "--metrics-interval-ms=50",
    )
    for rows in ([[1]], [[1]], [[1], [2]]):
        assert running.infer("m", ("X", "INT32", rows)).status == 200
    assert running.infer("m", ("X", "INT32", [[-1]])).status == 500
    return running


def page(server: Running) -> dict[str, Metric]:
    """The families of the page by their names. The parser takes counters for those of OpenMetrics,
    whose names end in `_total`, and gives that to the samples."""
    answer = ask(server.ports["Metrics"], "GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    return {family.name: family for family in text_string_to_metric_families(answer.body.decode())}


def value(families: Mapping[str, Metric], name: str, **labels: str) -> float:
    """The one sample of that name with those labels beside the model's."""
    labels = {"model": "m", "version": "1", "_team": "red", **labels}
    (found,) = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name.removesuffix("_total") == name and sample.labels == labels
    ]
    return found


def test_counters_and_histograms_agree(server: Running) -> None:
    found = page(server)
    assert value(found, "nv_inference_request_success") == 3
    assert value(found, "nv_inference_count") == 4
    assert value(found, "nv_inference_request_failure", reason="BACKEND") == 1
    executions = value(found, "nv_inference_exec_count")
    for name, count in (
        ("microkernel_request_duration_seconds", 3),
        ("microkernel_queue_duration_seconds", 3),
        ("microkernel_compute_duration_seconds", executions),
        ("microkernel_batch_size", executions),
        ("nv_inference_request_summary_us", 3),
        ("nv_inference_first_response_histogram_ms", 4),
    ):
        assert value(found, f"{name}_count") == count, name
    seconds = value(found, "microkernel_request_duration_seconds_sum")
    us = value(found, "nv_inference_request_duration_us")
    assert us <= seconds * 1e6 < us + 1


def test_the_model_chose_its_buckets(server: Running) -> None:
    name = "nv_inference_first_response_histogram_ms"
    samples = page(server)[name].samples
    ends = [sample.labels["le"] for sample in samples if sample.name == f"{name}_bucket"]
    assert ends == ["60000", "600000", "+Inf"]
    assert value(page(server), f"{name}_bucket", le="60000") == 4


def test_summaries_show_the_quantiles_that_were_asked_for(server: Running) -> None:
    found = page(server)
    name = "nv_inference_compute_infer_summary_us"
    shown = [s.labels["quantile"] for s in found[name].samples if "quantile" in s.labels]
    assert shown == ["0.5", "0.99"]
    median, last = (value(found, name, quantile=quantile) for quantile in shown)
    assert 0 < median <= last <= value(found, f"{name}_sum")


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="no Linux")
def test_the_machine(server: Running) -> None:
    found = page(server)
    (utilization,) = found["nv_cpu_utilization"].samples
    assert utilization.labels == {}
    assert 0 <= utilization.value <= 1
    (total,) = found["nv_cpu_memory_total_bytes"].samples
    in_kib = re.findall(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())[0]
    assert total.value == int(in_kib) * 1024
    (pool,) = found["nv_pinned_memory_pool_total_bytes"].samples
    assert pool.value == 0


def expressions() -> Sequence[str]:
    """Every query of the board, with a value in place of Grafana's variables."""
    board = json.loads(BOARD.read_text())
    return [
        target["expr"].replace("$__rate_interval", "5m")
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]


def test_the_board_asks_for_series_that_there_are(server: Running) -> None:
    """With the labels that it selects by; those of a scraper aside."""
    labels: dict[str, set[str]] = {family.name: {"gpu_uuid"} for family in gpu.FAMILIES}
    for family in page(server).values():
        for sample in family.samples:
            name = sample.name.removesuffix("_total")
            labels.setdefault(name, set()).update(sample.labels)
    for expression in expressions():
        selectors = re.findall(r"([a-z_]+)\{(.*?)\}", expression)
        assert selectors, expression
        for name, matchers in selectors:
            assert name in labels, expression
            asked = set(re.findall(r"(\w+)=~", matchers)) - {"instance"}
            assert asked <= labels[name], expression
        grouped = {
            label for by in re.findall(r"by \((.*?)\)", expression) for label in by.split(", ")
        }
        assert grouped <= set().union(*(labels[name] for name, _ in selectors)), expression


def test_the_boards_queries_can_be_parsed() -> None:
    promql: Any = pytest.importorskip("promql_parser", reason="promql-parser is missing")
    for expression in expressions():
        promql.parse(expression)


def test_the_board_has_one_source_and_no_overlaps() -> None:
    board = json.loads(BOARD.read_text())
    (source,) = [v for v in board["templating"]["list"] if v["type"] == "datasource"]
    places: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == f"${{{source['name']}}}"
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & places, panel["title"]
        assert all(x < 24 for x, _ in cells)
        places |= cells
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


def test_the_series_of_a_model_vanish_with_it(server: Running) -> None:
    server.unload("m")
    found = page(server)
    assert not [name for name in found if name.startswith(("nv_inference", "microkernel_"))]
    assert "nv_pinned_memory_pool_total_bytes" in found


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--metrics-config=summary_latency=true", "unknown key 'summary_latency'"),
        ("--metrics-config=summary_quantiles=0.5", "'summary_quantiles' must be pairs"),
        ("--metrics-interval-ms=0", "--metrics-interval-ms must be more than 0"),
    ],
)
def test_a_wrong_flag_stops_the_start(flag: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    running = launch(tmp_path / "models", flag)
    assert running.wait_exit() == 1
    assert words in running.log.text
