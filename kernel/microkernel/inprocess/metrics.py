"""`MetricFamily` and `Metric`: a program's own metrics on the pages of its servers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from microkernel.errors import InvalidArgument, Unavailable
from microkernel.inprocess.engine import running
from microkernel.inprocess.enums import MetricKind
from microkernel.inprocess.loop import STOPPED, LoopThread
from microkernel.metrics.custom import CustomMetrics

T = TypeVar("T")
P = ParamSpec("P")


class _Page:
    """What one owner declares with one server, whose loop keeps the books."""

    def __init__(self, thread: LoopThread, families: CustomMetrics) -> None:
        self.thread = thread
        self._families = families

    def call(
        self,
        work: Callable[Concatenate[CustomMetrics, P], T],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> T:
        """Call a method of the families on the server's loop."""

        async def done() -> T:
            return work(self._families, *arguments, **options)

        return self.thread.call(done())

    def forget(self, owner: object) -> None:
        """Drop what the owner declared."""
        self.thread.post(self._families.forget, owner)


class MetricFamily:
    """Metrics of one name on the pages of the servers that run when the family is made, which is
    how Triton's, which name no server, are shown. They are there as long as the object, or a
    metric of it, lives."""

    def __init__(self, kind: MetricKind, name: str, description: str) -> None:
        """Raises InvalidArgument where no server runs, for a name that cannot be one or belongs to
        the server, and where there is a family of that name of another kind."""
        self.pages: list[tuple[_Page, int]] = []
        self.owner = object()
        self.kind = MetricKind(kind)
        self.name = name
        for thread, families in running():
            page = _Page(thread, families)
            word = self.kind.name.lower()
            number = page.call(CustomMetrics.declare, self.owner, name, description, word)
            self.pages.append((page, number))
        if not self.pages:
            raise InvalidArgument("metrics are shown by a server, and none runs; start one first")

    def __del__(self) -> None:
        for page, _ in self.pages:
            page.forget(self.owner)


class Metric:
    """One series of a family. Metrics with the same labels are the same series. Once the servers of
    the family have stopped, every call raises Unavailable."""

    def __init__(
        self,
        family: MetricFamily,
        labels: Mapping[str, str] | None = None,
        buckets: Sequence[float] | None = None,
    ) -> None:
        """`buckets` are the ascending upper ends of a histogram's. Raises InvalidArgument for
        labels and buckets that cannot be."""
        self._family = family
        self._series = [
            (page, page.call(CustomMetrics.series, family.owner, number, labels or {}, buckets))
            for page, number in family.pages
        ]

    def increment(self, value: float) -> None:
        """Add to a counter or a gauge. Raises InvalidArgument where a counter would not grow, and
        for a histogram."""
        for page, number in self._shown():
            page.call(CustomMetrics.increment, self._family.owner, number, value)

    def set_value(self, value: float) -> None:
        """Set a gauge. Raises InvalidArgument for other kinds."""
        for page, number in self._shown():
            page.call(CustomMetrics.set, self._family.owner, number, value)

    def observe(self, value: float) -> None:
        """Count an observation of a histogram. Raises InvalidArgument for other kinds."""
        for page, number in self._shown():
            page.call(CustomMetrics.observe, self._family.owner, number, value)

    def value(self) -> float:
        """The value of a counter or a gauge. Raises InvalidArgument for a histogram."""
        page, number = self._shown()[0]
        return page.call(CustomMetrics.value, self._family.owner, number)

    def _shown(self) -> list[tuple[_Page, int]]:
        shown = [(page, number) for page, number in self._series if not page.thread.ended]
        if not shown:
            raise Unavailable(STOPPED)
        return shown
