"""Requests of very many BYTES elements: nobody waits while they are read."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import (
    Cancelled,
    InferRequest,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Placement,
    Tensor,
    Unavailable,
    encode_bytes,
)
from microkernel.models import checking
from microkernel.models.checking import TURN, RequestChecker
from microkernel.models.crew import Crew, CrewEvents
from microkernel.models.version import ModelVersion
from microkernel.tensor import BYTES

TURNS = 20
MANY = TURNS * TURN
CONFIG = ModelConfig(
    name="texts",
    input=(ModelInput("T", "TYPE_STRING", dims=(-1,)),),
    output=(ModelOutput("T", "TYPE_STRING", dims=(-1,)),),
)
Serve = Callable[[], Awaitable[tuple[ModelVersion, Any]]]


def request(count: int, data: bytes | None = None, name: str = "") -> InferRequest:
    """A request of `count` empty elements, or of that data."""
    raw = bytes(4 * count) if data is None else data
    return InferRequest("texts", (Tensor("T", BYTES, (count,), raw),), id=name)


@pytest.fixture
def serve(fake_worker: Any) -> Serve:
    async def make() -> tuple[ModelVersion, Any]:
        worker = fake_worker()

        async def launch() -> Any:
            raise Unavailable("no process")

        def crew(events: CrewEvents) -> Crew:
            return Crew(launch, CONFIG, [[Placement("texts_0", "KIND_CPU")]], events)

        model = ModelVersion(CONFIG, 1, crew)
        await model.start(worker)
        return model, worker

    return make


@pytest.mark.virtual_time
async def test_others_are_answered_while_many_elements_are_read(serve: Serve) -> None:
    model, worker = await serve()
    instance = worker.instances[0]
    big = asyncio.ensure_future(model.infer(request(MANY, name="big")))
    await asyncio.sleep(0)
    small = asyncio.ensure_future(model.infer(request(1, name="small")))
    turns = 0
    while not model.stats.pending:
        await asyncio.sleep(0)
        turns += 1
    assert turns > TURNS // 2
    assert [names for _, names in instance.batches] == [["small"]]
    await asyncio.gather(big, small)
    assert [names for _, names in instance.batches] == [["small"], ["big"]]


@pytest.mark.virtual_time
async def test_a_stream_of_many_elements_lets_others_run(serve: Serve) -> None:
    model, _ = await serve()
    opening = asyncio.ensure_future(model.stream(request(MANY)))
    turns = 0
    while not opening.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= TURNS
    (answer,) = [response async for response in opening.result() if not response.flag_only]
    assert answer.outputs[0].shape == (MANY,)


@pytest.mark.virtual_time
async def test_a_caller_that_goes_while_its_elements_are_read_leaves_nothing(serve: Serve) -> None:
    model, worker = await serve()
    task = asyncio.ensure_future(model.infer(request(MANY)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises((asyncio.CancelledError, Cancelled)):
        await task
    await model.drain()
    assert worker.instances[0].batches == []
    assert (model.stats.pending, model.stats.fail.count) == (0, 0)


@pytest.mark.virtual_time
async def test_a_model_that_stops_while_elements_are_read_refuses_the_request(
    serve: Serve,
) -> None:
    model, worker = await serve()
    task = asyncio.ensure_future(model.infer(request(MANY)))
    await asyncio.sleep(0)
    await model.drain()
    with pytest.raises(Unavailable, match="stopped accepting new inference requests"):
        await task
    assert worker.instances[0].batches == []


@pytest.mark.virtual_time
async def test_a_fault_in_the_last_of_many_elements(serve: Serve) -> None:
    model, _ = await serve()
    with pytest.raises(InvalidArgument, match="only 1 bytes available"):
        await model.infer(request(MANY, bytes(4 * MANY - 4) + b"\2\0\0\0x"))


TEXTS = st.lists(st.binary(max_size=5), max_size=12).map(encode_bytes)


@given(data=TEXTS | st.binary(max_size=40), count=st.integers(0, 12))
def test_pauses_change_no_verdict(data: bytes, count: int) -> None:
    checker, asked = RequestChecker(CONFIG), request(count, data)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checking, "TURN", 2)
        paused = _verdict(checker, asked)
    assert paused == _verdict(checker, asked)


def _verdict(checker: RequestChecker, asked: InferRequest) -> str:
    try:
        return f"{checker.check(asked).size}"
    except InvalidArgument as error:
        return str(error)
