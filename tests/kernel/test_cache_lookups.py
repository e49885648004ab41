"""A version whose responses are kept: whatever the cache does, every request is answered once, in
its turn, and counted."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from microkernel import (
    Cache,
    DynamicBatching,
    InferRequest,
    Internal,
    ModelConfig,
    Placement,
    Tensor,
    Unavailable,
)
from microkernel.caching import lookups
from microkernel.caching.lookups import ModelCache
from microkernel.models.crew import Crew, CrewEvents
from microkernel.models.version import ModelVersion
from microkernel.request import Answer, Sequence

pytestmark = pytest.mark.virtual_time

Serve = Callable[..., Awaitable[tuple[ModelVersion, Any]]]
Ask = Callable[..., InferRequest]


class Table(Cache):
    """A cache whose answers take some seconds of the loop's time."""

    def __init__(self, seconds: float = 0.0, error: BaseException | None = None) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.seconds = seconds
        self.error = error
        self.insert_error: BaseException | None = None
        self.insert_seconds = 0.0

    async def lookup(self, key: bytes) -> bytes | None:
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.entries.get(key)

    async def insert(self, key: bytes, value: bytes) -> None:
        if self.insert_error is not None:
            raise self.insert_error
        if self.insert_seconds:
            await asyncio.sleep(self.insert_seconds)
        self.entries[key] = value


@pytest.fixture
def serve(odd_config: Callable[..., ModelConfig], fake_worker: Any) -> Serve:
    """`model, worker = await serve(cache, ordered=False)`: a version on two instances in memory,
    which take 10 seconds for a batch."""

    async def make(cache: Cache, ordered: bool = False) -> tuple[ModelVersion, Any]:
        dynamic = DynamicBatching(preserve_ordering=True) if ordered else None
        worker, config = fake_worker(), odd_config(max_batch_size=8, dynamic=dynamic)
        places = [Placement(f"odd_{i}", "KIND_CPU") for i in range(2)]

        async def launch() -> Any:
            raise Unavailable("no process")

        def crew(events: CrewEvents) -> Crew:
            return Crew(launch, config, [places], events)

        kept = ModelCache(cache, config, 3, b"files")
        model = ModelVersion(config, 3, crew, cache=kept)
        await model.start(worker)
        return model, worker

    return make


def numbers(response: Any) -> list[list[int]]:
    rows: list[list[int]] = response.outputs[0].as_numpy().tolist()
    return rows


def counts(model: ModelVersion) -> tuple[int, int, int, int, int]:
    """Successes, hits, misses, failures, executions."""
    s = model.stats
    return (
        *(s.success.count, s.cache_hit.count, s.cache_miss.count, s.fail.count),
        s.execution_count,
    )


def ran(worker: Any) -> int:
    return sum(len(instance.batches) for instance in worker.instances)


async def test_a_hit_takes_no_time_and_no_instance(serve: Serve, ask: Ask) -> None:
    model, worker = await serve(Table())
    loop = asyncio.get_running_loop()
    first = await model.infer(ask(1, 2, request_id="a"))
    assert loop.time() == 10
    second = await model.infer(ask(1, 2, request_id="b"))
    assert loop.time() == 10
    assert numbers(first) == numbers(second) == [[1, 2]]
    assert (second.model_name, second.version, second.id) == ("odd", 3, "b")
    assert ran(worker) == 1
    assert counts(model) == (2, 1, 1, 0, 1)
    assert model.stats.inference_count == model.stats.compute.compute_infer.count == 1
    assert model.stats.queue.count == 2


async def test_two_that_are_on_their_way_both_miss(serve: Serve, ask: Ask) -> None:
    model, worker = await serve(Table())
    await asyncio.gather(model.infer(ask(1)), model.infer(ask(1)))
    assert ran(worker) == 2
    await model.infer(ask(1))
    assert counts(model) == (3, 1, 2, 0, 2)


async def test_the_time_of_the_cache_is_part_of_a_miss(serve: Serve, ask: Ask) -> None:
    model, _ = await serve(Table())
    await model.infer(ask(1))
    stats = model.stats
    assert 0 < stats.cache_miss.ns <= stats.success.ns


@pytest.mark.parametrize(
    "request_",
    [{"sequence": Sequence(5)}, {"sequence": Sequence("five", start=True)}],
)
async def test_requests_that_are_not_covered(
    serve: Serve, ask: Ask, request_: dict[str, Any]
) -> None:
    table = Table()
    model, worker = await serve(table)
    for _ in range(2):
        await model.infer(replace(ask(1), **request_))
        async for _ in await model.stream(replace(ask(1), **request_)):
            pass
    assert (ran(worker), table.entries) == (4, {})
    assert counts(model) == (4, 0, 0, 0, 4)


async def test_a_stream(serve: Serve, ask: Ask) -> None:
    model, worker = await serve(Table(seconds=1))
    found = []
    for name in "ab":
        stream = await model.stream(ask(4, request_id=name))
        found += [(response.id, numbers(response), response.final) async for response in stream]
    assert found == [("a", [[4]], True), ("b", [[4]], True)]
    assert ran(worker) == 1
    assert counts(model) == (2, 1, 1, 0, 1)


async def test_errors_are_not_kept(serve: Serve, ask: Ask) -> None:
    table = Table()
    model, worker = await serve(table)
    for instance in worker.instances:
        instance.answer = lambda request: Internal("not today")
    for _ in range(2):
        with pytest.raises(Internal, match="not today"):
            await model.infer(ask(1))
        async for response in await model.stream(ask(1)):
            assert response.error is not None
    assert table.entries == {}
    assert counts(model) == (0, 0, 0, 4, 4)


async def test_parameters_of_a_response_are_not_kept(serve: Serve, ask: Ask) -> None:
    model, worker = await serve(Table())
    for instance in worker.instances:
        instance.answer = lambda r: Answer((replace(r.inputs[0], name="Y"),), {"k": 1})
    assert [dict((await model.infer(ask(1))).parameters) for _ in range(2)] == [{"k": 1}, {}]


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
async def test_a_cache_that_fails_costs_no_request(
    serve: Serve, ask: Ask, kind: type[BaseException]
) -> None:
    table = Table(error=kind("no cache today"))
    table.insert_error = kind("nor tomorrow")
    model, _ = await serve(table)
    with capture_logs() as logs:
        for _ in range(3):
            assert numbers(await model.infer(ask(1))) == [[1]]
    assert counts(model) == (3, 0, 3, 0, 3)
    # The requests take 10 seconds each, and so long is it silent.
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
        "response cache failed"
    ] * 3
    with capture_logs() as logs:
        await asyncio.gather(*(model.infer(ask(i)) for i in range(20)))
    assert len([line for line in logs if line["log_level"] == "warning"]) == 1


@pytest.mark.parametrize("value", [b"", b"nonsense", b"\x80\x04N.", bytes(500)])
async def test_a_value_that_is_none_is_a_miss(serve: Serve, ask: Ask, value: bytes) -> None:
    table = Table()
    model, _ = await serve(table)
    await model.infer(ask(1))
    [key] = table.entries
    table.entries[key] = value
    assert numbers(await model.infer(ask(1))) == [[1]]
    assert counts(model) == (2, 0, 2, 0, 2)
    assert table.entries[key] != value, "the next one finds it"
    await model.infer(ask(1))
    assert counts(model) == (3, 1, 2, 0, 2)


async def test_the_value_of_another_request_is_a_miss(serve: Serve, ask: Ask) -> None:
    table = Table()
    model, _ = await serve(table)
    await model.infer(ask(1))
    await model.infer(ask(2))
    one, other = table.entries
    table.entries[one] = table.entries[other]
    assert numbers(await model.infer(ask(1))) == [[1]]


async def test_large_tensors_are_hashed_and_copied_elsewhere(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    async def to_thread(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        called.append(work.__name__)
        return work(*arguments, **options)

    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    model, _ = await serve(Table())
    rows = np.zeros((1, lookups.LARGE // 4 + 1), np.int32)
    request = InferRequest("odd", (Tensor.from_numpy("X", rows),), version=1)
    for _ in range(2):
        await model.infer(request)
    assert called == ["request_key", "encode_entry", "request_key", "decode_entry"]
    assert counts(model) == (2, 1, 1, 0, 1)


@pytest.mark.parametrize("by", ["infer", "stream"])
async def test_a_caller_that_goes_while_it_is_looked_for(serve: Serve, ask: Ask, by: str) -> None:
    model, worker = await serve(Table(seconds=5), ordered=True)
    going = asyncio.ensure_future(getattr(model, by)(ask(1)))
    await asyncio.sleep(1)
    behind = asyncio.ensure_future(model.infer(ask(2)))
    await asyncio.sleep(1)
    going.cancel()
    assert numbers(await behind) == [[2]]
    assert going.cancelled()
    assert asyncio.get_running_loop().time() == 16
    assert ran(worker) == 1
    await asyncio.wait_for(model.drain(), 1)


@pytest.mark.parametrize("by", ["infer", "stream"])
@pytest.mark.parametrize("ordered", [False, True])
async def test_what_a_caller_leaves_that_runs_is_kept_and_counted(
    serve: Serve, ask: Ask, by: str, ordered: bool
) -> None:
    model, _ = await serve(Table(), ordered=ordered)
    await _leave_after(5, model, by, ask(1))
    await asyncio.sleep(10)
    assert counts(model) == (1, 0, 1, 0, 1)
    assert numbers(await model.infer(ask(1))) == [[1]]
    assert counts(model) == (2, 1, 1, 0, 1)
    await asyncio.wait_for(model.drain(), 1)


async def _leave_after(seconds: float, model: ModelVersion, by: str, request: InferRequest) -> None:
    if by == "stream":
        stream = await model.stream(request)
        await asyncio.sleep(seconds)
        stream.close()
        return
    asking = asyncio.ensure_future(model.infer(request))
    await asyncio.sleep(seconds)
    asking.cancel()
    await asyncio.wait([asking])


@pytest.mark.parametrize("by", ["infer", "stream"])
async def test_what_a_caller_leaves_that_waits_for_its_turn_is_kept(
    serve: Serve, ask: Ask, by: str
) -> None:
    table = Table(seconds=30)
    model, _ = await serve(table, ordered=True)
    first = asyncio.ensure_future(model.infer(ask(1)))
    await asyncio.sleep(1)
    table.seconds = 0
    await _leave_after(15, model, by, ask(2))  # it has been answered, behind the first
    assert numbers(await first) == [[1]]
    assert counts(model) == (2, 0, 2, 0, 2)
    await model.infer(ask(2))
    assert counts(model) == (3, 1, 2, 0, 2)


async def test_a_caller_that_leaves_while_its_response_is_kept(serve: Serve, ask: Ask) -> None:
    table = Table()
    table.insert_seconds = 5
    model, _ = await serve(table)
    await _leave_after(12, model, "infer", ask(1))
    assert counts(model) == (1, 0, 0, 0, 1)
    await model.drain()
    assert counts(model) == (1, 0, 1, 0, 1)
    assert len(table.entries) == 1


async def test_errors_that_a_caller_leaves_are_not_kept(serve: Serve, ask: Ask) -> None:
    table = Table()
    model, worker = await serve(table)
    for instance in worker.instances:
        instance.answer = lambda request: Internal("not today")
    for by in ("infer", "stream"):
        await _leave_after(5, model, by, ask(1))
    await asyncio.sleep(20)
    assert (table.entries, counts(model)) == ({}, (0, 0, 0, 2, 2))


async def test_hits_wait_for_their_turn(serve: Serve, ask: Ask) -> None:
    model, _ = await serve(Table(), ordered=True)
    await model.infer(ask(1))
    order: list[str] = []

    async def infer(name: str, value: int) -> None:
        await model.infer(ask(value, request_id=name))
        order.append(name)

    async def stream(name: str, value: int) -> None:
        responses = await model.stream(ask(value, request_id=name))
        order.extend([response.id async for response in responses])

    tasks = [infer("miss", 2), infer("hit", 1), stream("hit of a stream", 1), infer("late", 3)]
    await asyncio.gather(*tasks)
    assert order == ["miss", "hit", "hit of a stream", "late"]
    assert counts(model) == (5, 2, 3, 0, 3)


async def test_a_slow_lookup_keeps_its_place(serve: Serve, ask: Ask) -> None:
    table = Table()
    model, _ = await serve(table, ordered=True)
    order: list[str] = []

    async def infer(name: str, value: int) -> None:
        await model.infer(ask(value, request_id=name))
        order.append(name)

    table.seconds = 30
    slow = asyncio.ensure_future(infer("slow", 1))
    await asyncio.sleep(1)
    table.seconds = 0
    await asyncio.gather(slow, infer("quick", 2))
    assert order == ["slow", "quick"]


async def test_who_is_looked_for_when_the_model_is_unloaded_is_answered(
    serve: Serve, ask: Ask
) -> None:
    model, _ = await serve(Table(seconds=5))
    asked = asyncio.ensure_future(model.infer(ask(1)))
    await asyncio.sleep(1)
    draining = asyncio.ensure_future(model.drain())
    assert numbers(await asked) == [[1]]
    await asyncio.wait_for(draining, 1)
    with pytest.raises(Unavailable, match="Server is stopping"):
        await model.infer(ask(2))
