"""A dynamic batcher with limits in a model version: every request is answered once, and counted as
Triton counts it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from microkernel import (
    DynamicBatching,
    InferRequest,
    Internal,
    MicrokernelError,
    ResponseStream,
    Tensor,
    Unavailable,
)
from microkernel.config.model import QueuePolicy
from microkernel.models.streams import STALL_LIMIT
from microkernel.models.version import ModelVersion
from microkernel.request import Answer
from microkernel.responses import HIGH_COUNT
from microkernel.stats import Execution
from microkernel.workers.parts import Part

pytestmark = pytest.mark.virtual_time

Ask = Callable[..., InferRequest]
Serve = Callable[..., Awaitable[tuple[ModelVersion, Any]]]
Said = list[tuple[float, str, str]]
TIMES = Execution(10, 20, 30, 40)


class Callers:
    """Those who ask a model; `said` is when who heard what."""

    def __init__(self, model: ModelVersion, ask: Ask) -> None:
        self.said: Said = []
        self._model = model
        self._ask = ask
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def call(self, name: str, rows: int = 1, **more: Any) -> None:
        request = replace(self._ask(*[[1]] * rows, request_id=name), **more)
        self._tasks[name] = asyncio.ensure_future(self._infer(name, request))

    async def _infer(self, name: str, request: InferRequest) -> None:
        try:
            heard = (await self._model.infer(request)).id
        except MicrokernelError as error:
            heard = str(error)
        self.said.append((asyncio.get_running_loop().time(), name, heard))

    def leave(self, name: str) -> None:
        self._tasks[name].cancel()

    async def all(self) -> Said:
        """What was said, when nobody waits any more."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        return self.said


def refusing(**more: Any) -> DynamicBatching:
    return DynamicBatching(default_queue_policy=QueuePolicy(**more))


def failures(model: ModelVersion) -> dict[str, int]:
    return {reason.value: n for reason, n in model.stats.failures.items() if n}


async def test_a_full_queue_refuses_and_counts_nothing(serve: Serve, ask: Ask) -> None:
    """Ten requests for a queue of two: one runs, two wait, seven are refused."""
    model, _ = await serve(refusing(max_queue_size=2), largest=1)
    callers = Callers(model, ask)
    for number in range(10):
        callers.call(str(number))
    await asyncio.sleep(1)
    assert model.stats.pending == 2
    assert [name for _, name, _ in callers.said] == [str(number) for number in range(3, 10)]
    said = await callers.all()
    assert said[:1] == [(0, "3", "[request id: 3] Exceeds maximum queue size")]
    assert [(at, name) for at, name, _ in said[7:]] == [(10, "0"), (20, "1"), (30, "2")]
    assert (model.stats.success.count, model.stats.fail.count, model.stats.pending) == (3, 0, 0)
    await model.drain()


async def test_a_request_that_is_too_late_fails_and_is_counted(serve: Serve, ask: Ask) -> None:
    model, worker = await serve(refusing(default_timeout_microseconds=4_000_000))
    callers = Callers(model, ask)
    callers.call("runs")
    await asyncio.sleep(1)
    callers.call("late")
    await asyncio.sleep(1)
    assert model.stats.pending == 1
    said = await callers.all()
    assert said == [(5, "late", "Request timeout expired"), (10, "runs", "runs")]
    assert failures(model) == {"REJECTED": 1}
    assert (model.stats.fail.count, model.stats.success.count, model.stats.pending) == (1, 1, 0)
    assert (model.stats.queue.count, model.stats.inference_count) == (1, 1)
    assert worker.instances[0].batches == [(0, ["runs"])]
    await model.drain()


async def test_one_that_goes_while_it_waits_is_counted_as_cancelled(serve: Serve, ask: Ask) -> None:
    model, worker = await serve(refusing(default_timeout_microseconds=50_000_000))
    callers = Callers(model, ask)
    for name in ("runs", "goes", "stays"):
        callers.call(name)
    await asyncio.sleep(1)
    callers.leave("goes")
    assert [name for _, name, _ in await callers.all()] == ["runs", "stays"]
    assert failures(model) == {"CANCELED": 1}
    assert worker.instances[0].batches == [(0, ["runs"]), (10, ["stays"])]
    assert model.stats.pending == 0
    await model.drain()


async def test_a_delayed_request_is_a_success(serve: Serve, ask: Ask) -> None:
    policy = QueuePolicy("DELAY", default_timeout_microseconds=2_000_000)
    model, worker = await serve(DynamicBatching(default_queue_policy=policy), largest=1)
    callers = Callers(model, ask)
    for name in ("runs", "delayed"):
        callers.call(name)
    await asyncio.sleep(9)
    callers.call("young")
    assert [name for _, name, _ in await callers.all()] == ["runs", "young", "delayed"]
    assert (failures(model), model.stats.success.count) == ({}, 3)
    assert worker.instances[0].batches == [(0, ["runs"]), (10, ["young"]), (20, ["delayed"])]


async def test_priorities_in_a_batch(serve: Serve, ask: Ask) -> None:
    model, worker = await serve(DynamicBatching(priority_levels=2, default_priority_level=2))
    callers = Callers(model, ask)
    callers.call("runs")
    for name, priority in (("usual", 0), ("low", 2), ("high", 1)):
        callers.call(name, rows=2, priority=priority)
    await callers.all()
    assert worker.instances[0].batches == [
        (0, ["runs"]),
        (10, ["high", "usual"]),
        (20, ["low"]),
    ]
    assert {size: b.compute_infer.count for size, b in model.stats.batches.items()} == {
        1: 1,
        4: 1,
        2: 1,
    }


async def test_nobody_is_left_when_the_worker_dies(serve: Serve, ask: Ask) -> None:
    model, worker = await serve(refusing(default_timeout_microseconds=60_000_000))
    callers = Callers(model, ask)
    for name in ("runs", "waits"):
        callers.call(name)
    await asyncio.sleep(1)
    worker.die(Unavailable("the worker died"))
    said = await callers.all()
    assert [name for _, name, _ in said] == ["runs", "waits"]
    assert "no instance of model 'odd' is alive" in said[1][2]
    assert failures(model) == {"BACKEND": 1, "OTHER": 1}
    assert model.stats.pending == 0
    await model.stop()


ORDERED = DynamicBatching(preserve_ordering=True)


async def test_answers_leave_in_the_order_of_arrival(serve: Serve, ask: Ask) -> None:
    model, worker = await serve(ORDERED, instances=2, largest=1)
    quick = {"odd_0": 30, "odd_1": 1}
    for instance in worker.instances:
        instance._seconds = quick[instance.name]
    callers = Callers(model, ask)
    for name in "abcd":
        callers.call(name)
    said = await callers.all()
    assert [heard for _, _, heard in said] == ["a", "b", "c", "d"]
    first_on = next(i.name for i in worker.instances if (0, ["a"]) in i.batches)
    assert said[0][0] == quick[first_on]
    assert (model.stats.success.count, model.stats.pending) == (4, 0)
    await model.drain()


@pytest.fixture
async def overtaken(serve: Serve, ask: Ask) -> tuple[ModelVersion, Any, Callers]:
    """A slow request "a", and a quick one "b" behind it, that has been answered after 1 second."""
    model, worker = await serve(ORDERED, instances=2, largest=1)
    callers = Callers(model, ask)
    callers.call("a")
    await asyncio.sleep(0)
    slow = next(instance for instance in worker.instances if instance.batches)
    for instance in worker.instances:
        instance._seconds = 30 if instance is slow else 1
    callers.call("b")
    await asyncio.sleep(5)
    assert model.stats.success.count == 1
    assert callers.said == []
    return model, worker, callers


async def test_who_goes_does_not_hold_up_the_others(
    overtaken: tuple[ModelVersion, Any, Callers],
) -> None:
    model, _, callers = overtaken
    callers.leave("a")
    assert await callers.all() == [(5, "b", "b")]
    await model.drain()
    await asyncio.sleep(100)
    assert model.stats.success.count == 2


async def test_an_error_keeps_its_place(
    overtaken: tuple[ModelVersion, Any, Callers],
) -> None:
    _, worker, callers = overtaken
    quick = next(instance for instance in worker.instances if instance._seconds == 1)
    quick.answer = lambda _: Internal("not this one")
    callers.call("c")
    said = await callers.all()
    assert said == [(10, "a", "a"), (10, "b", "b"), (10, "c", "not this one")]


async def test_one_that_is_refused_stands_in_nobody_s_way(serve: Serve, ask: Ask) -> None:
    dynamic = replace(ORDERED, default_queue_policy=QueuePolicy(max_queue_size=1))
    model, _ = await serve(dynamic, largest=1)
    callers = Callers(model, ask)
    for name in "abcd":
        callers.call(name)
    said = await callers.all()
    assert [(at, name) for at, name, _ in said] == [(0, "c"), (0, "d"), (10, "a"), (20, "b")]
    await model.drain()


async def test_one_that_is_too_late_keeps_its_place(serve: Serve, ask: Ask) -> None:
    policy = QueuePolicy(default_timeout_microseconds=2_000_000)
    model, _ = await serve(replace(ORDERED, default_queue_policy=policy), largest=1)
    callers = Callers(model, ask)
    for name in "ab":
        callers.call(name)
    assert await callers.all() == [(10, "a", "a"), (10, "b", "Request timeout expired")]
    assert failures(model) == {"REJECTED": 1}


def number(value: int, *, final: bool = False) -> Part:
    return Part(
        Answer((Tensor.from_numpy("Y", np.array([[value]], np.int32)),)), final, 100, 110, 113
    )


async def read(stream: ResponseStream) -> list[int]:
    return [r.outputs[0].as_numpy().item() async for r in stream if r.outputs]


@pytest.fixture
async def two_streams(serve: Serve, ask: Ask) -> tuple[ModelVersion, Any, list[ResponseStream]]:
    """Two requests of a decoupled model on one instance, which are numbers 100 and 101 there, and
    both run."""
    model, worker = await serve(ORDERED, largest=1, decoupled=True)
    (instance,) = worker.instances
    streams = []
    for value in (1, 2):
        streams.append(await model.stream(ask(value)))
        instance.flights.returned(TIMES)
    return model, instance, streams


Two = tuple[ModelVersion, Any, list[ResponseStream]]


async def test_streams_are_shown_one_after_the_other(two_streams: Two) -> None:
    model, instance, (first, second) = two_streams
    for value in (21, 22):
        instance.flights.part(101, number(value))
    instance.flights.part(101, number(23, final=True))
    reading = asyncio.ensure_future(read(second))
    instance.flights.part(100, number(11))
    await asyncio.sleep(1)
    assert (reading.done(), second.held) == (False, True)
    instance.flights.part(100, number(12, final=True))
    assert await reading == [21, 22, 23]
    assert await read(first) == [11, 12]
    assert model.stats.success.count == 2
    await model.drain()


@pytest.mark.parametrize("leaver", [0, 1])
async def test_a_stream_that_is_left_holds_up_nobody(two_streams: Two, leaver: int) -> None:
    model, instance, streams = two_streams
    streams[leaver].close()
    assert instance.told == [("cancel", 100 + leaver)]
    stays = 1 - leaver
    reading = asyncio.ensure_future(read(streams[stays]))
    instance.flights.part(100 + stays, number(5, final=True))
    assert await reading == [5]
    instance.flights.part(100 + leaver, number(6, final=True))
    await model.drain()


async def test_a_stream_that_must_wait_stops_its_model_and_is_not_given_up(
    two_streams: Two,
) -> None:
    _, instance, (first, second) = two_streams
    for value in range(HIGH_COUNT + 1):
        instance.flights.part(101, number(value))
    assert instance.told == [("pause", 101)]
    await asyncio.sleep(3 * STALL_LIMIT)
    assert instance.told == [("pause", 101)]
    reading = asyncio.ensure_future(read(second))
    first.close()
    await asyncio.sleep(1)
    assert instance.told == [("pause", 101), ("cancel", 100), ("resume", 101)]
    instance.flights.part(101, number(-1, final=True))
    assert await reading == [*range(HIGH_COUNT + 1), -1]


async def test_clients_of_a_model_take_turns(serve: Serve, ask: Ask) -> None:
    """Without a dynamic batcher, too."""
    model, _ = await serve(None, FAIR_QUEUE_KEY="client", FAIR_QUEUE_MAX_PER_KEY="4")
    callers = Callers(model, ask)
    for n in range(6):
        callers.call(f"flood{n}", parameters={"client": "flood"})
    callers.call("polite", parameters={"client": "polite"})
    said = await callers.all()
    assert [name for at, name, _ in said if at] == [
        "flood0",
        "flood1",
        "polite",
        "flood2",
        "flood3",
        "flood4",
    ]
    assert said[0][1:] == (
        "flood5",
        "[request id: flood5] Exceeds maximum queue size of one client: 4 requests of 'client' "
        "'flood' wait already",
    )


async def test_what_has_no_chance_is_refused_by_what_batches_took(serve: Serve, ask: Ask) -> None:
    policy = QueuePolicy(default_timeout_microseconds=15_000_000)
    dynamic = DynamicBatching(default_queue_policy=policy)
    model, _ = await serve(dynamic, largest=1, REJECT_HOPELESS="true")
    assert model.stats.learn is not None
    model.stats.learn(1, 10.0)  # the loop's time is not the clock that executions are measured by
    callers = Callers(model, ask)
    for n in range(4):
        callers.call(str(n))
    said = await callers.all()
    assert [(at, name) for at, name, _ in said] == [(0, "3"), (10, "0"), (15, "2"), (20, "1")]
    assert "Request would time out before its turn" in said[0][2]
    assert said[2][2] == "Request timeout expired"
    assert failures(model) == {"REJECTED": 1}


@pytest.mark.parametrize("decoupled", [False, True])
async def test_every_execution_is_learned_from(serve: Serve, ask: Ask, decoupled: bool) -> None:
    policy = QueuePolicy(default_timeout_microseconds=15_000_000)
    dynamic = DynamicBatching(default_queue_policy=policy)
    model, worker = await serve(dynamic, decoupled=decoupled, REJECT_HOPELESS="true")
    learned: list[int] = []
    model.stats.learn = lambda size, seconds: learned.append(size)
    stream = await model.stream(ask(*[[1]] * 3))
    if decoupled:
        worker.instances[0].flights.part(100, number(1, final=True))
        worker.instances[0].flights.returned(TIMES)
    assert [response.final async for response in stream] == [True]
    assert learned == [3]


async def test_what_has_no_chance_is_refused_where_the_delay_is_adaptive(
    serve: Serve, ask: Ask
) -> None:
    """Both learn from the same executions."""
    policy = QueuePolicy(default_timeout_microseconds=15_000_000)
    dynamic = DynamicBatching(default_queue_policy=policy)
    model, _ = await serve(dynamic, largest=1, REJECT_HOPELESS="true", ADAPTIVE_QUEUE_DELAY="true")
    assert model.stats.learn is not None
    model.stats.learn(1, 10.0)
    callers = Callers(model, ask)
    for n in range(4):
        callers.call(str(n))
    assert (await callers.all())[0][:2] == (0, "3")
