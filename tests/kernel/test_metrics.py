"""What the page says of models, read as Prometheus reads it."""

import math
import re
from collections.abc import Sequence

import pytest
from prometheus_client.parser import text_string_to_metric_families

from microkernel.config.model import (
    HistogramOptions,
    InstanceGroup,
    MetricControl,
    MetricIdentifier,
    ModelConfig,
    ModelMetrics,
)
from microkernel.distributions import SECONDS
from microkernel.metrics.config import MetricsConfig, new_distributions
from microkernel.metrics.models import BATCH_SIZES, ModelFamilies, Series, labels_of
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


def page(series: Sequence[Series], config: MetricsConfig | None = None) -> str:
    """What the page says of some models."""
    written = ModelFamilies(config or MetricsConfig())
    for one in series:
        written.add(one)
    return "".join(written.texts())


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
    found = samples(page([Series(LABELS, stats)]))
    shown = {name: (value, labels) for name, labels, value in found if name != FAILURES}
    assert shown == {name: (value, LABELS) for name, value in {**COUNTERS, **GAUGES}.items()}


def test_every_reason_of_a_failure(stats: ModelStats) -> None:
    found = samples(page([Series(LABELS, stats)]))
    shown = {labels["reason"]: value for name, labels, value in found if name == FAILURES}
    assert shown == {"BACKEND": 0, "CANCELED": 1, "OTHER": 0, "REJECTED": 0}


def test_families_are_named_and_typed_as_triton_does(stats: ModelStats) -> None:
    text = page([Series(LABELS, stats)])
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
    )
    assert 'nv_inference_count{model="m",version="1"} 9\n' in text
    assert 'nv_inference_count{model="m",version="2"} 0\n' in text
    assert text.count("# TYPE nv_inference_count ") == 1


def test_a_family_without_series_is_not_even_named() -> None:
    assert page([]) == ""


@pytest.fixture
def measured() -> ModelStats:
    """Three requests in two executions, with everything that can be measured of them. All times are
    milliseconds: 1, 20 and 3000 until the answers, 2 and 40 for the executions."""
    config = MetricsConfig(histogram_latencies=True, summary_latencies=True)
    made = ModelStats(distributions=new_distributions(config, ModelConfig()))
    ms = 1_000_000
    fast = Execution(start=0, input_end=ms, output_start=2 * ms, end=2 * ms)
    slow = Execution(start=0, input_end=10 * ms, output_start=35 * ms, end=40 * ms)
    made.succeeded(arrived=-ms, now=0, size=1, times=fast)
    made.succeeded(arrived=-20 * ms, now=0, size=3, times=slow)
    made.succeeded(arrived=-3000 * ms, now=0, size=300, times=slow)
    made.executed(fast, size=1)
    made.executed(slow, size=303)
    for waited in (1, 20, 3000, 6000):
        made.first_response(waited * ms)
    return made


def histogram(text: str, name: str) -> tuple[dict[str, float], float, float]:
    """How many observations are at most each bucket's end; their sum and count."""
    found = [(n, labels, value) for n, labels, value in samples(text) if n.startswith(name)]
    buckets = {labels["le"]: value for n, labels, value in found if n == f"{name}_bucket"}
    rest = {n.removeprefix(f"{name}_"): value for n, _, value in found if n != f"{name}_bucket"}
    return buckets, rest["sum"], rest["count"]


@pytest.mark.parametrize(
    ("name", "steps", "total"),
    [
        ("request_duration_seconds", {0.0005: 0, 0.001: 1, 0.01: 1, 0.025: 2, 5.0: 3}, 3.021),
        ("queue_duration_seconds", {0.0005: 0, 0.001: 1, 0.01: 1, 0.025: 2, 5.0: 3}, 3.021),
        ("compute_duration_seconds", {0.001: 0, 0.0025: 1, 0.025: 1, 0.05: 2, 30.0: 2}, 0.042),
        ("batch_size", {1: 1, 2: 1, 256: 1}, 304),
    ],
)
def test_our_histograms(
    measured: ModelStats, name: str, steps: dict[float, int], total: float
) -> None:
    text = page([Series(LABELS, measured)])
    buckets, found, count = histogram(text, f"microkernel_{name}")
    bounds = BATCH_SIZES if name == "batch_size" else SECONDS
    assert [float(end) for end in buckets] == [*map(float, bounds), math.inf]
    values = {float(end): value for end, value in buckets.items()}
    assert {end: values[end] for end in steps} == steps
    assert found == pytest.approx(total)
    assert values[math.inf] == count == (2 if name[0] in "cb" else 3)


def test_the_time_to_the_first_response(measured: ModelStats) -> None:
    text = page([Series(LABELS, measured)])
    buckets, total, count = histogram(text, "nv_inference_first_response_histogram_ms")
    assert buckets == {"100": 2, "500": 2, "2000": 2, "5000": 3, "+Inf": 4}
    assert (total, count) == (9021, 4)


def test_a_model_chooses_the_buckets_of_its_first_response() -> None:
    family = "nv_inference_first_response_histogram_ms"
    controls = tuple(
        MetricControl(MetricIdentifier(name), HistogramOptions(buckets))
        for name, buckets in ((family, (0.5, 7)), ("nv_other", (1, 2)))
    )
    model = ModelConfig(model_metrics=ModelMetrics(controls))
    config = MetricsConfig(histogram_latencies=True)
    stats = ModelStats(distributions=new_distributions(config, model))
    stats.first_response(7_000_000)
    assert histogram(page([Series(LABELS, stats)]), family)[0] == {"0.5": 0, "7": 1, "+Inf": 1}


@pytest.mark.parametrize("first", [True, False])
def test_a_response_may_be_the_first_of_its_request(first: bool) -> None:
    config = MetricsConfig(histogram_latencies=True)
    stats = ModelStats(distributions=new_distributions(config, ModelConfig()))
    stats.succeeded(
        arrived=1_000_000, now=8_000_000, size=1, times=Execution(0, 0, 0, 0), first=first
    )
    found = histogram(page([Series(LABELS, stats)]), "nv_inference_first_response_histogram_ms")
    assert found[1:] == ((7.0, 1) if first else (0.0, 0))


def test_summaries_in_microseconds(measured: ModelStats) -> None:
    text = page([Series(LABELS, measured)])
    name = "nv_inference_compute_infer_summary_us"
    found = [(n, labels, v) for n, labels, v in samples(text) if n.startswith(name)]
    quantiles = {labels["quantile"]: v for n, labels, v in found if n == name}
    assert quantiles == dict.fromkeys(("0.5", "0.9", "0.95", "0.99", "0.999"), 25000)
    rest = {n: v for n, _, v in found if n != name}
    assert rest == {f"{name}_sum": 51000, f"{name}_count": 3}
    for part in ("request", "queue", "compute_input", "compute_output"):
        assert f"# TYPE nv_inference_{part}_summary_us summary\n" in text


def test_quantiles_of_no_requests_are_not_numbers() -> None:
    config = MetricsConfig(summary_latencies=True)
    stats = ModelStats(distributions=new_distributions(config, ModelConfig()))
    found = dict.fromkeys(re.findall(r'quantile="0.5"} (.*)', page([Series(LABELS, stats)])))
    assert list(found) == ["NaN"]


def test_what_is_off_is_not_named() -> None:
    stats = ModelStats(distributions=new_distributions(MetricsConfig(), ModelConfig()))
    text = page([Series(LABELS, stats)])
    assert "summary" not in text
    assert "first_response" not in text


def test_without_counters_of_times_the_other_counters_stand_still(stats: ModelStats) -> None:
    text = page([Series(LABELS, stats)], MetricsConfig(counter_latencies=False))
    found = {(name, *labels.values()): value for name, labels, value in samples(text)}
    shown = {name[0]: value for name, value in found.items() if name[0] in COUNTERS}
    names = ("request_success", "count", "exec_count")
    assert shown == dict.fromkeys([f"nv_inference_{name}" for name in names], 0)
    assert "_duration_us" not in text
    assert 'nv_inference_request_failure{_team="a' in text
    assert GAUGES.items() <= {name[0]: value for name, value in found.items()}.items()


@pytest.mark.parametrize(
    ("groups", "gpu"),
    [
        ((), None),
        ((InstanceGroup(kind="KIND_CPU", count=2),), None),
        ((InstanceGroup(kind="KIND_GPU", gpus=(1,)),), "GPU-b"),
        (
            (InstanceGroup(kind="KIND_GPU", gpus=(1,)), InstanceGroup("x", "KIND_GPU", gpus=(1,))),
            "GPU-b",
        ),
        ((InstanceGroup(kind="KIND_GPU", gpus=(0, 1)),), None),
        ((InstanceGroup(kind="KIND_GPU", gpus=(0,)), InstanceGroup(kind="KIND_CPU")), None),
        ((InstanceGroup(kind="KIND_GPU", gpus=(2,)),), None),
    ],
)
def test_labels(groups: tuple[InstanceGroup, ...], gpu: str | None) -> None:
    config = ModelConfig(name="m", metric_tags={"team": "red"}, instance_group=groups)
    expected = {"model": "m", "version": "3", "_team": "red"}
    if gpu is not None:
        expected["gpu_uuid"] = gpu
    assert labels_of(config, 3, ["GPU-a", "GPU-b"]) == expected


def test_the_copy_that_statistics_show_lives_by_itself(measured: ModelStats) -> None:
    copied = measured.copy()
    measured.success.add(1)
    measured.failures[Failure.OTHER] += 1
    assert (copied.success.count, copied.failures[Failure.OTHER]) == (3, 0)
    assert copied.distributions is None
    assert measured.distributions is not None


@pytest.mark.parametrize(
    ("tag", "label"),
    [("team", "_team"), ("a-b.c d", "_a_b_c_d"), ("_x", "_x"), ("1", "_1"), ("é", "_"), ("", "_")],
)
def test_a_tag_is_a_label_that_prometheus_can_read(tag: str, label: str) -> None:
    labels = labels_of(ModelConfig(name="m", metric_tags={tag: "v"}), 1, [])
    assert labels == {"model": "m", "version": "1", label: "v"}
    assert samples(page([Series(labels, ModelStats())]))[0][1] == labels
