"""The metrics page, read as Prometheus reads it."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from microkernel.metrics import Series, page
from microkernel.stats import Execution, Failure, ModelStats

COUNTERS = {
    "nv_inference_request_success": 2,
    "nv_inference_count": 9,
    "nv_inference_exec_count": 1,
    "nv_inference_request_duration_us": 7,
    "nv_inference_queue_duration_us": 2,
    "nv_inference_compute_input_duration_us": 2,
    "nv_inference_compute_infer_duration_us": 4,
    "nv_inference_compute_output_duration_us": 0,
}
GAUGES = {"nv_inference_pending_request_count": 3, "nv_model_load_duration_secs": 0.25}
FAILURES = "nv_inference_request_failure"


def samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    """Name, labels and value of every sample. The parser adds to counters the suffix that Triton
    leaves out."""
    return [
        (sample.name.removesuffix("_total"), sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


@pytest.fixture
def stats() -> ModelStats:
    """Two requests, of 8 and 1, in one execution; and a failure."""
    made = ModelStats(pending=3, load_seconds=0.25)
    times = Execution(start=1_000, input_end=2_000, output_start=4_000, end=4_100)
    made.succeeded(arrived=0, now=4_000, size=8, times=times)
    made.succeeded(arrived=0, now=3_999, size=1, times=times)
    made.executed(times, size=9)
    made.failed(arrived=0, now=5, reason=Failure.CANCELED)
    return made


LABELS = {"model": "m", "version": "1", "_team": 'a "b"\\\n'}


def test_every_counter_of_a_model(stats: ModelStats) -> None:
    found = samples(page([Series(LABELS, stats)]).decode())
    shown = {name: (value, labels) for name, labels, value in found if name != FAILURES}
    assert shown == {name: (value, LABELS) for name, value in {**COUNTERS, **GAUGES}.items()}


def test_every_reason_of_a_failure(stats: ModelStats) -> None:
    found = samples(page([Series(LABELS, stats)]).decode())
    shown = {labels["reason"]: value for name, labels, value in found if name == FAILURES}
    assert shown == {"BACKEND": 0, "CANCELED": 1, "OTHER": 0, "REJECTED": 0}


def test_families_are_named_and_typed_as_triton_does(stats: ModelStats) -> None:
    text = page([Series(LABELS, stats)]).decode()
    assert "_total" not in text
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert types == {
        **dict.fromkeys([*COUNTERS, FAILURES], "counter"),
        **dict.fromkeys(GAUGES, "gauge"),
    }
    assert set(re.findall(r"^# HELP (\S+) .", text, re.MULTILINE)) == set(types)


def test_each_version_has_its_own_series(stats: ModelStats) -> None:
    other = ModelStats()
    text = page(
        [
            Series({"model": "m", "version": "1"}, stats),
            Series({"model": "m", "version": "2"}, other),
        ]
    ).decode()
    assert 'nv_inference_count{model="m",version="1"} 9.0' in text
    assert 'nv_inference_count{model="m",version="2"} 0.0' in text
    assert text.count("# TYPE nv_inference_count ") == 1


def test_a_server_without_models_has_an_empty_page() -> None:
    assert page([]) == b""


def test_counters_are_read_when_the_page_is_asked_for(stats: ModelStats) -> None:
    series = Series({"model": "m", "version": "1"}, stats)
    stats.pending = 42
    assert b"nv_inference_pending_request_count{" in page([series])
    assert b"} 42.0" in page([series])
