"""What is measured: `--metrics-config`, and the configuration of a model."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from microkernel.config.model import ModelConfig
from microkernel.distributions import Distributions, Summaries
from microkernel.errors import InvalidArgument
from microkernel.quantiles import Target

FIRST_RESPONSE = "nv_inference_first_response_histogram_ms"
"""The one family whose buckets a model may choose."""

_FIRST_RESPONSE_MS = (100.0, 500.0, 2000.0, 5000.0)
_FLAG = "--metrics-config"


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """Which families of times Triton's page has: counters, histograms, summaries."""

    counter_latencies: bool = True
    histogram_latencies: bool = False
    summary_latencies: bool = False
    summary_quantiles: Sequence[Target] = (
        Target(0.5, 0.05),
        Target(0.9, 0.01),
        Target(0.95, 0.001),
        Target(0.99, 0.001),
        Target(0.999, 0.001),
    )


def parse_metrics_config(settings: Sequence[str]) -> MetricsConfig:
    """The values of `--metrics-config`, each `key=value`; the last one of a key counts. Raises
    InvalidArgument naming the key and what would be right."""
    config = MetricsConfig()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InvalidArgument(f"{_FLAG}: '{setting}' must have the form key=value")
        read = _KEYS.get(key)
        if read is None:
            raise InvalidArgument(
                f"{_FLAG}: unknown key '{key}'; it knows {', '.join(sorted(_KEYS))}"
            )
        changes: dict[str, Any] = {key: read(key, value)}
        config = replace(config, **changes)
    return config


def _switch(key: str, value: str) -> bool:
    words = {"true": True, "false": False}
    if value.lower() not in words:
        raise InvalidArgument(f"{_FLAG}: '{key}' must be true or false, got '{value}'")
    return words[value.lower()]


def _targets(key: str, value: str) -> Sequence[Target]:
    return tuple(_target(key, pair) for pair in value.split(","))


def _target(key: str, pair: str) -> Target:
    quantile, _, error = pair.partition(":")
    try:
        target = Target(float(quantile), float(error))
    except ValueError:
        target = Target(math.nan, math.nan)
    if not (0 < target.quantile < 1 and 0 < target.error < 1):
        raise InvalidArgument(
            f"{_FLAG}: '{key}' must be pairs quantile:error apart by commas, both between 0 and 1 "
            f"like 0.9:0.01, got '{pair}'"
        )
    return target


_KEYS: Mapping[str, Callable[[str, str], Any]] = {
    "counter_latencies": _switch,
    "histogram_latencies": _switch,
    "summary_latencies": _switch,
    "summary_quantiles": _targets,
}


def new_distributions(metrics: MetricsConfig, model: ModelConfig) -> Distributions:
    """Empty histograms and summaries for one version of a model."""
    return Distributions(
        _first_response_ms(model) if metrics.histogram_latencies else None,
        Summaries.of(metrics.summary_quantiles, time.monotonic_ns())
        if metrics.summary_latencies
        else None,
    )


def _first_response_ms(model: ModelConfig) -> Sequence[float]:
    buckets: Sequence[float] = _FIRST_RESPONSE_MS
    for family, chosen in _controls(model):
        if family == FIRST_RESPONSE:
            buckets = chosen
    return buckets


def not_customizable(model: ModelConfig) -> list[str]:
    """The families that a model's `model_metrics` names without effect."""
    return [family for family, _ in _controls(model) if family != FIRST_RESPONSE]


def _controls(model: ModelConfig) -> list[tuple[str, Sequence[float]]]:
    controls = () if model.model_metrics is None else model.model_metrics.metric_control
    return [
        (control.metric_identifier.family, control.histogram_options.buckets)
        for control in controls
        if control.metric_identifier is not None and control.histogram_options is not None
    ]
