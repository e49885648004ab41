"""A line of replies: whoever is finished first, the answers leave in the order of arrival."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduling_machines import RunLong

from microkernel import (
    DynamicBatching,
    InferResponse,
    Internal,
    MicrokernelError,
    ModelConfig,
)
from microkernel.scheduling.ordering import Line, Place


def response(name: str, *, final: bool = True) -> InferResponse:
    return InferResponse("m", 1, name, (), final=final)


class Stream:
    """A reply of many responses. `seen` is what its reader was shown."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.over = False
        self._held = False
        self._kept: list[str] = []

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        self._held = False
        self.seen += self._kept
        self._kept = []

    def done(self) -> bool:
        return self.over

    def set_result(self, response: InferResponse) -> None:
        (self._kept if self._held else self.seen).append(response.id)
        self.over = self.over or response.final

    def set_exception(self, error: MicrokernelError) -> None:
        self.set_result(response(str(error)))


@pytest.mark.parametrize(
    ("preserves", "line"), [(DynamicBatching(preserve_ordering=True), True), (None, False)]
)
def test_only_a_dynamic_batcher_that_is_told_keeps_the_order(
    preserves: DynamicBatching | None, line: bool
) -> None:
    assert (Line.of(ModelConfig(dynamic_batching=preserves)) is not None) is line
    assert Line.of(ModelConfig(dynamic_batching=DynamicBatching())) is None


@pytest.fixture
async def future() -> Callable[[], Any]:
    return asyncio.get_running_loop().create_future


async def test_an_answer_waits_for_the_earlier_ones(future: Callable[[], Any]) -> None:
    line, replies = Line(), [future() for _ in range(4)]
    places = [line.place(reply) for reply in replies]
    places[2].set_result(response("2"))
    places[1].set_exception(Internal("1 failed"))
    assert not any(reply.done() for reply in replies)
    assert [place.done() for place in places] == [False, True, True, False]
    places[0].set_result(response("0"))
    assert [reply.done() for reply in replies] == [True, True, True, False]
    assert [replies[index].result().id for index in (0, 2)] == ["0", "2"]
    with pytest.raises(Internal, match="1 failed"):
        replies[1].result()
    places[3].set_result(response("3"))
    assert replies[3].result().id == "3"


async def test_a_caller_who_goes_gives_up_the_place(future: Callable[[], Any]) -> None:
    line, replies = Line(), [future() for _ in range(3)]
    places = [line.place(reply) for reply in replies]
    places[2].set_result(response("2"))
    replies[1].cancel()
    places[1].leave()
    places[1].leave()
    assert not replies[2].done()
    replies[0].cancel()
    places[0].leave()
    assert replies[2].result().id == "2"
    assert places[0].done()


async def test_a_caller_who_goes_while_the_answer_waits(future: Callable[[], Any]) -> None:
    line, replies = Line(), [future() for _ in range(2)]
    places = [line.place(reply) for reply in replies]
    places[1].set_result(response("1"))
    replies[1].cancel()
    places[1].leave()
    places[0].set_result(response("0"))
    assert replies[0].result().id == "0"
    assert replies[1].cancelled()


async def test_a_stream_is_shown_when_its_turn_comes(future: Callable[[], Any]) -> None:
    line, first, stream, last = Line(), future(), Stream(), future()
    places = [line.place(first), line.place(stream), line.place(last)]
    places[2].set_result(response("last"))
    places[1].set_result(response("1", final=False))
    assert stream.seen == []
    places[0].set_result(response("first"))
    assert stream.seen == ["1"]
    places[1].set_result(response("2", final=False))
    assert (stream.seen, last.done()) == (["1", "2"], False)
    places[1].set_exception(Internal("3"))
    assert (stream.seen, last.done()) == (["1", "2", "3"], True)


async def test_what_comes_for_a_stream_that_was_left_still_arrives(
    future: Callable[[], Any],
) -> None:
    """For its end must be noticed."""
    line, stream = Line(), Stream()
    line.place(future())
    place = line.place(stream)
    place.leave()
    place.set_result(response("end"))
    assert stream.over


class Noted(Stream):
    """Notes on a list that is shared what its reader sees."""

    def __init__(self, out: list[int]) -> None:
        super().__init__()
        self._out = out

    def _note(self) -> None:
        self._out += map(int, self.seen)
        self.seen.clear()

    def release(self) -> None:
        super().release()
        self._note()

    def set_result(self, response: InferResponse) -> None:
        super().set_result(response)
        self._note()


class LineMachine(RuleBasedStateMachine):
    """Answers, errors and departures in any order. `out` is the order in which answers left."""

    @initialize()
    def start(self) -> None:
        self.line = Line()
        self.out: list[int] = []
        self.standing: list[tuple[int, Place]] = []
        self.answered: list[int] = []
        self.count = 0

    @rule()
    def come(self) -> None:
        number, self.count = self.count, self.count + 1
        self.standing.append((number, self.line.place(Noted(self.out))))

    @precondition(lambda self: self.standing)
    @rule(data=st.data(), fails=st.booleans())
    def answer(self, data: st.DataObject, fails: bool) -> None:
        at = data.draw(st.integers(0, len(self.standing) - 1))
        number, place = self.standing.pop(at)
        self.answered.append(number)
        if fails:
            place.set_exception(Internal(str(number)))
        else:
            place.set_result(response(str(number)))

    @precondition(lambda self: self.standing)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.standing) - 1))
        _, place = self.standing.pop(at)
        place.leave()

    @invariant()
    def what_is_out_is_what_nobody_stands_before(self) -> None:
        first = min((number for number, _ in self.standing), default=self.count)
        assert self.out == sorted(number for number in self.answered if number < first)
        assert len(self.line._places) <= len(self.standing) + len(self.answered)

    def teardown(self) -> None:
        for _, place in self.standing:
            place.leave()
        assert self.out == sorted(self.answered)
        assert not self.line._places


LineMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLine = LineMachine.TestCase


@pytest.mark.slow
def test_the_line_for_minutes(run_long: RunLong) -> None:
    run_long(LineMachine)
