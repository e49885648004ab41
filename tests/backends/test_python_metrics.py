"""`pb_utils.MetricFamily` and its metrics, against the very books of the page."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from microkernel import families
from microkernel.metrics.custom import CustomMetrics
from microkernel.workers.desk import MetricDesk
from microkernel_python.errors import TritonModelException
from microkernel_python.metric import Metric, MetricFamily, MetricKind


@pytest.fixture
def books() -> Iterator[CustomMetrics]:
    """What the families of this test's thread come to."""
    made = CustomMetrics(["nv_inference_count"])

    def receive(document: Any) -> None:
        if (answer := made.attend(made, document)) is not None:
            desk.answer(answer)

    desk = MetricDesk(receive)
    token = families._HERE.set(desk)
    yield made
    families._HERE.reset(token)
    desk.close()


def test_the_page_shows_what_a_model_does(books: CustomMetrics) -> None:
    counters = MetricFamily(b"c", description=b"Counts.", kind=MetricFamily.COUNTER)
    histograms = MetricFamily("h", "", MetricKind.HISTOGRAM)
    counter, same = counters.Metric({"a": "b"}), counters.Metric(labels={"a": "b"})
    histogram = histograms.Metric(buckets=[])
    counter.increment(np.float64(1.5))
    same.increment(True)
    histogram.observe(3)
    assert counter.value() == same.value() == 2.5
    assert books.text() == (
        '# HELP c Counts.\n# TYPE c counter\nc{a="b"} 2.5\n'
        '# HELP h \n# TYPE h histogram\nh_bucket{le="+Inf"} 1\nh_sum 3\nh_count 1\n'
    )


def on(kind: MetricKind, act: Callable[[Metric], object]) -> Callable[[], object]:
    def run() -> object:
        family = MetricFamily("m", "", kind)
        return act(family.Metric(buckets=[1] if kind is MetricKind.HISTOGRAM else None))

    return run


def family(**changes: Any) -> MetricFamily:
    given: dict[str, Any] = {"name": "m", "description": "", "kind": MetricKind.GAUGE}
    return MetricFamily(**(given | changes))


COUNTER, GAUGE, HISTOGRAM = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM
WRONG: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: family(name=1), TypeError, "name must be a str, not int"),
    (lambda: family(description=None), TypeError, "description must be a str"),
    (lambda: family(kind="gauge"), TypeError, "kind must be a MetricKind, not str"),
    (lambda: family(name="a b"), TritonModelException, "cannot be the name"),
    (lambda: family(name="nv_inference_count"), TritonModelException, "the server's own"),
    (lambda: family().Metric([]), TritonModelException, "labels must be a dict"),  # type: ignore[arg-type]
    (lambda: family().Metric({"a": 1}), TritonModelException, "must be text"),  # type: ignore[dict-item]
    (lambda: family().Metric({"a b": "c"}), TritonModelException, "cannot be a label"),
    (lambda: family().Metric(None, [1]), TritonModelException, "has no buckets"),
    (lambda: family().Metric(None, "12"), TritonModelException, "buckets must be a list"),  # type: ignore[arg-type]
    (lambda: family(kind=HISTOGRAM).Metric(), TritonModelException, "needs buckets"),
    (lambda: family(kind=HISTOGRAM).Metric({}, [1, 1]), TritonModelException, "ascending"),
    (on(COUNTER, lambda m: m.increment(-1)), TritonModelException, "can only grow"),
    (on(COUNTER, lambda m: m.set(1)), TritonModelException, "Invalid metric operation"),
    (on(COUNTER, lambda m: m.observe(1)), TritonModelException, "Invalid metric operation"),
    (on(GAUGE, lambda m: m.observe(1)), TritonModelException, "Invalid metric operation"),
    (on(GAUGE, lambda m: m.set("1")), TypeError, "value must be a float, not str"),  # type: ignore[arg-type]
    (on(GAUGE, lambda m: m.set(None)), TypeError, "not NoneType"),  # type: ignore[arg-type]
    (on(HISTOGRAM, lambda m: m.increment(1)), TritonModelException, "Invalid metric operation"),
    (on(HISTOGRAM, lambda m: m.set(1)), TritonModelException, "Invalid metric operation"),
    (on(HISTOGRAM, lambda m: m.value()), TritonModelException, "Invalid metric operation"),
]


@pytest.mark.parametrize(
    ("act", "error", "words"), WRONG, ids=[f"{i} {row[2]}" for i, row in enumerate(WRONG)]
)
def test_what_cannot_be_raises(
    books: CustomMetrics, act: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        act()


def test_a_name_has_one_kind(books: CustomMetrics) -> None:
    kept = family()
    with pytest.raises(TritonModelException, match="is a gauge, it cannot be a counter"):
        family(kind=COUNTER)
    del kept
    family(kind=COUNTER)


def test_metrics_end_with_their_family(books: CustomMetrics) -> None:
    gauges = family()
    gauge = gauges.Metric()
    del gauges
    with pytest.raises(TritonModelException, match="Invalid metric operation"):
        gauge.value()


def test_outside_a_worker_there_is_no_page() -> None:
    with pytest.raises(TritonModelException, match="in a worker of a server"):
        family()
