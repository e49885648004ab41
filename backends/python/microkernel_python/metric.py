"""`pb_utils.MetricFamily` and its metrics: a model's own families on the server's metrics page."""

import enum
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import microkernel
from microkernel import MicrokernelError
from microkernel_python.arguments import instance_of, text
from microkernel_python.errors import TritonModelException


class MetricKind(enum.Enum):
    """The kinds of a family, also found on `MetricFamily`."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric:
    """One series; made by `MetricFamily.Metric`. Metrics of one family with the same labels are the
    same series, also in other instances and models. The last one to go takes the series along.

    Every method raises TypeError for what is no number, and TritonModelException for what the kind
    of the family does not allow and once the family is gone.
    """

    __slots__ = ("_metric",)

    def __init__(self, metric: microkernel.Metric) -> None:
        self._metric = metric

    def increment(self, value: float) -> None:
        """Add to a counter, which takes no negative value, or to a gauge."""
        with _as_triton():
            self._metric.increment(_double(value))

    def set(self, value: float) -> None:
        """Set a gauge."""
        with _as_triton():
            self._metric.set(_double(value))

    def observe(self, value: float) -> None:
        """Count an observation of a histogram."""
        with _as_triton():
            self._metric.observe(_double(value))

    def value(self) -> float:
        """What a counter or a gauge is at, with all that was done before."""
        with _as_triton():
            return self._metric.value()


class MetricFamily:
    """A family on the server's metrics page. Families of one name are one family, whose first
    description stays."""

    COUNTER = MetricKind.COUNTER
    GAUGE = MetricKind.GAUGE
    HISTOGRAM = MetricKind.HISTOGRAM

    __slots__ = ("_family",)

    def __init__(self, name: str | bytes, description: str | bytes, kind: MetricKind) -> None:
        """Raises TypeError for arguments of another type, and TritonModelException for a name that
        cannot be one, or belongs to the server or to a family of another kind."""
        about = text(description, "description")
        word: microkernel.MetricKind = instance_of(kind, MetricKind, "kind").value
        with _as_triton():
            self._family = microkernel.MetricFamily(text(name, "name"), about, word)

    def Metric(  # noqa: N802 - the name is Triton's
        self, labels: dict[str, str] | None = None, buckets: Sequence[float] | None = None
    ) -> Metric:
        """The series with those labels. A histogram needs `buckets`, the ascending upper ends of
        its buckets, and other kinds must not have them. Raises TritonModelException for labels and
        buckets that cannot be."""
        with _as_triton():
            return _made(self._family, labels, buckets)


def _made(family: microkernel.MetricFamily, labels: object, buckets: object) -> Metric:
    if not isinstance(labels, dict | None):
        raise TritonModelException(f"labels must be a dict, found type '{type(labels)}'")
    if not isinstance(buckets, list | tuple | None):
        raise TritonModelException(f"buckets must be a list, found type '{type(buckets)}'")
    return Metric(family.metric(labels, buckets))


def _double(value: object) -> float:
    try:
        if not isinstance(value, str | bytes):
            return float(value)  # type: ignore[arg-type]  # the check is the point
    except (TypeError, ValueError, OverflowError):
        pass
    raise TypeError(f"value must be a float, not {type(value).__name__}")


@contextmanager
def _as_triton() -> Iterator[None]:
    try:
        yield
    except MicrokernelError as error:
        raise TritonModelException(str(error)) from error
