"""The flag --metrics-config, and what a model's configuration says of metrics."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from microkernel.config.model import (
    HistogramOptions,
    MetricControl,
    MetricIdentifier,
    ModelConfig,
    ModelMetrics,
)
from microkernel.config.validate import problems
from microkernel.errors import InvalidArgument
from microkernel.metrics.config import MetricsConfig, not_customizable, parse_metrics_config
from microkernel.metrics.page import MetricsPage
from microkernel.models.loader import Loader, LoaderSettings, Offer
from microkernel.quantiles import Target
from microkernel.settings import ServerSettings
from microkernel.workers.contract import Hosted


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], MetricsConfig()),
        (["counter_latencies=FALSE"], MetricsConfig(counter_latencies=False)),
        (["histogram_latencies=true"], MetricsConfig(histogram_latencies=True)),
        (
            ["summary_latencies=true", "summary_quantiles=0.5:0.1,0.25:0.02"],
            MetricsConfig(
                summary_latencies=True,
                summary_quantiles=(Target(0.5, 0.1), Target(0.25, 0.02)),
            ),
        ),
        (["summary_latencies=true", "summary_latencies=false"], MetricsConfig()),
    ],
)
def test_settings(settings: list[str], expected: MetricsConfig) -> None:
    assert parse_metrics_config(settings) == expected


def test_defaults() -> None:
    config = MetricsConfig()
    switches = (config.counter_latencies, config.histogram_latencies, config.summary_latencies)
    assert switches == (True, False, False)
    assert {t.quantile: t.error for t in config.summary_quantiles} == {
        0.5: 0.05,
        0.9: 0.01,
        0.95: 0.001,
        0.99: 0.001,
        0.999: 0.001,
    }


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("summary_latencies", "'summary_latencies' must have the form key=value"),
        ("summaries=true", "unknown key 'summaries'; it knows counter_latencies, histogram_"),
        ("summary_latencies=yes", "'summary_latencies' must be true or false, got 'yes'"),
        ("summary_quantiles=0.5", "like 0.9:0.01, got '0.5'"),
        ("summary_quantiles=", "got ''"),
        ("summary_quantiles=0.5:0.1,1:0.1", "got '1:0.1'"),
        ("summary_quantiles=0.5:0", "got '0.5:0'"),
        ("summary_quantiles=nan:0.1", "got 'nan:0.1'"),
        ("summary_quantiles=a:b", "got 'a:b'"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match="--metrics-config: ") as raised:
        parse_metrics_config([setting])
    assert words in str(raised.value)


@pytest.mark.parametrize("interval", [0.0, -1.0, float("nan")])
def test_an_interval_that_cannot_be(interval: float) -> None:
    with pytest.raises(InvalidArgument, match="--metrics-interval-ms must be more than 0"):
        MetricsPage(ServerSettings(metrics_interval_ms=interval))


def controlled(family: str, *buckets: float) -> ModelConfig:
    control = MetricControl(MetricIdentifier(family), HistogramOptions(buckets))
    return ModelConfig(
        name="m", backend="odd", max_batch_size=1, model_metrics=ModelMetrics((control,))
    )


@pytest.mark.parametrize("buckets", [(2.0, 1.0), (1.0, 1.0), (1.0, float("inf"))])
def test_buckets_must_ascend(buckets: tuple[float, ...]) -> None:
    found = problems(controlled("nv_x", *buckets), tensors_required=False)
    assert found == ["histogram options must specify 'buckets' in ascending order for m"]
    assert problems(controlled("nv_x", 1.0, 2.0), tensors_required=False) == []


def test_which_families_cannot_be_customized() -> None:
    assert not_customizable(ModelConfig()) == []
    assert not_customizable(controlled("nv_inference_first_response_histogram_ms", 1.0)) == []
    assert not_customizable(controlled("nv_x", 1.0)) == ["nv_x"]


def test_a_family_without_effect_is_a_warning(tmp_path: Path, hosted: Hosted) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    loader = Loader([Offer(hosted.backend, None)], LoaderSettings())
    with capture_logs() as lines:
        loader.read(tmp_path / "m", controlled("nv_x", 1.0))
    assert [(line["event"], line["family"]) for line in lines] == [
        ("metric family is not customizable", "nv_x")
    ]
