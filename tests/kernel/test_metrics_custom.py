"""Families that models declare themselves."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from prometheus_client.parser import text_string_to_metric_families

from microkernel.errors import InvalidArgument
from microkernel.metrics import custom
from microkernel.metrics.custom import CustomMetrics

ONE, TWO = "worker 1", "worker 2"


@pytest.fixture
def metrics() -> CustomMetrics:
    return CustomMetrics(["nv_inference_count"])


def test_a_counter(metrics: CustomMetrics) -> None:
    family = metrics.declare(ONE, "hits", "How\nmany \\ hits", "counter")
    assert metrics.text() == "", "no series yet"
    series = metrics.series(ONE, family, {"b": 'x"y\n', "a": "\\"})
    metrics.increment(ONE, series, 2)
    metrics.increment(ONE, series, 0.5)
    assert metrics.value(ONE, series) == 2.5
    assert metrics.text() == (
        '# HELP hits How\\nmany \\\\ hits\n# TYPE hits counter\nhits{a="\\\\",b="x\\"y\\n"} 2.5\n'
    )


def test_a_gauge(metrics: CustomMetrics) -> None:
    series = metrics.series(ONE, metrics.declare(ONE, "level", "", "gauge"), {})
    metrics.set(ONE, series, 5)
    metrics.increment(ONE, series, -7.5)
    assert metrics.value(ONE, series) == -2.5
    assert metrics.text().endswith("\nlevel -2.5\n")


def test_a_histogram(metrics: CustomMetrics) -> None:
    family = metrics.declare(ONE, "sizes", "Sizes", "histogram")
    series = metrics.series(ONE, family, {"k": "v"}, [1, 2.5])
    for value in (1, 2, 100):
        metrics.observe(ONE, series, value)
    assert metrics.text().splitlines()[2:] == [
        'sizes_bucket{k="v",le="1"} 1',
        'sizes_bucket{k="v",le="2.5"} 2',
        'sizes_bucket{k="v",le="+Inf"} 3',
        'sizes_sum{k="v"} 103',
        'sizes_count{k="v"} 3',
    ]


def test_what_is_not_a_number_is_in_no_bucket_with_an_end(metrics: CustomMetrics) -> None:
    family = metrics.declare(ONE, "sizes", "Sizes", "histogram")
    series = metrics.series(ONE, family, {}, [1, 2.5])
    for value in (2, float("nan")):
        metrics.observe(ONE, series, value)
    assert metrics.text().splitlines()[2:] == [
        'sizes_bucket{le="1"} 0',
        'sizes_bucket{le="2.5"} 1',
        'sizes_bucket{le="+Inf"} 2',
        "sizes_sum NaN",
        "sizes_count 2",
    ]


def test_a_histogram_without_buckets_and_labels(metrics: CustomMetrics) -> None:
    family = metrics.declare(ONE, "sizes", "Sizes", "histogram")
    metrics.series(ONE, family, {}, [])
    assert metrics.text().splitlines()[2:] == [
        'sizes_bucket{le="+Inf"} 0',
        "sizes_sum 0",
        "sizes_count 0",
    ]


def test_workers_share_what_has_the_same_name_and_labels(metrics: CustomMetrics) -> None:
    first = metrics.series(ONE, metrics.declare(ONE, "hits", "the first", "counter"), {"a": "1"})
    second = metrics.series(TWO, metrics.declare(TWO, "hits", "another", "counter"), {"a": "1"})
    metrics.increment(ONE, first, 1)
    metrics.increment(TWO, second, 2)
    assert (metrics.value(ONE, first), metrics.value(TWO, second)) == (3, 3)
    assert metrics.text().startswith("# HELP hits the first\n")
    metrics.forget(ONE)
    assert metrics.text().endswith('\nhits{a="1"} 3\n')
    metrics.forget(TWO)
    assert metrics.text() == ""


def test_a_family_takes_its_series_along(metrics: CustomMetrics) -> None:
    family = metrics.declare(ONE, "hits", "", "counter")
    other = metrics.declare(ONE, "hits", "", "counter")
    gone, kept = metrics.series(ONE, family, {"a": "1"}), metrics.series(ONE, other, {"a": "2"})
    metrics.drop(ONE, family)
    metrics.drop(ONE, family)
    assert metrics.text().endswith('counter\nhits{a="2"} 0\n')
    metrics.increment(ONE, kept, 1)
    with pytest.raises(InvalidArgument, match="Invalid metric operation"):
        metrics.increment(ONE, gone, 1)
    with pytest.raises(InvalidArgument, match="Invalid metric operation"):
        metrics.series(ONE, family, {})


def test_a_series_starts_anew_after_the_last_reference(metrics: CustomMetrics) -> None:
    family = metrics.declare(ONE, "level", "", "gauge")
    first, second = metrics.series(ONE, family, {}), metrics.series(ONE, family, {})
    metrics.set(ONE, first, 4)
    metrics.drop(ONE, first)
    assert metrics.value(ONE, second) == 4
    metrics.drop(ONE, second)
    assert metrics.text() == ""
    assert metrics.value(ONE, metrics.series(ONE, family, {})) == 0


def test_a_worker_cannot_touch_what_another_holds(metrics: CustomMetrics) -> None:
    family = metrics.declare(ONE, "level", "", "gauge")
    series = metrics.series(ONE, family, {})
    metrics.drop(TWO, series)
    for act in (
        lambda: metrics.set(TWO, series, 1),
        lambda: metrics.series(TWO, family, {}),
    ):
        with pytest.raises(InvalidArgument, match="Invalid metric operation"):
            act()
    assert metrics.value(ONE, series) == 0


Act = Callable[[CustomMetrics], Any]


def on(kind: str, act: Callable[[CustomMetrics, int], Any]) -> Act:
    """Do something to a series of that kind."""

    def run(metrics: CustomMetrics) -> Any:
        family = metrics.declare(ONE, "x", "", kind)
        buckets = [1.0] if kind == "histogram" else None
        return act(metrics, metrics.series(ONE, family, {}, buckets))

    return run


def of(kind: str, labels: Any, buckets: Any = None) -> Act:
    return lambda m: m.series(ONE, m.declare(ONE, "x", "", kind), labels, buckets)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda m: m.declare(ONE, "nv_inference_count", "", "counter"), "one of the server's own"),
        (lambda m: m.declare(ONE, "1x", "", "counter"), "cannot be the name"),
        (lambda m: m.declare(ONE, "x\ny", "", "counter"), "cannot be the name"),
        (lambda m: m.declare(ONE, "", "", "counter"), "cannot be the name"),
        (lambda m: m.declare(ONE, 5, "", "counter"), "cannot be the name"),
        (lambda m: m.declare(ONE, "x", None, "counter"), "description of 'x' must be text"),
        (lambda m: m.declare(ONE, "x", "", "summary"), "one of counter, gauge, histogram"),
        (
            lambda m: [m.declare(ONE, "x", "", kind) for kind in ("counter", "gauge")],
            "'x' is a counter, it cannot be a gauge",
        ),
        (of("counter", {"1": "a"}), "'1' cannot be a label"),
        (of("counter", {"__a": "a"}), "'__a' cannot be a label"),
        (of("counter", {'a="",b': "a"}), "cannot be a label"),
        (of("counter", {"a": 5}), "label 'a' of 'x' must be text, got 5"),
        (of("counter", {"a": "b" * 5000}), "longer than 4096"),
        (of("histogram", {"le": "a"}, []), "'le' cannot be a label"),
        (of("counter", {}, [1]), "a counter, which has no buckets"),
        (of("histogram", {}), "which needs buckets"),
        (of("histogram", {}, [2, 1]), "must be ascending"),
        (of("histogram", {}, [1, math.inf]), "must be ascending"),
        (of("histogram", {}, [math.nan]), "must be ascending"),
        (on("counter", lambda m, s: m.increment(ONE, s, -1)), "can only grow"),
        (on("counter", lambda m, s: m.increment(ONE, s, math.nan)), "can only grow"),
        (on("counter", lambda m, s: m.set(ONE, s, 1)), "is a counter, this is for a gauge"),
        (on("gauge", lambda m, s: m.observe(ONE, s, 1)), "is a gauge, this is for a histogram"),
        (on("histogram", lambda m, s: m.increment(ONE, s, 1)), "this is for a counter or a gauge"),
        (on("histogram", lambda m, s: m.value(ONE, s)), "this is for a counter or a gauge"),
    ],
)
def test_what_cannot_be_done_is_said(metrics: CustomMetrics, act: Act, words: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        act(metrics)
    assert words in str(raised.value)


def test_a_worker_cannot_declare_without_end(
    metrics: CustomMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custom, "MOST", 3)
    family = metrics.declare(ONE, "x", "", "gauge")
    for number in range(2):
        metrics.series(ONE, family, {"n": str(number)})
    with pytest.raises(InvalidArgument, match="at most 3 metrics"):
        metrics.series(ONE, family, {"n": "2"})
    assert metrics.declare(TWO, "x", "", "gauge")


def test_documents(metrics: CustomMetrics) -> None:
    def say(**order: Any) -> Any:
        return metrics.apply(ONE, json.loads(json.dumps(order)))

    family = say(do="declare", name="sizes", about="", kind="histogram")["number"]
    sizes = say(do="series", family=family, labels={}, buckets=[1])["number"]
    level = say(do="declare", name="level", about="", kind="gauge")["number"]
    series = say(do="series", family=level, labels={"a": "b"})["number"]
    assert say(do="observe", series=sizes, value=0.5) is None
    assert say(do="set", series=series, to=3) is None
    assert say(do="increment", series=series, by=1) is None
    assert say(do="value", series=series) == {"value": 4}
    assert 'sizes_bucket{le="1"} 1\n' in metrics.text()
    assert say(do="drop", number=family) is None
    assert say(do="drop", number=level) is None
    assert metrics.text() == ""
    answer = say(do="value", series=series)
    code, text = answer["error"]
    assert (code, text[:24]) == (InvalidArgument.code, "Invalid metric operation")


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"do": "fly"},
        {"do": []},
        {"do": "declare", "name": "x"},
        {"do": "declare", "name": "x", "about": "", "kind": []},
        {"do": "series", "family": [], "labels": {}},
        {"do": "series", "family": 1, "labels": []},
        {"do": "series", "family": 1, "labels": {}, "buckets": 5},
        {"do": "series", "family": 1, "labels": {}, "buckets": ["x"]},
        {"do": "set", "series": 2, "to": "high"},
        {"do": "set", "series": 2, "to": None},
        {"do": "increment", "series": 2, "by": {}},
        {"do": "value", "series": {}},
        {"do": "drop"},
        {"do": "drop", "number": []},
    ],
)
def test_a_document_that_makes_no_sense_is_answered(
    metrics: CustomMetrics, order: dict[str, Any]
) -> None:
    metrics.series(ONE, metrics.declare(ONE, "h", "", "histogram"), {}, [1])
    level = metrics.series(ONE, metrics.declare(ONE, "level", "", "gauge"), {})
    before = metrics.text()
    order = {key: level if value == 2 else value for key, value in order.items()}
    answer = metrics.apply(ONE, order)
    assert answer is not None
    assert answer["error"][0] == InvalidArgument.code
    assert metrics.text() == before


NAMES = st.sampled_from(["a", "b"])
LABELS = st.sampled_from([{}, {"l": "1"}, {"l": "2"}])
OWNERS = st.sampled_from([ONE, TWO])


class Holding(RuleBasedStateMachine):
    """Workers that take and give up references at random, against a list of what is held."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = CustomMetrics([])
        self.families: list[tuple[str, int, str]] = []
        self.series: list[tuple[str, int, int, str, str]] = []

    @rule(owner=OWNERS, name=NAMES)
    def declare(self, owner: str, name: str) -> None:
        self.families.append((owner, self.metrics.declare(owner, name, "", "gauge"), name))

    @rule(data=st.data(), labels=LABELS)
    def refer(self, data: st.DataObject, labels: dict[str, str]) -> None:
        if self.families:
            owner, family, name = data.draw(st.sampled_from(self.families))
            number = self.metrics.series(owner, family, labels)
            self.series.append((owner, number, family, name, labels.get("l", "")))

    @rule(data=st.data())
    def drop_series(self, data: st.DataObject) -> None:
        if self.series:
            chosen = data.draw(st.sampled_from(self.series))
            self.metrics.drop(chosen[0], chosen[1])
            self.series.remove(chosen)

    @rule(data=st.data())
    def drop_family(self, data: st.DataObject) -> None:
        if self.families:
            chosen = data.draw(st.sampled_from(self.families))
            self.metrics.drop(chosen[0], chosen[1])
            self.families.remove(chosen)
            self.series = [one for one in self.series if one[2] != chosen[1]]

    @rule(owner=OWNERS)
    def end(self, owner: str) -> None:
        self.metrics.forget(owner)
        self.families = [one for one in self.families if one[0] != owner]
        self.series = [one for one in self.series if one[0] != owner]

    @invariant()
    def the_page_shows_what_is_held(self) -> None:
        shown = {
            (sample.name, sample.labels.get("l", ""))
            for family in text_string_to_metric_families(self.metrics.text())
            for sample in family.samples
        }
        assert shown == {(name, label) for _, _, _, name, label in self.series}

    @invariant()
    def nothing_is_kept_for_nobody(self) -> None:
        assert set(self.metrics._families) == {name for _, _, name in self.families}


TestHolding = Holding.TestCase
TestHolding.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
