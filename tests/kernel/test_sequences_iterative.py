"""Requests that the model wants to see again, and sequences of decoupled models."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sequence_harness import FLAGS, Served, request_of, sequence_config, serve

from microkernel import (
    RESCHEDULE,
    Cancelled,
    InferRequest,
    Internal,
    InvalidArgument,
    Tensor,
)
from microkernel.config.model import (
    Control,
    ControlInput,
    DynamicBatching,
    SequenceBatching,
    State,
    StrategyOldest,
    TransactionPolicy,
)
from microkernel.request import Answer
from microkernel.stats import Execution, Failure
from microkernel.workers.parts import Part

pytestmark = pytest.mark.virtual_time

COUNT = State("SEEN", "SEEN_OUT", "TYPE_INT32", (1,))
CORRELATION = ControlInput("CORRID", (Control("CONTROL_SEQUENCE_CORRID", data_type="TYPE_UINT64"),))
ITERATIVE = SequenceBatching(
    iterative_sequence=True, control_input=(*FLAGS, CORRELATION), state=(COUNT,)
)
BOTH = pytest.mark.parametrize(
    "batching",
    [ITERATIVE, replace(ITERATIVE, oldest=StrategyOldest(max_candidate_sequences=4))],
    ids=["direct", "oldest"],
)
TIMES = Execution(10, 20, 30, 40)
NOT_CONFIGURED = (
    "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not "
    "configured to handle such a flag."
)


def single(name: str) -> InferRequest:
    """A request without a sequence."""
    return request_of(name, sequence=0)


async def test_a_request_runs_until_the_model_is_done(fake_worker: Any) -> None:
    """A state that is not given stays, so each step here is the first one of three."""
    served = await serve(sequence_config(ITERATIVE), fake_worker(10))
    left = {"A": 3, "B": 1}

    def reply(request: InferRequest) -> Any:
        if request.id not in left:
            return Answer(())
        left[request.id] -= 1
        return RESCHEDULE if left[request.id] else Answer(())

    served.reply = reply
    first = asyncio.ensure_future(served.ask(single("A")))
    await asyncio.sleep(1)
    await asyncio.gather(first, served.ask(single("B")))
    assert served.batches == [(0, ["A"]), (10, ["A", "B"]), (20, ["A"])]
    assert served.controls("START") == [[1], [0, 1], [0]]
    assert served.controls("END") == [[0], [0, 0], [0]]
    assert served.controls("CORRID") == [[1], [1, 2], [1]]
    assert served.ends == {"B": 20, "A": 30}
    stats = served.model.stats
    assert (stats.success.count, stats.inference_count, stats.execution_count) == (4, 4, 3)
    assert (stats.fail.count, stats.pending) == (0, 0)


@BOTH
async def test_many_requests_share_slots_and_batches(
    batching: SequenceBatching, fake_worker: Any
) -> None:
    served = await serve(sequence_config(batching, largest=4), fake_worker(1))
    seen: dict[str, int] = {}

    def reply(request: InferRequest) -> Any:
        seen[request.id] = seen.get(request.id, 0) + 1
        return Answer(()) if not request.id or seen[request.id] == 3 else RESCHEDULE

    served.reply = reply
    await asyncio.gather(*(served.ask(single(name)) for name in "ABCDEFGHIJ"))
    assert {name: seen[name] for name in "ABCDEFGHIJ"} == dict.fromkeys("ABCDEFGHIJ", 3)
    assert served.model.stats.success.count == 30
    assert served.model.stats.pending == 0


@BOTH
async def test_states_live_from_step_to_step(batching: SequenceBatching, fake_worker: Any) -> None:
    config = sequence_config(batching, model_transaction_policy=TransactionPolicy(decoupled=True))
    served = await serve(config, fake_worker(1))
    (instance,) = served.worker.instances
    stream = await served.model.stream(single("A"))
    for number in range(100, 103):
        instance.flights.part(number, part(counted(served.rows[-1])))
        instance.flights.part(number, part(RESCHEDULE, final=True))
        assert instance.batches[-1][1] == ["A"]
        instance.flights.returned(TIMES)
    instance.flights.part(103, part(counted(served.rows[-1]), final=True))
    instance.flights.returned(TIMES)
    assert [response.outputs[0].as_numpy().item() async for response in stream] == [1, 2, 3, 4]
    stats = served.model.stats
    assert (stats.success.count, stats.execution_count, stats.pending) == (4, 4, 0)
    assert stats.inference_count == 4
    await served.model.drain()


def part(answer: Any, *, final: bool = False) -> Part:
    return Part(answer, final, 100, 110, 113)


def counted(request: InferRequest) -> Answer:
    """What a step gives: how often the model has seen the request."""
    seen = request.input("SEEN")
    assert seen is not None
    total = seen.as_numpy() + 1
    return Answer(tuple(Tensor.from_numpy(name, total) for name in ("Y", "SEEN_OUT")))


async def test_a_batch_waits_until_every_request_of_the_one_before_is_over(
    fake_worker: Any,
) -> None:
    """A decoupled instance is free when its batch returns; the direct strategy waits for more."""
    config = sequence_config(model_transaction_policy=TransactionPolicy(decoupled=True))
    served = await serve(config, fake_worker(1))
    (instance,) = served.worker.instances
    await served.model.stream(request_of("A1", "S"))
    for request in (request_of("A2"), request_of("B1", "S")):
        await served.model.stream(request)
    instance.flights.returned(TIMES)
    assert [names for _, names in instance.batches] == [["A1"]]
    instance.flights.part(100, part(Answer(())))
    assert [names for _, names in instance.batches] == [["A1"]]
    instance.flights.part(100, part(None, final=True))
    assert [names for _, names in instance.batches] == [["A1"], ["A2", "B1"]]
    instance.flights.part(101, part(None, final=True))
    instance.flights.part(102, part(Internal("no"), final=True))
    instance.flights.returned(TIMES)
    later = await served.model.stream(request_of("B2", "E"))
    assert [names for _, names in instance.batches][2:] == [["", "B2"]]
    instance.flights.part(103, part(Internal("of nobody"), final=True))
    instance.flights.part(104, part(None, final=True))
    instance.flights.returned(TIMES)
    assert [response.flag_only async for response in later] == [True]
    stats = served.model.stats
    assert (stats.success.count, stats.fail.count, stats.inference_count) == (3, 1, 3)
    assert {size: b.compute_infer.count for size, b in stats.batches.items()} == {1: 1, 2: 2}
    await served.model.drain()


async def test_oldest_runs_others_while_a_decoupled_request_is_not_over(fake_worker: Any) -> None:
    batching = SequenceBatching(oldest=StrategyOldest(max_candidate_sequences=2))
    config = sequence_config(batching, model_transaction_policy=TransactionPolicy(decoupled=True))
    served = await serve(config, fake_worker(1))
    (instance,) = served.worker.instances
    for request in (request_of("A1", "S"), request_of("A2"), request_of("B1", "S")):
        await served.model.stream(request)
    instance.flights.returned(TIMES)
    assert [names for _, names in instance.batches] == [["A1"], ["B1"]]
    instance.flights.returned(TIMES)
    instance.flights.part(100, part(None, final=True))
    assert [names for _, names in instance.batches] == [["A1"], ["B1"], ["A2"]]
    instance.flights.fail(Internal("over"))
    await served.model.drain()


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence_batching": None},
        {"sequence_batching": None, "dynamic_batching": DynamicBatching()},
        {"sequence_batching": SequenceBatching()},
        {"sequence_batching": SequenceBatching(oldest=StrategyOldest())},
    ],
    ids=["default", "dynamic", "direct", "oldest"],
)
@pytest.mark.parametrize("decoupled", [False, True])
async def test_a_model_that_may_not_ask_for_requests_again(
    fake_worker: Any, changes: dict[str, Any], decoupled: bool
) -> None:
    policy = TransactionPolicy(decoupled=decoupled)
    served = await serve(
        replace(sequence_config(), **changes, model_transaction_policy=policy), fake_worker(1)
    )
    served.reply = lambda _: RESCHEDULE
    call = asyncio.ensure_future(served.ask(request_of("A1", "S")))
    await asyncio.sleep(0)
    if decoupled:
        flights = served.worker.instances[0].flights
        flights.part(100, part(RESCHEDULE, final=True))
        flights.returned(TIMES)
    await call
    error = served.errors["A1"]
    assert isinstance(error, InvalidArgument)
    assert str(error) == NOT_CONFIGURED
    stats = served.model.stats
    assert (stats.fail.count, stats.success.count, stats.pending) == (1, 0, 0)


@BOTH
async def test_a_step_that_takes_longer_than_a_sequence_may_be_idle(
    batching: SequenceBatching, fake_worker: Any
) -> None:
    served = await serve(sequence_config(batching, idle=5), fake_worker(10))
    served.reply = lambda _: RESCHEDULE
    await served.ask(single("A"))
    assert "sequence 1 to model 'm' must specify the START flag" in str(served.errors["A"])
    assert served.model.stats.failures[Failure.BACKEND] == 1


@BOTH
async def test_nobody_is_served_again_after_leaving(
    batching: SequenceBatching, fake_worker: Any
) -> None:
    """However long the model would go on; callers leave while their requests run."""
    served = await serve(sequence_config(batching, largest=1), fake_worker(10))
    served.reply = lambda _: RESCHEDULE
    first = asyncio.ensure_future(served.ask(single("A")))
    await asyncio.sleep(1)
    second = asyncio.ensure_future(served.ask(single("B")))
    await asyncio.sleep(1)
    first.cancel()
    await asyncio.sleep(20)
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    await asyncio.sleep(20)
    assert [names for _, names in served.batches] == [["A"], ["B"], ["B"]]
    assert served.worker.instances[0].told == [("cancel", 100), ("cancel", 102)]
    assert served.model.stats.pending == 0
    await served.model.drain()


async def test_what_a_client_says_of_its_sequence_stands_but_for_its_end(fake_worker: Any) -> None:
    served = await serve(sequence_config(ITERATIVE), fake_worker(1))
    left = {"A": 2}

    def reply(request: InferRequest) -> Any:
        left["A"] -= 1
        return RESCHEDULE if left["A"] else Answer(())

    served.reply = reply
    await served.ask(request_of("A", "SE", sequence=77))
    assert served.controls("CORRID") == [[77], [77]]
    assert served.controls("START") == [[1], [0]]
    assert served.controls("END") == [[0], [0]]
    await served.ask(request_of("B", "", sequence=77))  # over with the first request's release
    assert isinstance(served.errors["B"], InvalidArgument)


async def test_ids_of_clients_are_not_given_to_others(fake_worker: Any) -> None:
    served = await serve(sequence_config(ITERATIVE, largest=4), fake_worker(1))
    requests = [request_of("A", "S", sequence=1), single("B"), request_of("C", "S", sequence=3)]
    requests.append(single("D"))
    await asyncio.gather(*(served.ask(request) for request in requests))
    numbers = [number for batch in served.controls("CORRID") for number in batch]
    found = dict(zip([row.id for row in served.rows], numbers, strict=True))
    assert {name: found[name] for name in "ABCD"} == {"A": 1, "B": 2, "C": 3, "D": 4}


async def test_a_model_that_is_told_ids_as_text(fake_worker: Any) -> None:
    text = ControlInput("CORRID", (Control("CONTROL_SEQUENCE_CORRID", data_type="TYPE_STRING"),))
    batching = SequenceBatching(iterative_sequence=True, control_input=(text,))
    served = await serve(sequence_config(batching), fake_worker(1))
    await served.ask(single("A"))
    assert not served.errors
    assert served.rows[0].inputs[1].as_numpy().tolist() == [[b"1"]]


async def test_iterative_requests_that_wait_are_answered_when_the_version_is_abandoned(
    fake_worker: Any,
) -> None:
    served: Served = await serve(sequence_config(ITERATIVE, largest=1), fake_worker(10))
    served.reply = lambda _: RESCHEDULE
    calls = [asyncio.ensure_future(served.ask(single(name))) for name in "AB"]
    await asyncio.sleep(15)
    served.model.abandon("enough")
    await asyncio.gather(*calls)
    assert sorted(served.errors) == ["A", "B"]
    assert not any(isinstance(error, Cancelled) for error in served.errors.values())
    assert served.model.stats.pending == 0
