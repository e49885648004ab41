"""An instance in a worker process trusts nothing that it is sent; the test plays the worker."""

import asyncio
import errno
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from microkernel import (
    DATA_TYPES,
    InferRequest,
    InferResponse,
    Internal,
    MicrokernelError,
    ModelConfig,
    Tensor,
    TransactionPolicy,
)
from microkernel.request import Answer
from microkernel.stats import Execution
from microkernel.workers import descriptors
from microkernel.workers.arena import Block
from microkernel.workers.channel import BlockingChannel
from microkernel.workers.contract import Result
from microkernel.workers.descriptors import Schema
from microkernel.workers.instance import Link, ProcessInstance
from microkernel.workers.parts import Moments, Part, part_message
from microkernel.workers.wire import HEADER, LARGEST_MESSAGE, Kind, frame

Ask = Callable[..., InferRequest]
TIMES = Execution(0, 1, 2, 3)


class Receiver:
    """Keeps what comes."""

    def __init__(self) -> None:
        self.came: list[str] = []

    def part(self, index: int, part: Part) -> None:
        answer = part.answer
        what = "none" if answer is None else str(answer)
        if isinstance(answer, Answer):
            what = bytes(answer.outputs[0].data).decode()
        self.came.append(f"{index}: {what}{'!' if part.final else ''}")

    def returned(self, times: Execution) -> None:
        self.came.append("returned")

    def over(self) -> None:
        self.came.append("over")


class Played:
    """An instance whose worker is the test."""

    def __init__(self, config: ModelConfig) -> None:
        ours, theirs = socket.socketpair()
        self.worker = BlockingChannel(theirs)
        self.killed: list[str] = []
        self.closed: list[str] = []
        self.signals: list[tuple[Kind, int]] = []
        self.schema = Schema.of(config)
        link = Link(
            ours,
            lambda: self.closed.append("closed"),
            self.killed.append,
            lambda kind, number: self.signals.append((kind, number)),
        )
        self.instance = ProcessInstance("odd_0", self.schema, link)
        self._theirs = theirs

    async def send(self, *messages: bytes) -> None:
        """Send, and wait until the loop has read it."""
        for message in messages:
            self.worker.send(message)
        for _ in range(4):
            await asyncio.sleep(0)

    def part(self, number: int, text: str | None = "text", *, final: bool = False) -> bytes:
        answer = None
        if text is not None:
            tensor = Tensor("Y", DATA_TYPES["UINT8"], (len(text),), text.encode())
            answer = InferResponse("", 1, "", (tensor,))
        return part_message(number, answer, self.schema, Moments(1, 2), final=final)[0]

    def result(self, *outcomes: MicrokernelError) -> bytes:
        return descriptors.result_message(outcomes, [], self.schema, TIMES)

    def close(self) -> None:
        self.instance.close()
        self._theirs.close()


@pytest.fixture
async def played(odd_config: Callable[..., ModelConfig]) -> AsyncIterator[Callable[..., Played]]:
    made: list[Played] = []

    def play(*, decoupled: bool = True) -> Played:
        policy = TransactionPolicy(decoupled=decoupled)
        made.append(Played(replace(odd_config(), model_transaction_policy=policy)))
        return made[-1]

    yield play
    for one in made:
        one.close()


async def test_parts_reach_their_batches(played: Callable[..., Played], ask: Ask) -> None:
    it, first, second = played(), Receiver(), Receiver()
    assert it.instance.stream([ask(1), ask(2)], [1, 1], first) == 0
    await it.send(it.part(1, "a"), it.part(1, "b", final=True), it.result())
    assert first.came == ["1: a", "1: b!", "returned"]
    assert it.instance.stream([ask(1)], [1], second) == 2
    await it.send(it.part(2, None, final=True), it.part(0, None, final=True))
    assert first.came[3:] == ["0: none!", "over"]
    assert second.came == ["0: none!"]
    await it.send(it.result())
    assert second.came == ["0: none!", "returned", "over"]
    assert it.killed == []


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (lambda it: [it.part(7)], "a response for request 7, which is not open"),
        (lambda it: [it.part(-1)], "a response for request -1, which is not open"),
        (lambda it: [it.part(0, final=True), it.part(0)], "a response for request 0, which is"),
        (lambda it: [it.result(), it.result()], "0 outcomes that nobody asked for"),
        (lambda it: [it.result(Internal("x"))], "1 outcomes that nobody asked for"),
        (lambda it: [frame(Kind.PART, b"short")], "ValueError("),
        (lambda it: [frame(Kind.RESULT, b"")], "error("),
        (lambda it: [frame(Kind.LOG, b"{}")], "a message of the kind LOG, which no instance sends"),
        (lambda it: [frame(Kind.FATAL, b"\xff")], "UnicodeDecodeError("),
        (
            lambda it: [
                part_message(0, None, it.schema, Moments(1, 2**62), final=True)[0],
            ],
            "ValueError('a part of a response is malformed')",
        ),
    ],
    ids=[
        "unknown",
        "negative",
        "after final",
        "twice",
        "outcomes",
        "short",
        "empty",
        "log",
        "last words",
        "late",
    ],
)
async def test_what_a_worker_cannot_have_to_say_ends_it(
    played: Callable[..., Played], ask: Ask, messages: Callable[[Played], list[bytes]], reason: str
) -> None:
    it, receiver = played(), Receiver()
    it.instance.stream([ask(1)], [1], receiver)
    await it.send(*messages(it))
    (killed,) = it.killed
    assert killed.startswith("it sent a message that cannot be read: ")
    assert reason in killed
    it.instance.fail(Internal("the worker died"))
    assert sum(came.endswith("!") for came in receiver.came) == 1
    assert receiver.came.count("returned") == 1
    assert receiver.came[-1] == "over"


async def test_deeply_nested_words_end_it(played: Callable[..., Played], ask: Ask) -> None:
    it, receiver = played(), Receiver()
    it.instance.stream([ask(1)], [1], receiver)
    text = b"[" * 100_000
    words = [0, 2, 1, 1, 2, 3, len(text), 0]
    with pytest.raises(RecursionError):
        json.loads(text)
    await it.send(descriptors.pack(Kind.PART, words, (text,)))
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(it.killed) == 1


@pytest.mark.parametrize("size", [LARGEST_MESSAGE + 1, 2**32 - 1])
async def test_a_message_that_is_too_long_is_not_collected(
    played: Callable[..., Played], size: int
) -> None:
    it = played()
    await it.send(HEADER.pack(size, Kind.PART) + bytes(100))
    assert it.closed == ["closed"]


async def test_an_ordinary_model_has_no_parts(played: Callable[..., Played], ask: Ask) -> None:
    it = played(decoupled=False)
    results: list[Result] = []
    it.instance.execute([ask(1)], [1], results.append)
    await it.send(it.part(0, final=True))
    assert "which is not open" in it.killed[0]
    it.instance.fail(Internal("the worker died"))
    assert [str(answer) for answer in results[0].answers] == ["the worker died"]


@pytest.mark.parametrize("count", [0, 2])
async def test_an_ordinary_batch_has_one_outcome_per_request(
    played: Callable[..., Played], ask: Ask, count: int
) -> None:
    it = played(decoupled=False)
    results: list[Result] = []
    it.instance.execute([ask(1)], [1], results.append)
    await it.send(it.result(*[Internal("x")] * count))
    assert f"{count} outcomes that nobody asked for" in it.killed[0]
    assert results == []


async def test_only_what_runs_is_told_of_its_caller(
    played: Callable[..., Played], ask: Ask
) -> None:
    it = played()
    receiver: Any = Receiver()
    number = it.instance.stream([ask(1), ask(2)], [1, 1], receiver)
    it.instance.pause(number + 1)
    it.instance.cancel(number + 1)
    await it.send(it.part(number, None, final=True), it.result())
    for tell in (it.instance.cancel, it.instance.pause, it.instance.resume):
        tell(number)
        tell(number + 2)
    it.instance.resume(number + 1)
    assert it.signals == [(Kind.PAUSE, 1), (Kind.CANCEL, 1), (Kind.RESUME, 1)]


async def test_an_ordinary_request_that_runs_can_be_cancelled(
    played: Callable[..., Played], ask: Ask
) -> None:
    it = played(decoupled=False)
    results: list[Result] = []
    number = it.instance.execute([ask(1)], [1], results.append)
    it.instance.cancel(number)
    await it.send(it.result(Internal("x")))
    it.instance.cancel(number)
    assert it.signals == [(Kind.CANCEL, number)]
    assert len(results) == 1


async def test_without_memory_a_decoupled_batch_fails_and_the_next_may_run(
    played: Callable[..., Played], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(number: int, size: int) -> Block:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    it, first, second = played(), Receiver(), Receiver()
    with monkeypatch.context() as patch:
        patch.setattr(Block, "create", no_memory)
        it.instance.stream([ask(1), ask(2)], [1, 1], first)
    text = "no memory for 64 bytes of input for 'odd_0': [Errno 12] Cannot allocate memory!"
    assert first.came == [f"0: {text}", f"1: {text}", "returned", "over"]
    number = it.instance.stream([ask(1)], [1], second)
    await it.send(it.part(number, "fine", final=True), it.result())
    assert second.came == ["0: fine!", "returned", "over"]
