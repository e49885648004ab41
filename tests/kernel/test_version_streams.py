"""Streams of a model version, on virtual time: how they are refused, counted, left and given up."""

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from microkernel import (
    DynamicBatching,
    InferRequest,
    InferResponse,
    Internal,
    InvalidArgument,
    ModelConfig,
    ModelOutput,
    Placement,
    Reshape,
    ResponseStream,
    Tensor,
    TransactionPolicy,
    Unavailable,
)
from microkernel.models.crew import Crew, CrewEvents
from microkernel.models.streams import STALL_LIMIT
from microkernel.models.version import ModelVersion
from microkernel.request import Answer
from microkernel.responses import HIGH_COUNT, LOW_COUNT
from microkernel.stats import Execution, Failure
from microkernel.workers.parts import Part

pytestmark = pytest.mark.virtual_time

Serve = Callable[..., Awaitable[tuple[ModelVersion, Any]]]
Ask = Callable[..., InferRequest]
OddConfig = Callable[..., ModelConfig]
TIMES = Execution(10, 20, 30, 40)


@pytest.fixture
def serve(odd_config: OddConfig, fake_worker: Any) -> Serve:
    """`model, instance = await serve(decoupled=True)`: a version on one instance in memory, which
    takes 10 seconds for a batch, or answers a decoupled one as the test says."""

    async def make(
        *, decoupled: bool = False, limit: float = 0.0, **changes: Any
    ) -> tuple[ModelVersion, Any]:
        policy = TransactionPolicy(decoupled=decoupled)
        worker = fake_worker()
        own = replace(odd_config(), model_transaction_policy=policy, **changes)

        async def launch() -> Any:
            raise Unavailable("no process")

        def crew(events: CrewEvents) -> Crew:
            return Crew(launch, own, [[Placement("odd_0", "KIND_CPU")]], events, limit=limit)

        model = ModelVersion(own, 3, crew)
        await model.start(worker)
        return model, worker.instances[0]

    return make


def answer(*numbers: int) -> Answer:
    return Answer((Tensor.from_numpy("Y", np.array([numbers], np.int32)),), {})


def part(what: Any, *, final: bool = False) -> Part:
    return Part(what, final, 100, 110, 113)


async def said(stream: ResponseStream) -> list[Any]:
    return [
        str(r.error) if r.error else None if r.flag_only else r.outputs[0].as_numpy().tolist()
        async for r in stream
    ]


async def test_an_ordinary_model_gives_one_response(serve: Serve, ask: Ask) -> None:
    model, _ = await serve()
    stream = await model.stream(ask(1, 2, request_id="7"))
    (response,) = [r async for r in stream]
    assert (response.model_name, response.version, response.id) == ("odd", 3, "7")
    assert response.outputs[0].as_numpy().tolist() == [[1, 2]]
    assert response.final
    assert model.stats.success.count == 1
    await model.drain()


async def test_an_error_of_an_ordinary_model_is_a_response(serve: Serve, ask: Ask) -> None:
    model, instance = await serve()
    instance.answer = lambda _: Internal("not this one")
    (response,) = [r async for r in await model.stream(ask(1, request_id="7"))]
    assert (str(response.error), response.id, response.final) == ("not this one", "7", True)
    assert response.outputs == ()
    await model.drain()


@pytest.mark.parametrize("preserve", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
async def test_the_data_of_a_request_that_failed_goes_with_its_error(
    serve: Serve, without_collector: None, decoupled: bool, preserve: bool
) -> None:
    batching = DynamicBatching(preserve_ordering=preserve)
    model, instance = await serve(decoupled=decoupled, dynamic_batching=batching)
    instance.answer = lambda _: Internal("broken")
    data = np.array([[1, 2]], np.int32)
    gone = weakref.ref(data)
    request = InferRequest("odd", (Tensor.from_numpy("X", data),))
    asked = asyncio.ensure_future(model.infer(request))
    del data, request
    await asyncio.sleep(0)
    if decoupled:
        instance.flights.part(100, part(Internal("broken"), final=True))
        instance.flights.returned(TIMES)
    with suppress(Internal):
        raise AssertionError(await asked)
    del asked
    await asyncio.sleep(0)
    assert gone() is None


@pytest.mark.parametrize("decoupled", [False, True])
async def test_a_refused_request_raises(serve: Serve, ask: Ask, decoupled: bool) -> None:
    model, _ = await serve(decoupled=decoupled)
    with pytest.raises(InvalidArgument):
        await model.stream(ask(*[[1]] * 9))
    await model.drain()
    with pytest.raises(Unavailable, match="has stopped accepting"):
        await model.stream(ask(1))
    await model.drain()  # nothing is counted as unanswered
    assert (model.stats.pending, model.stats.fail.count) == (0, 0)


@pytest.mark.parametrize("decoupled", [False, True])
async def test_leaving_while_waiting_takes_the_request_out(
    serve: Serve, ask: Ask, decoupled: bool
) -> None:
    model, instance = await serve(decoupled=decoupled)
    await model.stream(ask(1, request_id="runs"))
    waits = await model.stream(ask(2, request_id="waits"))
    waits.close()
    assert model.stats.pending == 0
    assert model.stats.failures[Failure.CANCELED] == 1
    instance.flights.fail(Internal("over"))
    await model.drain()
    assert [names for _, names in instance.batches] == [["runs"]]
    assert instance.told == []


@pytest.mark.parametrize("way", ["stream", "infer"])
async def test_leaving_while_an_ordinary_request_runs_tells_its_instance(
    serve: Serve, ask: Ask, way: str
) -> None:
    model, instance = await serve()
    if way == "stream":
        (await model.stream(ask(1))).close()
    else:
        asking = asyncio.ensure_future(model.infer(ask(1)))
        await asyncio.sleep(1)
        asking.cancel()
        await asyncio.wait([asking])
    assert instance.told == [("cancel", 100)]
    await model.drain()
    await model.stop()
    assert model.stats.success.count == 1  # the model answered, if nobody


async def test_draining_waits_for_the_last_final_response(serve: Serve, ask: Ask) -> None:
    model, instance = await serve(decoupled=True)
    stream = await model.stream(ask(1))
    instance.flights.returned(TIMES)
    draining = asyncio.ensure_future(model.drain())
    await asyncio.sleep(100)
    instance.flights.part(100, part(answer(5)))
    await asyncio.sleep(100)
    assert not draining.done()
    instance.flights.part(100, part(None, final=True))
    await draining
    assert await said(stream) == [[[5]], None]
    await model.stop()


async def test_closing_drops_what_comes_later(serve: Serve, ask: Ask) -> None:
    model, instance = await serve(decoupled=True)
    stream = await model.stream(ask(1))
    instance.flights.part(100, part(answer(5)))
    stream.close()
    assert instance.told == [("cancel", 100)]
    instance.flights.part(100, part(answer(6)))
    instance.flights.part(100, part(answer(7), final=True))
    assert await said(stream) == []
    assert model.stats.success.count == 1
    instance.flights.returned(TIMES)
    await model.drain()
    await model.stop()


async def test_each_response_is_reshaped_and_classified(serve: Serve, ask: Ask) -> None:
    outputs = (ModelOutput("Y", "TYPE_INT32", dims=(4,), reshape=Reshape((2, 2))),)
    model, instance = await serve(decoupled=True, output=outputs)
    plain, classified = [
        await model.stream(replace(ask(1), classifications=classes)) for classes in ({}, {"Y": 2})
    ]
    for number in (100, 101):
        rows = np.array([[[1, 9], [4, 2]]], np.int32)
        made = Answer((Tensor.from_numpy("Y", rows),), {})
        instance.flights.part(number, part(made))
        instance.flights.part(number, part(made, final=True))
        instance.flights.returned(TIMES)
    assert await said(plain) == [[[1, 9, 4, 2]]] * 2
    assert await said(classified) == [[[b"9:1", b"4:2"]]] * 2


async def test_what_cannot_be_classified_is_an_error_in_its_place(serve: Serve, ask: Ask) -> None:
    model, instance = await serve(decoupled=True)
    stream = await model.stream(replace(ask(1), classifications={"Y": 2}))
    text = Tensor.from_numpy("Y", np.array([[b"x"]], np.object_))
    instance.flights.part(100, part(Answer((text,), {})))
    instance.flights.part(100, part(answer(3), final=True))
    instance.flights.returned(TIMES)
    first, second = await said(stream)
    assert first.startswith("class result not available for output due to unsupported type")
    assert second == [[b"3:0"]]


async def test_a_client_that_does_not_read_is_given_up_in_time(serve: Serve, ask: Ask) -> None:
    model, instance = await serve(decoupled=True)
    stream = await model.stream(ask(1, request_id="slow"))
    for number in range(HIGH_COUNT + 1):
        instance.flights.part(100, part(answer(number)))
    assert instance.told == [("pause", 100)]
    await asyncio.sleep(STALL_LIMIT - 1)
    await anext(stream)  # it lives
    await asyncio.sleep(STALL_LIMIT)
    assert instance.told == [("pause", 100)]
    await asyncio.sleep(2)
    assert instance.told == [("pause", 100), ("cancel", 100)]
    instance.flights.part(100, part(answer(0), final=True))
    instance.flights.returned(TIMES)
    await model.drain()
    rows = await said(stream)
    assert rows[:-1] == [[[number]] for number in range(1, HIGH_COUNT + 1)]
    assert rows[-1] == "[request id: slow] the client has read no response for 60 seconds"


async def test_a_client_that_catches_up_is_not_given_up(serve: Serve, ask: Ask) -> None:
    model, instance = await serve(decoupled=True)
    stream = await model.stream(ask(1))
    for number in range(HIGH_COUNT + 1):
        instance.flights.part(100, part(answer(number)))
    while stream.buffered > LOW_COUNT:
        await anext(stream)
    assert instance.told == [("pause", 100), ("resume", 100)]
    await asyncio.sleep(10 * STALL_LIMIT)
    assert instance.told == [("pause", 100), ("resume", 100)]
    instance.flights.fail(Internal("over"))
    assert (await said(stream))[-1] == "over"


async def test_the_limit_holds_until_the_last_final_response(serve: Serve, ask: Ask) -> None:
    model, instance = await serve(decoupled=True, limit=5.0)
    quick = await model.stream(ask(1))
    instance.flights.part(100, part(None, final=True))
    await asyncio.sleep(4)
    instance.flights.returned(TIMES)
    await asyncio.sleep(100)
    assert await said(quick) == [None]
    stuck = await model.stream(ask(1))
    instance.flights.returned(TIMES)
    with capture_logs():
        assert await said(stuck) == ["an execution took longer than 5 seconds"]
        await model.stop()
    assert asyncio.get_running_loop().time() == 109


async def test_the_limit_spares_a_worker_that_waits_for_a_client(serve: Serve, ask: Ask) -> None:
    model, instance = await serve(decoupled=True, limit=5.0)
    stream = await model.stream(ask(1))
    for number in range(HIGH_COUNT + 1):
        instance.flights.part(100, part(answer(number)))
    await asyncio.sleep(6)
    assert model.ready
    assert instance.told == [("pause", 100), ("cancel", 100)]
    text = "the client reads so slowly that the execution takes too long"
    assert (await said(stream))[-1].endswith(text)
    with capture_logs():
        await asyncio.sleep(5)  # the model does not heed it
        await model.stop()
    assert instance.flights.running is False
    assert model.stats.failures[Failure.BACKEND] == 1


class Heard:
    """Stands in for the distributions of the statistics."""

    def __init__(self) -> None:
        self.first: list[int] = []

    def responded(self, ns: int) -> None:
        self.first.append(ns)

    def succeeded(self, *_: object, first: bool) -> None:
        assert not first  # it was heard of on its own

    def executed(self, *_: object) -> None: ...


async def test_the_first_response_of_each_request_is_timed(serve: Serve, ask: Ask) -> None:
    model, instance = await serve(decoupled=True)
    model.stats.distributions = heard = Heard()  # type: ignore[assignment]  # what is called of it
    stream = await model.stream(ask(1))
    for final in (False, False, True):
        instance.flights.part(100, part(answer(1), final=final))
    instance.flights.returned(TIMES)
    await said(stream)
    assert len(heard.first) == 1
    assert heard.first[0] > 0


async def test_a_request_is_charged_until_its_end_or_the_batchs(serve: Serve, ask: Ask) -> None:
    model, instance = await serve(decoupled=True)
    for number, returns_first in ((100, True), (101, False)):
        await model.stream(ask(1))
        if returns_first:
            instance.flights.returned(TIMES)
        instance.flights.part(number, Part(answer(1), True, 2**62, 2**62 + 5, 2**62 + 8))
        if not returns_first:
            instance.flights.returned(TIMES)
    compute = model.stats.compute
    assert (compute.compute_infer.count, compute.compute_infer.ns) == (2, 10 + 5)
    assert compute.compute_output.ns == 10 + 3
    assert model.stats.execution_count == 2


async def test_responses_carry_what_the_model_said(serve: Serve, ask: Ask) -> None:
    model, instance = await serve(decoupled=True)
    stream = await model.stream(ask(1, request_id="5"))
    instance.flights.part(100, part(replace(answer(1), parameters={"k": 1})))
    instance.flights.part(100, part(Internal("bad")))
    instance.flights.part(100, part(None, final=True))
    instance.flights.returned(TIMES)
    responses: list[InferResponse] = [r async for r in stream]
    assert [(r.final, r.flag_only, r.error is None) for r in responses] == [
        (False, False, True),
        (False, False, False),
        (True, True, True),
    ]
    assert responses[0].parameters == {"k": 1}
    assert {(r.model_name, r.version, r.id) for r in responses} == {("odd", 3, "5")}
    assert model.stats.fail.count == 1  # its last word was an error
