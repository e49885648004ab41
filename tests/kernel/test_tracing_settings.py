"""The settings of tracing: what is sampled, what clients may change, and what it falls back to."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from microkernel import InvalidArgument, TraceChanges, TraceSettings, Unsupported
from microkernel.tracing.book import TraceBook
from microkernel.tracing.changes import read
from microkernel.tracing.sampler import Sampler

ON = TraceSettings(trace_file="traces", trace_level=("TIMESTAMPS",), trace_rate=1)
OTLP = replace(ON, trace_file="", trace_mode="opentelemetry")


@pytest.mark.parametrize(
    ("settings", "sampled"),
    [
        (ON, [1, 2, 3, 4, 5, 6, 7]),
        (replace(ON, trace_level=("OFF",)), []),
        (replace(ON, trace_level=("TENSORS",)), [1, 2, 3, 4, 5, 6, 7]),
        (replace(ON, trace_rate=3), [3, 6]),
        (replace(ON, trace_rate=1000), []),
        (replace(ON, trace_rate=0), []),
        (replace(ON, trace_file=""), []),
        (replace(ON, trace_count=2), [1, 2]),
        (replace(ON, trace_rate=2, trace_count=2), [2, 4]),
        (replace(ON, trace_count=0), []),
        (OTLP, [1, 2, 3, 4, 5, 6, 7]),
        (replace(OTLP, trace_rate=0), []),
        (replace(OTLP, trace_level=("TENSORS",)), []),
    ],
)
def test_which_requests_are_sampled(settings: TraceSettings, sampled: list[int]) -> None:
    sampler = Sampler(settings, 1)
    assert [number for number in range(1, 8) if sampler.sample()] == sampled


@pytest.mark.parametrize(
    ("settings", "sampled", "left"),
    [
        (OTLP, [True] * 4, -1),
        (replace(OTLP, trace_rate=0), [True] * 4, -1),
        (replace(OTLP, trace_rate=2, trace_count=1), [True] * 4, 0),
        (replace(OTLP, trace_count=0), [True] * 4, 0),
        (replace(OTLP, trace_level=("OFF",)), [False] * 4, -1),
    ],
)
def test_forced_requests_are_counted_and_sampled_whatever_rate_and_count_say(
    settings: TraceSettings, sampled: list[bool], left: int
) -> None:
    sampler = Sampler(settings, 1)
    assert [sampler.sample(forced=True) for _ in range(4)] == sampled
    assert sampler.left == left


@pytest.mark.parametrize(
    ("settings", "active"),
    [
        (TraceSettings(), False),
        (ON, True),
        (replace(ON, trace_count=0), False),
        (replace(ON, trace_rate=0), False),
        (replace(OTLP, trace_count=0), True),
        (replace(OTLP, trace_rate=0), True),
        (replace(OTLP, trace_level=("OFF",)), False),
    ],
)
def test_whether_any_request_may_be_traced(settings: TraceSettings, active: bool) -> None:
    assert Sampler(settings, 1).active is active


def test_a_number_of_traces_is_complete_when_the_last_one_has_ended() -> None:
    sampler = Sampler(replace(ON, trace_count=2), 1)
    seen = []
    for step in (sampler.sample, sampler.sample, sampler.ended, sampler.ended):
        step()
        seen.append(sampler.complete)
    assert seen == [False, False, False, True]
    assert sampler.settings.trace_count == 0


@pytest.mark.parametrize(
    ("given", "values", "cleared"),
    [
        ({"trace_rate": ("7",)}, {"trace_rate": 7}, set()),
        ({"trace_rate": ("+7",)}, {"trace_rate": 7}, set()),
        ({"trace_rate": ("4294967295",)}, {"trace_rate": 2**32 - 1}, set()),
        ({"trace_count": ("-1",)}, {"trace_count": -1}, set()),
        ({"log_frequency": ("50",)}, {"log_frequency": 50}, set()),
        ({"trace_rate": None, "trace_level": None}, {}, {"trace_rate", "trace_level"}),
        ({"trace_level": ("OFF",)}, {"trace_level": ("OFF",)}, set()),
        ({"trace_level": ("TENSORS",)}, {"trace_level": ("TENSORS",)}, set()),
        (
            {"trace_level": ("TENSORS", "what", "TIMESTAMPS")},
            {"trace_level": ("TIMESTAMPS", "TENSORS")},
            set(),
        ),
        ({"trace_level": ("what",)}, {}, set()),
        ({"trace_level": ()}, {}, set()),
        ({"no_such": ("1",), "trace_mode": ("opentelemetry",)}, {}, set()),
    ],
)
def test_what_clients_write(
    given: dict[str, tuple[str, ...] | None], values: dict[str, Any], cleared: set[str]
) -> None:
    found, taken_back = read(TraceChanges(given))
    assert dict(found) == values
    assert taken_back == cleared


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trace_rate": ("x",)}, "Unable to parse 'trace_rate', got: x"),
        ({"trace_rate": ("",)}, "Unable to parse 'trace_rate', got: "),
        ({"trace_rate": ("1_0",)}, "Unable to parse 'trace_rate', got: 1_0"),
        ({"trace_rate": ("١",)}, "Unable to parse 'trace_rate', got: ١"),  # noqa: RUF001
        (
            {"trace_rate": ("-1",)},
            "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: -1",
        ),
        ({"trace_count": ("-2",)}, "Unable to parse 'trace_count'. Expecting value >= -1, got:-2"),
        (
            {"trace_count": ("2147483648",)},
            "Unable to parse 'trace_count', value is out of range [ -1, 2147483647 ], "
            "got: 2147483648",
        ),
        ({"log_frequency": ("9" * 5000,)}, "Unable to parse 'log_frequency', got: " + "9" * 64),
        ({"log_frequency": ("1", "2")}, "expect only 1 value for 'log_frequency'"),
        ({"log_frequency": ()}, "expect only 1 value for 'log_frequency'"),
        ({"trace_level": ("OFF", "TENSORS")}, "Expect only one trace level 'OFF' is specified"),
        ({"trace_level": ("OFF", "OFF")}, "Expect only one trace level 'OFF' is specified"),
    ],
)
def test_what_clients_must_not_write(given: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(TraceChanges(given))
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [("elsewhere",), None])
def test_the_file_cannot_be_changed(value: tuple[str, ...] | None) -> None:
    with pytest.raises(Unsupported) as caught:
        read(TraceChanges({"trace_rate": ("x",), "trace_file": value}))
    assert str(caught.value) == ("trace file location can not be updated through network protocol")


def change(book: TraceBook, model: str, **values: str | None) -> list[Sampler]:
    given = {key: None if value is None else (value,) for key, value in values.items()}
    return book.change(model, TraceChanges(given))


@pytest.mark.parametrize(
    ("start", "values", "reason"),
    [
        (TraceSettings(), {"trace_level": "TIMESTAMPS"}, "trace file name is not given"),
        (ON, {"trace_rate": "0"}, "sample rate must be non-zero"),
        (OTLP, {"trace_rate": "0"}, "sample rate must be non-zero"),
        (replace(ON, trace_rate=0), {"trace_count": "5"}, "sample rate must be non-zero"),
    ],
)
@pytest.mark.parametrize("model", ["", "one"])
def test_a_level_that_nothing_can_come_of(
    start: TraceSettings, values: dict[str, str], reason: str, model: str
) -> None:
    book = TraceBook(start)
    with pytest.raises(InvalidArgument) as caught:
        change(book, model, **values)
    assert str(caught.value) == f"Attempting to set invalid trace setting :{reason}"
    assert book.sampler(model).settings == start


def test_a_change_that_a_model_could_not_follow_changes_nothing() -> None:
    book = TraceBook(replace(ON, trace_level=("OFF",)))
    change(book, "one", trace_level="TIMESTAMPS")
    with pytest.raises(InvalidArgument, match="sample rate must be non-zero"):
        change(book, "", trace_rate="0")
    assert book.sampler("").settings.trace_rate == 1
    assert book.sampler("one").settings.trace_rate == 1


def test_a_change_restarts_the_counter_of_its_scope() -> None:
    book = TraceBook(replace(ON, trace_rate=3))
    change(book, "one", trace_rate="2")
    assert [book.sampler(name).sample() for name in ("one", "", "")] == [False] * 3
    change(book, "one", log_frequency="5")
    assert [book.sampler("one").sample() for _ in range(2)] == [False, True]
    assert book.sampler("").sample()  # the global counter went on
    [old, own] = change(book, "", log_frequency="7")
    assert (old.settings.trace_rate, own.settings.trace_rate) == (3, 2)
    assert [book.sampler("one").sample() for _ in range(2)] == [False, True]


def test_a_count_that_was_set_goes_on_from_what_is_left() -> None:
    book = TraceBook(ON)
    change(book, "", trace_count="5")
    change(book, "one", trace_count="3")
    assert book.sampler("").sample()
    assert book.sampler("one").sample()
    change(book, "", trace_rate="1")
    assert book.sampler("").settings.trace_count == 4
    assert book.sampler("one").settings.trace_count == 2
    change(book, "one", trace_count=None, trace_rate="1")
    assert book.sampler("one").settings.trace_count == 4


NAMES = ("trace_level", "trace_rate", "trace_count", "log_frequency")
WORDS = {
    "trace_level": st.sampled_from([("OFF",), ("TIMESTAMPS",), ("TIMESTAMPS", "TENSORS")]),
    "trace_rate": st.integers(1, 9),
    "trace_count": st.integers(-1, 9),
    "log_frequency": st.integers(0, 9),
}
VALUES = st.fixed_dictionaries({}, optional={name: st.none() | WORDS[name] for name in NAMES})


class Fallback(RuleBasedStateMachine):
    """The book against three dictionaries laid over each other."""

    def __init__(self) -> None:
        super().__init__()
        self.book = TraceBook(ON)
        self.scopes: dict[str, dict[str, Any]] = {"": {}, "one": {}, "two": {}}

    @rule(scope=st.sampled_from(["", "one", "two"]), values=VALUES)
    def change(self, scope: str, values: dict[str, Any]) -> None:
        written = {
            name: None if value is None else value if isinstance(value, tuple) else (str(value),)
            for name, value in values.items()
        }
        self.book.change(scope, TraceChanges(written))
        own = self.scopes[scope]
        for name, value in values.items():
            if value is None:
                own.pop(name, None)
            else:
                own[name] = value

    @invariant()
    def what_is_not_set_falls_back(self) -> None:
        for scope, own in self.scopes.items():
            settings = self.book.sampler(scope).settings
            for name in NAMES:
                layers = (own, self.scopes[""], {name: getattr(ON, name)})
                expected = next(layer[name] for layer in layers if name in layer)
                assert getattr(settings, name) == expected, (scope, name)

    @invariant()
    def models_with_nothing_of_their_own_share_the_global_sampler(self) -> None:
        for scope, own in self.scopes.items():
            shared = self.book.sampler(scope) is self.book.sampler("")
            assert shared == (not own or scope == "")


Fallback.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=12)
TestFallback = Fallback.TestCase
