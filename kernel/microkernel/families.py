"""Metrics that backends and their models declare: what they see of the server's metrics page.

A family belongs to the worker it was declared in and reaches the page through the worker's route.
"""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Literal, Protocol, TypeAlias

from microkernel.errors import InvalidArgument, Unavailable

MetricKind: TypeAlias = Literal["counter", "gauge", "histogram"]


class MetricRoute(Protocol):
    """The way from a worker to the page. Used from any thread; every call but `drop` raises
    Unavailable where the page cannot be reached any more."""

    def ask(self, order: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to a document that wants one; see `CustomMetrics.apply`. Raises the error that
        is the answer."""
        ...

    def increment(self, number: int, by: float) -> None:
        """Add to a series, soon."""
        ...

    def set(self, number: int, to: float) -> None:
        """Set a series, soon."""
        ...

    def observe(self, number: int, bounds: Sequence[float], value: float) -> None:
        """Count an observation of a series whose buckets have those upper ends, soon."""
        ...

    def drop(self, number: int) -> None:
        """Give a reference up, soon. Takes no lock, so that a destructor may call it."""
        ...


_HERE: ContextVar[MetricRoute | None] = ContextVar("metric_route", default=None)
_PROCESS: list[MetricRoute] = []
"""The route of a process that is a worker as a whole: its models may start threads, to which
context variables do not follow."""


def route_metrics(route: MetricRoute, *, whole_process: bool = False) -> None:
    """Families that are made on this thread, or in the whole process, take that route from now
    on."""
    if whole_process:
        _PROCESS[:] = [route]
    else:
        _HERE.set(route)


def _route() -> MetricRoute:
    for route in (_HERE.get(), *_PROCESS):
        if route is not None:
            return route
    raise Unavailable("metrics are declared by models in a worker of a server; this is none")


class _Reference:
    """A number by which the server knows a family or a series."""

    __slots__ = ("dropped", "number", "route")

    def __init__(self, route: MetricRoute, number: int) -> None:
        self.route = route
        self.number = number
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True
        self.route.drop(self.number)


class MetricFamily:
    """Metrics of one name on the server's page. Families of one name are one family, whoever made
    them; the first description stays. When the object goes, its metrics cannot be used any more,
    and what nobody else refers to vanishes from the page; so it does when the worker ends."""

    __slots__ = ("_reference", "kind", "name")

    def __init__(self, name: str, about: str, kind: MetricKind) -> None:
        """Waits for the server. Raises InvalidArgument for a name that cannot be one, belongs to
        the server or to a family of another kind, and Unavailable outside a worker."""
        route = _route()
        order = {"do": "declare", "name": name, "about": about, "kind": kind}
        self._reference = _Reference(route, route.ask(order)["number"])
        self.name = name
        self.kind = kind

    def metric(
        self, labels: Mapping[str, str] | None = None, buckets: Sequence[float] | None = None
    ) -> "Metric":
        """The series with those labels, made at 0 where there is none; metrics with the same labels
        are the same series, whose buckets are those given first. `buckets` are the ascending upper
        ends of a histogram's, and None for other kinds. Waits for the server. Raises
        InvalidArgument for labels and buckets that cannot be."""
        labels = {} if labels is None else dict(labels)
        if not all(isinstance(entry, str) for pair in labels.items() for entry in pair):
            raise InvalidArgument(f"the labels of '{self.name}' must be text, got {labels!r:.200}")
        ends = None if buckets is None else [_number(end) for end in buckets]
        family = self._reference
        order = {"do": "series", "family": family.number, "labels": labels, "buckets": ends}
        answer = family.route.ask(order)
        series = _Reference(family.route, answer["number"])
        return Metric(self, family, series, answer.get("buckets", ()))

    def __del__(self) -> None:
        if (reference := getattr(self, "_reference", None)) is not None:  # else it was never made
            reference.drop()


class Metric:
    """One series of a family; made by `MetricFamily.metric`, used from any thread. Changes reach
    the page within milliseconds, under a flood of them later, and never get lost."""

    __slots__ = ("_bounds", "_family", "_kind", "_name", "_series")

    def __init__(
        self,
        family: MetricFamily,
        family_reference: _Reference,
        series: _Reference,
        bounds: Sequence[float],
    ) -> None:
        # Not the family itself: its end is the end of its metrics, however long they are kept.
        self._name, self._kind = family.name, family.kind
        self._family = family_reference
        self._series = series
        self._bounds = tuple(bounds)

    def increment(self, value: float) -> None:
        """Add to a counter or a gauge. Raises InvalidArgument where a counter would not grow, and
        for a histogram."""
        self._check("counter", "gauge")
        by = _number(value)
        if self._kind == "counter" and not 0 <= by < float("inf"):
            raise InvalidArgument(f"a counter can only grow, by a number, not by {by}")
        self._series.route.increment(self._series.number, by)

    def set(self, value: float) -> None:
        """Set a gauge. Raises InvalidArgument for other kinds."""
        self._check("gauge")
        self._series.route.set(self._series.number, _number(value))

    def observe(self, value: float) -> None:
        """Count an observation of a histogram. Raises InvalidArgument for other kinds."""
        self._check("histogram")
        self._series.route.observe(self._series.number, self._bounds, _number(value))

    def value(self) -> float:
        """The value of a counter or a gauge, with all changes made before. Waits for the server.
        Raises InvalidArgument for a histogram."""
        self._check("counter", "gauge")
        answer = self._series.route.ask({"do": "value", "series": self._series.number})
        return float(answer["value"])

    def _check(self, *kinds: str) -> None:
        if self._family.dropped:
            raise InvalidArgument(
                f"Invalid metric operation: the metric family '{self._name}' has been deleted"
            )
        if self._kind not in kinds:
            raise InvalidArgument(
                f"Invalid metric operation: '{self._name}' is a {self._kind}, this is for a "
                f"{' or a '.join(kinds)}"
            )

    def __del__(self) -> None:
        if (series := getattr(self, "_series", None)) is not None:
            series.drop()


def _number(value: object) -> float:
    try:
        if not isinstance(value, str | bytes):
            return float(value)  # type: ignore[arg-type]  # the check is the point
    except (TypeError, ValueError, OverflowError):
        pass
    raise InvalidArgument(f"a metric is told of numbers, not of {value!r:.100}")
