"""The metrics page: Triton's families of counters and gauges, in Prometheus' text format."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from microkernel.stats import Duration, Failure, ModelStats


@dataclass(frozen=True, slots=True)
class Series:
    """The counters of one model version and the labels they are shown under."""

    labels: Mapping[str, str]
    stats: ModelStats


def _duration(pick: Callable[[ModelStats], Duration]) -> Callable[[ModelStats], float]:
    return lambda stats: pick(stats).ns // 1000


_FAMILIES: tuple[tuple[str, str, str, Callable[[ModelStats], float]], ...] = (
    (
        "nv_inference_request_success",
        "counter",
        "Number of successful inference requests, all batch sizes",
        lambda stats: stats.success.count,
    ),
    (
        "nv_inference_count",
        "counter",
        "Number of inferences performed (a batch of n counts n)",
        lambda stats: stats.inference_count,
    ),
    (
        "nv_inference_exec_count",
        "counter",
        "Number of model executions performed",
        lambda stats: stats.execution_count,
    ),
    (
        "nv_inference_request_duration_us",
        "counter",
        "Cumulative inference request duration in microseconds",
        _duration(lambda stats: stats.success),
    ),
    (
        "nv_inference_queue_duration_us",
        "counter",
        "Cumulative inference queuing duration in microseconds",
        _duration(lambda stats: stats.queue),
    ),
    (
        "nv_inference_compute_input_duration_us",
        "counter",
        "Cumulative compute input duration in microseconds",
        _duration(lambda stats: stats.compute.compute_input),
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Cumulative compute inference duration in microseconds",
        _duration(lambda stats: stats.compute.compute_infer),
    ),
    (
        "nv_inference_compute_output_duration_us",
        "counter",
        "Cumulative inference compute output duration in microseconds",
        _duration(lambda stats: stats.compute.compute_output),
    ),
    (
        "nv_inference_pending_request_count",
        "gauge",
        "Instantaneous number of pending requests awaiting execution per-model.",
        lambda stats: stats.pending,
    ),
    (
        "nv_model_load_duration_secs",
        "gauge",
        "Model load time in seconds",
        lambda stats: stats.load_seconds,
    ),
)


class _Models(Collector):
    """Reads the counters of every model when the page is asked for; nothing is kept twice."""

    def __init__(self, series: Iterable[Series]) -> None:
        self._series = list(series)

    def collect(self) -> Iterator[Metric]:
        if not self._series:
            return  # a family without a series is not shown at all
        for name, kind, about, read in _FAMILIES:
            metric = Metric(name, about, kind)
            for series in self._series:
                metric.add_sample(name, dict(series.labels), read(series.stats))
            yield metric
        yield self._failures()

    def _failures(self) -> Metric:
        name = "nv_inference_request_failure"
        metric = Metric(name, "Number of failed inference requests, all batch sizes", "counter")
        for series in self._series:
            for reason in Failure:
                labels = {**series.labels, "reason": reason.value}
                metric.add_sample(name, labels, series.stats.failures[reason])
        return metric


def page(series: Iterable[Series]) -> bytes:
    """The page. Triton's counters lack the `_total` that the library gives to the family's name."""
    text = generate_latest(_Models(series))
    return re.sub(rb"(?m)^# (HELP|TYPE) (nv_\S+)_total ", rb"# \1 \2 ", text)
