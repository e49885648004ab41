"""The stream of a request's responses: their order, its end, and how it holds the model back."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from microkernel import DATA_TYPES, InferResponse, Internal, ResponseStream, Tensor
from microkernel.responses import HIGH_BYTES, HIGH_COUNT, LOW_BYTES, LOW_COUNT


def response(number: int = 0, *, final: bool = False, size: int = 0) -> InferResponse:
    outputs = (Tensor("Y", DATA_TYPES["UINT8"], (size,), memoryview(bytes(size))),)
    return InferResponse("m", 1, str(number), outputs, final=final)


def opened(**options: Any) -> tuple[ResponseStream, list[str]]:
    """A stream, and what it tells its maker."""
    told: list[str] = []
    stream = ResponseStream(
        lambda: told.append("abandon"),
        lambda hold: told.append("hold" if hold else "go"),
        **options,
    )
    return stream, told


async def test_it_ends_with_the_final_response() -> None:
    stream, told = opened()
    for number in range(3):
        stream.put(response(number, final=number == 2))
    stream.put(response(3, final=True))
    assert stream.ended
    assert [r.id async for r in stream] == ["0", "1", "2"]
    stream.close()
    assert told == []


async def test_a_reader_waits() -> None:
    stream, _ = opened()
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert not reading.done()
    stream.put(response(1))
    assert (await reading).id == "1"


async def test_a_cancelled_reader_loses_nothing() -> None:
    stream, _ = opened()
    for _ in range(2):
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.sleep(0)
    stream.put(response(1))
    assert (await anext(stream)).id == "1"


async def test_closing_abandons_once_and_ends_a_reader() -> None:
    stream, told = opened()
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    stream.close()
    stream.close()
    stream.put(response(1, final=True))
    with pytest.raises(StopAsyncIteration):
        await reading
    assert told == ["abandon"]
    assert [r async for r in stream] == []


async def test_responses_are_changed_as_they_are_read() -> None:
    stream, _ = opened()
    seen: list[str] = []

    async def change(given: InferResponse) -> InferResponse:
        seen.append(given.id)
        await asyncio.sleep(0)
        if given.id == "2":
            raise Internal("this one cannot be")
        return replace(given, id=given.id + "'")

    stream.then(change)
    stream.then(change)
    stream.put(response(1, size=1))
    stream.put(response(2, size=1))
    stream.put(InferResponse("m", 1, "3", (), flag_only=True))
    assert seen == []
    first, second, third = [r async for r in stream]
    assert (first.id, third.id, third.flag_only) == ("1''", "3", True)
    assert (str(second.error), second.outputs, second.final) == ("this one cannot be", (), False)


async def test_a_reader_cancelled_in_a_change_loses_nothing() -> None:
    stream, _ = opened()
    waits = asyncio.Event()

    async def change(given: InferResponse) -> InferResponse:
        await waits.wait()
        return given

    stream.then(change)
    stream.put(response(1, size=1))
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    waits.set()
    assert (await anext(stream)).id == "1"


async def test_closing_while_a_response_is_changed_ends_the_reader() -> None:
    stream, told = opened()
    waits = asyncio.Event()

    async def change(given: InferResponse) -> InferResponse:
        await waits.wait()
        return given

    stream.then(change)
    stream.put(response(1, size=1))
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    stream.close()
    waits.set()
    with pytest.raises(StopAsyncIteration):
        await reading
    assert told == ["abandon"]


@pytest.mark.parametrize(("size", "before"), [(1, HIGH_COUNT), (1 << 20, HIGH_BYTES >> 20)])
async def test_the_model_is_held_back_and_let_go(size: int, before: int) -> None:
    stream, told = opened()
    for number in range(before):
        stream.put(response(number, size=size))
    assert told == []
    stream.put(response(before, size=size))
    assert told == ["hold"]
    low = LOW_COUNT if size == 1 else LOW_BYTES >> 20
    for _ in range(before - low):
        await anext(stream)
    assert told == ["hold"]
    await anext(stream)
    assert told == ["hold", "go"]


async def test_nothing_is_said_after_the_end() -> None:
    stream, told = opened()
    for number in range(HIGH_COUNT + 1):
        stream.put(response(number))
    stream.put(response(9999, final=True))
    assert len([r async for r in stream]) == HIGH_COUNT + 2
    assert told == ["hold"]


class StreamMachine(RuleBasedStateMachine):
    """A stream beside a list: nothing is lost, doubled or out of order, and the model is held back
    exactly between the marks."""

    def __init__(self) -> None:
        super().__init__()
        self.stream, self.told = opened()
        self.put_in: list[str] = []
        self.read: list[str] = []
        self.sizes: dict[str, int] = {}
        self.final = self.closed = False
        self.loop = asyncio.new_event_loop()

    def teardown(self) -> None:
        self.loop.close()

    @rule(size=st.sampled_from([0, 1 << 10, 1 << 20, 5 << 20]), count=st.sampled_from([1, 3, 600]))
    def put(self, size: int, count: int) -> None:
        for _ in range(count if size < 1 << 20 else 1):
            name = str(len(self.sizes))
            self.sizes[name] = size
            self.stream.put(replace(response(size=size), id=name))
            if not self.final and not self.closed:
                self.put_in.append(name)

    @rule()
    def finish(self) -> None:
        self.stream.put(InferResponse("m", 1, "final", (), flag_only=True))
        if not self.final and not self.closed:
            self.final = True
            self.put_in.append("final")

    @rule(count=st.sampled_from([1, 5, 900]))
    def take(self, count: int) -> None:
        for _ in range(min(count, self.stream.buffered)):
            self.read.append(self.loop.run_until_complete(anext(self.stream)).id)

    @precondition(lambda self: not self.closed)
    @rule()
    def close(self) -> None:
        self.stream.close()
        self.closed = True
        self.put_in = list(self.read)
        assert self.told.count("abandon") == (0 if self.final else 1)

    def unread(self) -> Iterator[str]:
        return iter(self.put_in[len(self.read) :])

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.read == self.put_in[: len(self.read)]
        assert self.stream.buffered == len(list(self.unread()))

    @invariant()
    def the_marks_hold(self) -> None:
        marks = [word for word in self.told if word != "abandon"]
        assert marks == ["hold", "go"] * (len(marks) // 2) + ["hold"] * (len(marks) % 2)
        if self.final or self.closed:
            return
        waiting = sum(self.sizes[name] for name in self.unread())
        if waiting > HIGH_BYTES or self.stream.buffered > HIGH_COUNT:
            assert marks[-1:] == ["hold"]
        if waiting <= LOW_BYTES and self.stream.buffered <= LOW_COUNT:
            assert marks[-1:] in ([], ["go"])


TestStreamMachine = StreamMachine.TestCase
TestStreamMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
