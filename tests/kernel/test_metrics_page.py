"""The whole page."""

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from microkernel.config.model import ModelConfig
from microkernel.metrics import page as page_module
from microkernel.metrics.config import MetricsConfig, new_distributions
from microkernel.metrics.host import UTILIZATION, Reading
from microkernel.metrics.models import Series
from microkernel.metrics.page import FAMILIES, MetricsPage
from microkernel.metrics.text import labels_text, line, number
from microkernel.settings import ServerSettings
from microkernel.stats import ModelStats

ALL = ("histogram_latencies=true", "summary_latencies=true")


def series(count: int) -> list[Series]:
    config = MetricsConfig(histogram_latencies=True, summary_latencies=True)
    return [
        Series(
            {"model": f"m{index}", "version": "1"},
            ModelStats(
                distributions=new_distributions(config, ModelConfig()), cached=index % 2 == 1
            ),
        )
        for index in range(count)
    ]


async def test_every_family_once_and_no_name_twice() -> None:
    page = MetricsPage(ServerSettings(metrics_config=ALL))
    family = page.custom.declare("worker", "mine", "Mine", "gauge")
    page.custom.series("worker", family, {})
    machine = [
        family for family in FAMILIES if family.name.startswith(("nv_cpu", "nv_gpu", "nv_en"))
    ]
    page._poller.readings = [Reading(family, 1) for family in machine]
    text = (await page.render(series(2))).decode()
    named = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    names = [name for name, _ in named]
    assert len(names) == len(set(names))
    assert dict(named) == {family.name: family.kind for family in FAMILIES} | {"mine": "gauge"}
    assert len(list(text_string_to_metric_families(text))) == len(names)


async def test_the_pool_of_pinned_memory_is_empty() -> None:
    text = (await MetricsPage(ServerSettings()).render([])).decode()
    assert re.findall(r"^nv_\S+ \S+$", text, re.MULTILINE) == [
        "nv_pinned_memory_pool_total_bytes 0",
        "nv_pinned_memory_pool_used_bytes 0",
    ]


async def test_the_page_tells_of_the_machine_until_it_is_stopped_and_after() -> None:
    page = MetricsPage(ServerSettings(allow_gpu_metrics=False, metrics_interval_ms=60_000))
    page._poller.readings = [Reading(UTILIZATION, 0.5)]
    assert b"\nnv_cpu_utilization 0.5\n" in await page.render([])
    page.stop()
    assert b"\nnv_cpu_utilization 0.5\n" in await page.render([])


@pytest.mark.parametrize(("cpu", "shown"), [(True, 1), (False, 0)])
async def test_the_machine_may_be_left_out(cpu: bool, shown: int) -> None:
    page = MetricsPage(ServerSettings(allow_gpu_metrics=False, allow_cpu_metrics=cpu))
    page.start()
    await page.ready()
    page.stop()
    text = (await page.render([])).decode()
    assert text.count("# TYPE nv_cpu_memory_total_bytes gauge\n") == shown


async def test_a_long_page_lets_requests_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_WHILE", -1.0)
    page, turns = MetricsPage(ServerSettings()), 0
    rendering = asyncio.ensure_future(page.render(series(50)))
    while not rendering.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 50
    assert (await rendering).count(b"nv_inference_count{") == 50


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (5.0, "5"),
        (0.1, "0.1"),
        (2.5e-7, "2.5e-07"),
        (1e300, "1e+300"),
        (10**18, "1000000000000000000"),
        (float("nan"), "NaN"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@given(
    st.dictionaries(
        st.from_regex(r"_?[a-z][a-z_]*", fullmatch=True), st.text(max_size=20), max_size=4
    ),
    st.floats(allow_nan=False),
)
def test_what_is_written_is_what_prometheus_reads(labels: dict[str, str], value: float) -> None:
    # The parser cuts lines where Python does, Prometheus at "\\n" only.
    labels = {name: "".join(text.split("\r")) for name, text in labels.items()}
    text = "# TYPE x gauge\n" + line("x", labels_text(labels), value)
    (family,) = text_string_to_metric_families(text)
    (sample,) = family.samples
    assert (sample.labels, sample.value) == (labels, value)
