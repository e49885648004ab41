"""Families that models declare themselves. They vanish when nobody refers to them any more, at the
latest with the worker that declared them.

A worker speaks of them in plain documents; see `CustomMetrics.apply`. What it says is not trusted.
"""

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any, TypeGuard

from microkernel.distributions import Histogram
from microkernel.errors import InvalidArgument, MicrokernelError
from microkernel.metrics.text import Family, ends, histogram_lines, labels_text, line

KINDS = ("counter", "gauge", "histogram")
MOST = 10_000
"""How many references a worker may hold: each costs memory, and a line of every page."""
LONGEST = 4096
"""Characters of a name, a description or all labels of a series."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(slots=True)
class _Series:
    """One series of whatever kind, and how many references there are to it."""

    histogram: Histogram | None = None
    value: float = 0.0
    users: int = 0

    def text(self, name: str, labels: str) -> str:
        """Its lines on the page."""
        found = self.histogram
        if found is None:
            return line(name, labels, self.value)
        return histogram_lines(name, labels, ends(found.bounds), found.counts, found.total)


@dataclass(slots=True)
class _Declared:
    """One family, its series by their labels, and how many references there are to it."""

    family: Family
    series: dict[str, _Series] = field(default_factory=dict)
    users: int = 0


@dataclass(slots=True)
class _FamilyRef:
    declared: _Declared
    series: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _SeriesRef:
    declared: _Declared
    labels: str
    series: _Series
    family: _FamilyRef


_Refs = dict[int, _FamilyRef | _SeriesRef]


class CustomMetrics:
    """The families of all models. Families of one name are one family, series of one family with
    the same labels are one series, whoever declared them."""

    def __init__(self, reserved: Sequence[str]) -> None:
        """`reserved` are the names of families that the page has anyway."""
        self._reserved = frozenset(reserved)
        self._families: dict[str, _Declared] = {}
        self._held: dict[Hashable, _Refs] = {}
        self._numbers = count(1)
        self._deeds: Mapping[str, Callable[[Hashable, Mapping[str, Any]], dict[str, Any] | None]]
        self._deeds = {
            "declare": self._apply_declare,
            "series": self._apply_series,
            "value": lambda who, order: {"value": self.value(who, order["series"])},
            "drop": lambda who, order: self.drop(who, order["number"]),
            "increment": lambda who, order: self.increment(who, order["series"], order["by"]),
            "set": lambda who, order: self.set(who, order["series"], order["to"]),
            "observe": lambda who, order: self.observe(who, order["series"], order["value"]),
            "merge": lambda who, order: self.merge(
                who, order["series"], order["counts"], order["total"]
            ),
        }

    def attend(self, owner: Hashable, document: object) -> dict[str, Any] | None:
        """Do what a worker's message asks for: `{"posts": [...], "ask": ..., "ticket": ...}`. The
        answer to `ask`, {} where it has none, with the ticket; None where nothing was asked. What
        is wrong with a post is not said, for nobody waits: a worker checks before it posts.
        """
        if not isinstance(document, Mapping) or not isinstance(document.get("posts"), list):
            return None
        for order in document["posts"]:
            self.apply(owner, order)
        if (asked := document.get("ask")) is None:
            return None
        return {"ticket": document.get("ticket"), **(self.apply(owner, asked) or {})}

    def apply(self, owner: Hashable, order: Mapping[str, Any]) -> dict[str, Any] | None:
        """Do what a worker's document asks for; the answer, None where it wants none.

        `{"do": "declare", "name", "about", "kind"}` and `{"do": "series", "family", "labels",
        "buckets"}` answer `{"number"}`, the latter for a histogram also `{"buckets"}`, those that
        the series has; `{"do": "value", "series"}` answers `{"value"}`; `{"do": "increment",
        "series", "by"}`, `{"do": "set", "series", "to"}`, `{"do": "observe", "series", "value"}`,
        `{"do": "merge", "series", "counts", "total"}` and `{"do": "drop", "number"}` answer
        nothing. What cannot be done answers `{"error": [code, text]}`.
        """
        try:
            return self._deeds[order["do"]](owner, order)
        except MicrokernelError as error:
            return {"error": [error.code, str(error)]}
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            text = f"a metric's message cannot be read: {error!r}"
            return {"error": [InvalidArgument.code, text]}

    def _apply_declare(self, owner: Hashable, order: Mapping[str, Any]) -> dict[str, Any]:
        return {"number": self.declare(owner, order["name"], order["about"], order["kind"])}

    def _apply_series(self, owner: Hashable, order: Mapping[str, Any]) -> dict[str, Any]:
        labels, buckets = order["labels"], order.get("buckets")
        number = self.series(owner, order["family"], labels, buckets)
        histogram = self._held_series(owner, number).series.histogram
        return {"number": number} | ({} if histogram is None else {"buckets": histogram.bounds})

    def declare(self, owner: Hashable, name: str, about: str, kind: str) -> int:
        """Refer to the family of that name, made where there is none; the first description stays.
        Raises InvalidArgument for a name that cannot be one or is reserved, and for another kind
        than the family has."""
        _check_family(name, about, kind)
        if name in self._reserved:
            raise InvalidArgument(f"metric family '{name}' is one of the server's own")
        refs = self._room(owner)
        declared = self._families.get(name) or _Declared(Family(name, kind, about))
        if declared.family.kind != kind:
            raise InvalidArgument(
                f"metric family '{name}' is a {declared.family.kind}, it cannot be a {kind}"
            )
        self._families[name] = declared
        declared.users += 1
        refs[number := next(self._numbers)] = _FamilyRef(declared)
        return number

    def series(
        self,
        owner: Hashable,
        family: int,
        labels: Mapping[str, str],
        buckets: Sequence[float] | None = None,
    ) -> int:
        """Refer to the series with those labels, made at 0 where there is none. Raises
        InvalidArgument for labels that cannot be, and unless `buckets` are the ascending upper ends
        of a histogram's, and None for other kinds."""
        refs = self._room(owner)
        ref = refs.get(family)
        if not isinstance(ref, _FamilyRef):
            raise InvalidArgument("Invalid metric operation: its family does not exist any more")
        histogram = _histogram(ref.declared.family, buckets)
        text = _labels(ref.declared.family, labels)
        series = ref.declared.series.setdefault(text, _Series(histogram))
        series.users += 1
        refs[number := next(self._numbers)] = _SeriesRef(ref.declared, text, series, ref)
        ref.series.add(number)
        return number

    def _room(self, owner: Hashable) -> _Refs:
        refs = self._held.setdefault(owner, {})
        if len(refs) >= MOST:
            raise InvalidArgument(f"a worker may have at most {MOST} metrics")
        return refs

    def _series_of(self, owner: Hashable, number: int, *kinds: str) -> _Series:
        ref = self._held_series(owner, number)
        family = ref.declared.family
        if family.kind not in kinds:
            raise InvalidArgument(
                f"Invalid metric operation: '{family.name}' is a {family.kind}, this is for a "
                f"{' or a '.join(kinds)}"
            )
        return ref.series

    def _held_series(self, owner: Hashable, number: int) -> _SeriesRef:
        ref = self._held.get(owner, {}).get(number)
        if not isinstance(ref, _SeriesRef):
            raise InvalidArgument("Invalid metric operation: the metric does not exist any more")
        return ref

    def increment(self, owner: Hashable, number: int, by: float) -> None:
        """Add to a counter or a gauge. Raises InvalidArgument for other kinds, for a reference that
        was dropped, and where a counter would not grow."""
        series = self._series_of(owner, number, "counter", "gauge")
        ref = self._held[owner][number]
        if ref.declared.family.kind == "counter" and not 0 <= by < math.inf:
            raise InvalidArgument(f"a counter can only grow, by a number, not by {by}")
        series.value += by

    def set(self, owner: Hashable, number: int, to: float) -> None:
        """Set a gauge. Raises InvalidArgument as `increment` does."""
        self._series_of(owner, number, "gauge").value = float(to)

    def observe(self, owner: Hashable, number: int, value: float) -> None:
        """Count an observation of a histogram. Raises InvalidArgument as `increment` does."""
        histogram = self._series_of(owner, number, "histogram").histogram
        if histogram is not None:
            histogram.add(float(value))

    def merge(self, owner: Hashable, number: int, counts: Sequence[int], total: float) -> None:
        """Count observations of a histogram that were counted elsewhere by its very buckets, and
        add up to `total`. Raises InvalidArgument as `increment` does, and for other buckets."""
        histogram = self._series_of(owner, number, "histogram").histogram
        if histogram is None:
            return
        if len(counts) != len(histogram.counts) or not all(
            type(one) is int and one >= 0 for one in counts
        ):
            raise InvalidArgument(
                f"{counts!r:.100} are no counts of {len(histogram.counts)} buckets"
            )
        histogram.total += float(total)
        histogram.counts = [old + new for old, new in zip(histogram.counts, counts, strict=True)]

    def value(self, owner: Hashable, number: int) -> float:
        """The value of a counter or a gauge. Raises InvalidArgument as `increment` does."""
        return self._series_of(owner, number, "counter", "gauge").value

    def drop(self, owner: Hashable, number: int) -> None:
        """Give a reference up; a family's with those to its series that were made through it. What
        nobody refers to vanishes. One that was dropped already is left alone."""
        refs = self._held.get(owner, {})
        ref = refs.pop(number, None)
        if isinstance(ref, _SeriesRef):
            ref.family.series.discard(number)
            ref.series.users -= 1
            if not ref.series.users:
                del ref.declared.series[ref.labels]
        elif isinstance(ref, _FamilyRef):
            for one in list(ref.series):
                self.drop(owner, one)
            ref.declared.users -= 1
            if not ref.declared.users:
                del self._families[ref.declared.family.name]

    def forget(self, owner: Hashable) -> None:
        """The worker has ended: drop all that it holds."""
        for number in list(self._held.get(owner, ())):
            self.drop(owner, number)
        self._held.pop(owner, None)

    def text(self) -> str:
        """The part of the page with these families, in the order of their names."""
        return "".join(
            declared.family.text(one.text(name, labels) for labels, one in declared.series.items())
            for name, declared in sorted(self._families.items())
        )


def _is_text(value: object) -> TypeGuard[str]:
    """Whether it is text that the page can show: a lone surrogate has no bytes."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def _check_family(name: object, about: object, kind: object) -> None:
    if not isinstance(name, str) or len(name) > LONGEST or not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"'{str(name)[:LONGEST]}' cannot be the name of a metric family: letters, digits, '_' "
            "and ':', no digit first"
        )
    if not _is_text(about) or len(about) > LONGEST:
        raise InvalidArgument(f"the description of '{name}' must be text of {LONGEST} at most")
    if kind not in KINDS:
        raise InvalidArgument(
            f"the kind of metric family '{name}' must be one of {', '.join(KINDS)}, got '{kind}'"
        )


def _labels(family: Family, labels: Mapping[str, str]) -> str:
    for label, value in labels.items():
        if not _LABEL.fullmatch(label) or (label == "le" and family.kind == "histogram"):
            raise InvalidArgument(f"'{label}' cannot be a label of metric family '{family.name}'")
        if not _is_text(value):
            raise InvalidArgument(f"label '{label}' of '{family.name}' must be text, got {value!r}")
    text = labels_text(labels)
    if len(text) > LONGEST:
        raise InvalidArgument(f"the labels of '{family.name}' are longer than {LONGEST}")
    return text


def _histogram(family: Family, buckets: Sequence[float] | None) -> Histogram | None:
    if family.kind != "histogram":
        if buckets is not None:
            raise InvalidArgument(f"'{family.name}' is a {family.kind}, which has no buckets")
        return None
    if buckets is None:
        raise InvalidArgument(f"'{family.name}' is a histogram, which needs buckets")
    bounds = [float(end) for end in buckets]
    if not all(a < b for a, b in pairwise(bounds)) or not all(map(math.isfinite, bounds)):
        raise InvalidArgument(f"the buckets of '{family.name}' must be ascending numbers")
    return Histogram(bounds)
