"""The families of models: Triton's counters, gauges and summaries, and our histograms."""

import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from microkernel.config.model import ModelConfig
from microkernel.distributions import SECONDS, Distributions, Summaries
from microkernel.metrics.config import FIRST_RESPONSE, MetricsConfig
from microkernel.metrics.text import (
    Family,
    ends,
    histogram_lines,
    labels_text,
    line,
    summary_lines,
)
from microkernel.quantiles import Window
from microkernel.stats import Compute, Duration, Failure, ModelStats

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""The buckets of our histogram of batch sizes."""


@dataclass(frozen=True, slots=True)
class Series:
    """The counters of one model version and the labels they are shown under."""

    labels: Mapping[str, str]
    stats: ModelStats


def labels_of(config: ModelConfig, version: int, gpus: Sequence[str]) -> dict[str, str]:
    """The labels of a model version: its name, its version, its `metric_tags`, and the GPU where
    all of its instances are on one. `gpus` are the identifiers of GPUs by their numbers."""
    labels = {_tag_label(tag): value for tag, value in config.metric_tags.items()}
    labels |= {"model": config.name, "version": str(version)}
    used = {
        gpu if group.kind == "KIND_GPU" else -1
        for group in config.instance_group
        for gpu in group.gpus or (-1,)
    }
    if len(used) == 1 and 0 <= (gpu := used.pop()) < len(gpus):
        labels["gpu_uuid"] = gpus[gpu]
    return labels


def _tag_label(tag: str) -> str:
    """A name that cannot be a label would make the whole page unreadable to Prometheus."""
    return "_" + re.sub(r"[^a-zA-Z0-9_]", "_", tag).lstrip("_")


_Read = Callable[[ModelStats], float]


def _us(pick: Callable[[ModelStats], Duration]) -> _Read:
    return lambda stats: pick(stats).ns // 1000


def _counter(name: str, about: str) -> Family:
    return Family(name, "counter", about)


_COUNTS: Sequence[tuple[Family, _Read]] = (
    (
        _counter(
            "nv_inference_request_success",
            "Number of successful inference requests, all batch sizes",
        ),
        lambda stats: stats.success.count,
    ),
    (
        _counter("nv_inference_count", "Number of inferences performed (a batch of n counts n)"),
        lambda stats: stats.inference_count,
    ),
    (
        _counter("nv_inference_exec_count", "Number of model executions performed"),
        lambda stats: stats.execution_count,
    ),
)
_FAILURES = _counter(
    "nv_inference_request_failure", "Number of failed inference requests, all batch sizes"
)
_TIMES: Sequence[tuple[Family, _Read]] = (
    (
        _counter(
            "nv_inference_request_duration_us",
            "Cumulative inference request duration in microseconds",
        ),
        _us(lambda stats: stats.success),
    ),
    (
        _counter(
            "nv_inference_queue_duration_us",
            "Cumulative inference queuing duration in microseconds",
        ),
        _us(lambda stats: stats.queue),
    ),
    (
        _counter(
            "nv_inference_compute_input_duration_us",
            "Cumulative compute input duration in microseconds",
        ),
        _us(lambda stats: stats.compute.compute_input),
    ),
    (
        _counter(
            "nv_inference_compute_infer_duration_us",
            "Cumulative compute inference duration in microseconds",
        ),
        _us(lambda stats: stats.compute.compute_infer),
    ),
    (
        _counter(
            "nv_inference_compute_output_duration_us",
            "Cumulative inference compute output duration in microseconds",
        ),
        _us(lambda stats: stats.compute.compute_output),
    ),
)
_CACHE_COUNTS: Sequence[tuple[Family, _Read]] = (
    (
        _counter("nv_cache_num_hits_per_model", "Number of cache hits per model"),
        lambda stats: stats.cache_hit.count,
    ),
    (
        _counter("nv_cache_num_misses_per_model", "Number of cache misses per model"),
        lambda stats: stats.cache_miss.count,
    ),
)
_CACHE_TIMES: Sequence[tuple[Family, _Read]] = (
    (
        _counter(
            "nv_cache_hit_duration_per_model",
            "Total cache hit duration per model, in microseconds",
        ),
        _us(lambda stats: stats.cache_hit),
    ),
    (
        _counter(
            "nv_cache_miss_duration_per_model",
            "Total cache miss duration per model, in microseconds",
        ),
        _us(lambda stats: stats.cache_miss),
    ),
)
_GAUGES: Sequence[tuple[Family, _Read]] = (
    (
        Family(
            "nv_inference_pending_request_count",
            "gauge",
            "Instantaneous number of pending requests awaiting execution per-model.",
        ),
        lambda stats: stats.pending,
    ),
    (
        Family("nv_model_load_duration_secs", "gauge", "Model load time in seconds"),
        lambda stats: stats.load_seconds,
    ),
)
_FIRST = Family(
    FIRST_RESPONSE, "histogram", "Duration from request to first response in milliseconds"
)


def _summary(part: str, about: str) -> Family:
    return Family(
        f"nv_inference_{part}_summary_us", "summary", f"Summary of {about} in microseconds"
    )


_SUMMARIES = (
    _summary("request", "inference request duration"),
    _summary("queue", "inference queuing duration"),
    _summary("compute_input", "compute input duration"),
    _summary("compute_infer", "compute inference duration"),
    _summary("compute_output", "inference compute output duration"),
)
_CACHE_SUMMARIES = (
    Family(
        "nv_cache_hit_summary_per_model", "summary", "Summary of cache hit duration in microseconds"
    ),
    Family(
        "nv_cache_miss_summary_per_model",
        "summary",
        "Summary of cache miss duration in microseconds",
    ),
)
_REQUEST = Family(
    "microkernel_request_duration_seconds",
    "histogram",
    "Time of a successful request, from its acceptance to its answer",
)
_QUEUE = Family(
    "microkernel_queue_duration_seconds",
    "histogram",
    "Time a successful request waited before its batch was executed",
)
_COMPUTE = Family(
    "microkernel_compute_duration_seconds",
    "histogram",
    "Time of an execution, with the copying of its inputs and outputs",
)
_BATCHES = Family("microkernel_batch_size", "histogram", "Size of an executed batch")

FAMILIES: Sequence[Family] = (
    *(family for family, _ in _COUNTS),
    _FAILURES,
    *(family for family, _ in _TIMES),
    *(family for family, _ in (*_CACHE_COUNTS, *_CACHE_TIMES)),
    *(family for family, _ in _GAUGES),
    _FIRST,
    *_SUMMARIES,
    *_CACHE_SUMMARIES,
    _REQUEST,
    _QUEUE,
    _COMPUTE,
    _BATCHES,
)
"""Every family of models, in the order of the page."""

_WITH_CACHE = (*_COUNTS, *_CACHE_COUNTS), (*_TIMES, *_CACHE_TIMES)
"""The counts and the times of a model whose responses may come from the cache."""

_SECONDS = ends(SECONDS)
_SIZES = ends(BATCH_SIZES)


class ModelFamilies:
    """The part of the page that is about models, written one model at a time."""

    def __init__(self, config: MetricsConfig) -> None:
        self._config = config
        self._lines: dict[Family, list[str]] = {family: [] for family in FAMILIES}

    def add(self, series: Series) -> None:
        """Write all series of one model version, so that they fit together."""
        labels, stats = labels_text(series.labels), series.stats
        moving = self._config.counter_latencies
        counts, times = (_COUNTS, _TIMES) if not stats.cached else _WITH_CACHE
        for family, read in counts:
            # In Triton these stand still too when the counters of times are switched off.
            self._line(family, labels, read(stats) if moving else 0)
        for family, read in (*(times if moving else ()), *_GAUGES):
            self._line(family, labels, read(stats))
        for reason in Failure:
            text = labels_text({**series.labels, "reason": reason.value})
            self._line(_FAILURES, text, stats.failures[reason])
        if stats.distributions is not None:
            self._add_distributions(labels, stats, stats.distributions)

    def _line(self, family: Family, labels: str, value: float) -> None:
        self._lines[family].append(line(family.name, labels, value))

    def _histogram(
        self, family: Family, labels: str, ends: Sequence[str], counts: Sequence[int], total: float
    ) -> None:
        self._lines[family].append(histogram_lines(family.name, labels, ends, counts, total))

    def _add_distributions(self, labels: str, stats: ModelStats, found: Distributions) -> None:
        self._histogram(_REQUEST, labels, _SECONDS, found.request, stats.success.ns / 1e9)
        self._histogram(_QUEUE, labels, _SECONDS, found.queue, stats.queue.ns / 1e9)
        ns = sum(_whole(compute) for compute in stats.batches.values())
        self._histogram(_COMPUTE, labels, _SECONDS, found.compute, ns / 1e9)
        self._histogram(_BATCHES, labels, _SIZES, *_sizes(stats.batches))
        if (first := found.first_response) is not None:
            self._histogram(_FIRST, labels, ends(first.bounds), first.counts, first.total)
        if (sums := found.summaries) is not None:
            now = time.monotonic_ns()
            for family, window in _windows(sums, cached=stats.cached):
                self._summary(family, labels, window, now)

    def _summary(self, family: Family, labels: str, window: Window, now: int) -> None:
        values = zip((t.quantile for t in window.targets), window.quantiles(now), strict=True)
        text = summary_lines(family.name, labels, dict(values), window.count, window.total)
        self._lines[family].append(text)

    def texts(self) -> Iterator[str]:
        """What was written, family by family."""
        return (family.text(lines) for family, lines in self._lines.items())


def _windows(sums: Summaries, *, cached: bool) -> Iterator[tuple[Family, Window]]:
    """The summaries of a model. Triton has none of whole requests where they may be hits."""
    parts = (
        *(sums.request, sums.queue),
        *(sums.compute_input, sums.compute_infer, sums.compute_output),
    )
    whole, *others = zip(_SUMMARIES, parts, strict=True)
    if not cached:
        yield whole
    yield from others
    if cached:
        yield from zip(_CACHE_SUMMARIES, (sums.cache_hit, sums.cache_miss), strict=True)


def _whole(compute: Compute) -> int:
    return compute.compute_input.ns + compute.compute_infer.ns + compute.compute_output.ns


def _sizes(batches: Mapping[int, Compute]) -> tuple[Sequence[int], int]:
    """How many executions fall into each bucket of `BATCH_SIZES`, and the sum of their sizes."""
    counts, total = [0] * len(_SIZES), 0
    for size, compute in batches.items():
        executions = compute.compute_infer.count
        counts[bisect_left(BATCH_SIZES, size)] += executions
        total += size * executions
    return counts, total
