"""The worker's end of the metrics that models declare, against the very books of the page."""

import gc
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from microkernel import InvalidArgument, Metric, MetricFamily, Unavailable, Unsupported, families
from microkernel.metrics.custom import CustomMetrics
from microkernel.workers import desk
from microkernel.workers.desk import BURST, PER_CHANGE, PER_MESSAGE, MetricDesk


class Server:
    """Books that are kept in place, and what was sent to them."""

    def __init__(self) -> None:
        self.books = CustomMetrics(["nv_inference_count"])
        self.sent: list[Mapping[str, Any]] = []
        self.desk = MetricDesk(self._receive)
        self.came = threading.Condition()

    def _receive(self, document: Mapping[str, Any]) -> None:
        with self.came:
            self.sent.append(document)
            if (answer := self.books.attend(self, document)) is not None:
                self.desk.answer(answer)
            self.came.notify_all()

    def wait(self, shown: Callable[[str], bool]) -> None:
        """Wait until the page is as it should be."""
        with self.came:
            assert self.came.wait_for(lambda: shown(self.books.text()), 30), self.books.text()


@pytest.fixture
def server() -> Iterator[Server]:
    """One that the families of this test's thread go to."""
    made = Server()
    token = families._HERE.set(made.desk)
    yield made
    families._HERE.reset(token)
    made.desk.close()


class Clock:
    """Stands still; nobody wakes up from a sleep before `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def monotonic(self) -> float:
        return 1000.0

    def sleep(self, seconds: float) -> None:
        if seconds:
            self.go.wait(30)


def test_the_page_shows_what_was_done(server: Server) -> None:
    counters = MetricFamily("c", "Counts.", "counter")
    gauges = MetricFamily("g", "", "gauge")
    histograms = MetricFamily("h", "", "histogram")
    counter, gauge = counters.metric({"a": "b"}), gauges.metric()
    histogram = histograms.metric(buckets=[1, 2])
    counter.increment(2)
    counter.increment(0.5)
    gauge.increment(-1)
    gauge.set(7)
    gauge.increment(1)
    for number in (0.5, 1, 3):
        histogram.observe(number)
    assert (counter.value(), gauge.value()) == (2.5, 8)
    assert server.books.text() == (
        '# HELP c Counts.\n# TYPE c counter\nc{a="b"} 2.5\n'
        "# HELP g \n# TYPE g gauge\ng 8\n"
        "# HELP h \n# TYPE h histogram\n"
        'h_bucket{le="1"} 2\nh_bucket{le="2"} 2\nh_bucket{le="+Inf"} 3\nh_sum 4.5\nh_count 3\n'
    )


def test_a_histogram_counts_by_the_buckets_that_its_series_has(server: Server) -> None:
    family = MetricFamily("h", "", "histogram")
    first, second = family.metric(buckets=[1]), family.metric(buckets=[5, 6, 7])
    second.observe(0.5)
    first.observe(9)
    family.metric(buckets=[])  # waits for what was sent before
    assert 'h_bucket{le="1"} 1\nh_bucket{le="+Inf"} 2\n' in server.books.text()


def test_a_flood_becomes_a_few_messages(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    clock = Clock()
    monkeypatch.setattr(desk, "time", clock)
    counters, histograms = MetricFamily("c", "", "counter"), MetricFamily("h", "", "histogram")
    counter = counters.metric()
    seen = histograms.metric(buckets=[1])
    before = len(server.sent)
    for _ in range(10_000):
        counter.increment(1)
        seen.observe(2)
    at_once = len(server.sent) - before
    assert 10 < at_once <= BURST / (PER_MESSAGE + PER_CHANGE) + 1
    assert counter.value() == 10_000
    assert len(server.sent) == before + at_once + 1
    assert "h_count 10000\n" in server.books.text()
    counter.increment(1)
    assert "c 10000\n" in server.books.text()
    clock.go.set()
    server.wait(lambda page: "c 10001\n" in page)


def test_what_nobody_refers_to_vanishes(server: Server) -> None:
    family = MetricFamily("g", "", "gauge")
    one, two = family.metric({"n": "1"}), family.metric({"n": "2"})
    two.set(5)
    del one
    gc.collect()
    server.wait(lambda page: 'n="1"' not in page)
    assert 'g{n="2"} 5\n' in server.books.text()
    del family, two
    gc.collect()
    server.wait(lambda page: page == "")


def test_a_name_is_free_again_at_once(server: Server) -> None:
    for kind in ("gauge", "counter", "histogram") * 20:
        family = MetricFamily("same", "", kind)
        del family


def test_metrics_end_with_their_family(server: Server) -> None:
    family = MetricFamily("g", "", "gauge")
    metric = family.metric()
    del family
    for use in (metric.value, lambda: metric.set(1), lambda: metric.increment(1)):
        with pytest.raises(
            InvalidArgument, match=r"^Invalid metric operation: the metric family 'g"
        ):
            use()


def _metric(kind: Any) -> Metric:
    family = MetricFamily("m", "", kind)
    KEPT.append(family)
    return family.metric(buckets=[1] if kind == "histogram" else None)


KEPT: list[MetricFamily] = []
WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: MetricFamily("nv_inference_count", "", "gauge"), "one of the server's own"),
    (lambda: MetricFamily("1", "", "gauge"), "cannot be the name of a metric family"),
    (lambda: MetricFamily("m", "\ud800", "gauge"), "the description of 'm' must be text"),
    (lambda: MetricFamily("m", "", "summary"), "must be one of"),  # type: ignore[arg-type]
    (lambda: MetricFamily("m", "", "gauge").metric({"1": "a"}), "cannot be a label"),
    (lambda: MetricFamily("m", "", "gauge").metric({"a": "\udfff"}), "must be text"),
    (lambda: MetricFamily("m", "", "gauge").metric({"a": 1}), "must be text"),  # type: ignore[dict-item]
    (lambda: MetricFamily("m", "", "gauge").metric(buckets=[]), "has no buckets"),
    (lambda: MetricFamily("m", "", "histogram").metric(), "needs buckets"),
    (lambda: MetricFamily("m", "", "histogram").metric(buckets=[2, 1]), "must be ascending"),
    (lambda: MetricFamily("m", "", "histogram").metric(buckets=["1"]), "not of '1'"),  # type: ignore[list-item]
    (lambda: _metric("counter").increment(-1), "a counter can only grow"),
    (lambda: _metric("counter").increment(float("nan")), "a counter can only grow"),
    (lambda: _metric("counter").set(1), "is a counter, this is for a gauge"),
    (lambda: _metric("counter").observe(1), "this is for a histogram"),
    (lambda: _metric("gauge").observe(1), "is a gauge, this is for a histogram"),
    (lambda: _metric("gauge").set("1"), "told of numbers, not of '1'"),  # type: ignore[arg-type]
    (lambda: _metric("gauge").set(10**400), "told of numbers"),
    (lambda: _metric("histogram").increment(1), "is a histogram, this is for a counter or a gauge"),
    (lambda: _metric("histogram").value(), "is a histogram, this is for a counter or a gauge"),
]


@pytest.mark.parametrize(("act", "words"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_what_cannot_be_is_said_where_it_is_done(
    server: Server, act: Callable[[], object], words: str
) -> None:
    try:
        with pytest.raises(InvalidArgument, match=words):
            act()
    finally:
        KEPT.clear()


def test_a_call_that_was_broken_off_does_not_shift_the_answers(server: Server) -> None:
    gauge_family = MetricFamily("g", "", "gauge")
    gauge = gauge_family.metric()
    server.desk.answer({"ticket": 1, "value": 99})
    gauge.set(3)
    assert gauge.value() == 3


def test_who_waits_when_the_worker_ends_is_told() -> None:
    ended = MetricDesk(lambda document: ended.close())
    with pytest.raises(Unavailable, match="the worker has ended"):
        ended.ask({"do": "declare", "name": "g", "about": "", "kind": "gauge"})
    for use in (lambda: ended.set(1, 1), lambda: ended.ask({})):
        with pytest.raises(Unavailable, match="the worker has ended"):
            use()


def test_a_forked_process_has_no_metrics(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    family = MetricFamily("g", "", "gauge")
    metric = family.metric()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(Unsupported, match="forked"):
        metric.set(1)
    with pytest.raises(Unsupported, match="forked"):
        metric.value()


def test_outside_a_worker_there_is_no_page() -> None:
    thread_error: list[BaseException] = []

    def declare() -> None:
        try:
            MetricFamily("g", "", "gauge")
        except Unavailable as error:
            thread_error.append(error)

    thread = threading.Thread(target=declare)
    thread.start()
    thread.join()
    assert "in a worker of a server" in str(thread_error[0])


def message(**parts: Any) -> dict[str, Any]:
    return {"posts": [], **parts}


@pytest.mark.parametrize(
    "document",
    [None, 1, "posts", [], {}, {"posts": 1}, {"posts": {}}, message(posts=[None, 1, "do", {}])],
)
def test_a_message_that_makes_no_sense_is_dropped(document: object) -> None:
    assert CustomMetrics(()).attend("worker", document) is None


@pytest.mark.parametrize(
    "order",
    [
        {"do": "merge", "series": 2, "counts": [1], "total": 1},
        {"do": "merge", "series": 2, "counts": [1, -1], "total": 1},
        {"do": "merge", "series": 2, "counts": [1, True], "total": 1},
        {"do": "merge", "series": 2, "counts": [1, 1.5], "total": 1},
        {"do": "merge", "series": 2, "counts": [1, 1], "total": 10**400},
        {"do": "merge", "series": 2, "counts": 2, "total": 1},
        {"do": "merge", "series": 2, "counts": [1, 1]},
        {"do": "merge", "series": 1, "counts": [1, 1], "total": 1},
        {"do": "series", "family": 1, "labels": [], "buckets": [1]},
        {"do": "series", "family": 1, "labels": None, "buckets": [1]},
    ],
)
def test_an_order_that_makes_no_sense_is_answered(order: dict[str, Any]) -> None:
    books = CustomMetrics(())
    books.series("worker", books.declare("worker", "h", "", "histogram"), {}, [1])
    before = books.text()
    answer = books.attend("worker", message(ask=order, ticket=7))
    assert answer is not None
    assert (answer["ticket"], answer["error"][0]) == (7, InvalidArgument.code)
    assert books.text() == before


def test_the_answer_to_a_post_in_place_of_a_question_is_empty() -> None:
    books = CustomMetrics(())
    number = books.series("worker", books.declare("worker", "g", "", "gauge"), {})
    order = {"do": "set", "series": number, "to": 2}
    assert books.attend("worker", message(ask=order, ticket=1)) == {"ticket": 1}
    assert "g 2\n" in books.text()
