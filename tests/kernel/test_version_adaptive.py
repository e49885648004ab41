"""The delay that finds itself, in a model version."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from microkernel import DynamicBatching, InferRequest
from microkernel.models.version import ModelVersion

pytestmark = pytest.mark.virtual_time

Ask = Callable[..., InferRequest]
Serve = Callable[..., Awaitable[tuple[ModelVersion, Any]]]


@pytest.mark.parametrize("dynamic", [None, DynamicBatching()])
async def test_an_adaptive_delay_may_be_off(
    serve: Serve, ask: Ask, dynamic: DynamicBatching | None
) -> None:
    model, _ = await serve(dynamic, ADAPTIVE_QUEUE_DELAY="false")
    assert model.stats.learn is None
    assert (await model.infer(ask(1))).id == ""


async def sizes_of_batches(model: ModelVersion, worker: Any, ask: Ask) -> list[int]:
    """The sizes of the last batches when four clients ask 50 times each, and none before it has
    been answered and has thought for up to 0.4 ms."""

    async def client(number: int) -> None:
        await asyncio.sleep(number * 2e-3)
        for _ in range(50):
            await model.infer(ask(1))
            await asyncio.sleep((number + 1) * 1e-4)

    await asyncio.gather(*map(client, range(4)))
    return [len(ids) for _, ids in worker.instances[0].batches][10:-10]


async def test_clients_that_wait_meet_in_a_batch_without_a_configured_delay(
    serve: Serve, ask: Ask
) -> None:
    model, worker = await serve(DynamicBatching(), seconds=0.01)
    assert set(await sizes_of_batches(model, worker, ask)) == {1, 3}

    model, worker = await serve(DynamicBatching(), seconds=0.01, ADAPTIVE_QUEUE_DELAY="true")
    learn = model.stats.learn
    assert learn is not None
    # The clock by which executions are measured is not the loop's.
    model.stats.learn = lambda size, _: learn(size, 0.01)
    assert set(await sizes_of_batches(model, worker, ask)) == {4}
    assert model.stats.success.count == 200
