"""A loaded model version: every request it accepts is answered once, and counted."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from microkernel import (
    DynamicBatching,
    InferRequest,
    Internal,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Placement,
    Reshape,
    Tensor,
    Unavailable,
)
from microkernel.models.crew import Crew, CrewEvents
from microkernel.models.version import ModelVersion
from microkernel.request import Answer
from microkernel.stats import Failure

pytestmark = pytest.mark.virtual_time

Serve = Callable[..., Awaitable[tuple[ModelVersion, Any]]]
Ask = Callable[..., InferRequest]
OddConfig = Callable[..., ModelConfig]


@pytest.fixture
def serve(odd_config: OddConfig, fake_worker: Any) -> Serve:
    """`model, worker = await serve(config=None, instances=1)`: a version on a worker in memory that
    takes 10 seconds for a batch."""

    async def make(
        config: ModelConfig | None = None, instances: int = 1
    ) -> tuple[ModelVersion, Any]:
        worker, own = fake_worker(), config or odd_config()
        places = [Placement(f"odd_{i}", "KIND_CPU") for i in range(instances)]

        async def launch() -> Any:
            raise Unavailable("no process")

        def crew(events: CrewEvents) -> Crew:
            return Crew(launch, own, [places], events)

        model = ModelVersion(own, 3, crew)
        await model.start(worker)
        return model, worker

    return make


def later(model: ModelVersion, request: InferRequest) -> "asyncio.Task[Any]":
    return asyncio.ensure_future(model.infer(request))


async def test_an_answer(serve: Serve, ask: Ask) -> None:
    model, _ = await serve()
    assert model.ready
    response = await model.infer(ask(1, 2, request_id="7"))
    assert (response.model_name, response.version, response.id) == ("odd", 3, "7")
    assert response.outputs[0].as_numpy().tolist() == [[1, 2]]
    assert response.parameters == {}


async def test_a_request_that_does_not_fit_is_refused_and_not_counted(
    serve: Serve, ask: Ask
) -> None:
    model, worker = await serve()
    with pytest.raises(InvalidArgument, match="batch-size must be <= 8"):
        await model.infer(ask(*[[1]] * 9))
    assert worker.instances[0].batches == []
    assert (model.stats.success.count, model.stats.fail.count, model.stats.pending) == (0, 0, 0)


async def test_what_waits_is_counted_as_pending(serve: Serve, ask: Ask) -> None:
    model, _ = await serve()
    tasks = [later(model, ask(i)) for i in range(4)]
    await asyncio.sleep(1)
    assert model.stats.pending == 3
    await asyncio.sleep(10)
    assert model.stats.pending == 2
    await asyncio.gather(*tasks)
    assert (model.stats.pending, model.stats.execution_count) == (0, 4)


async def test_ten_requests_on_one_instance(serve: Serve, ask: Ask, odd_config: OddConfig) -> None:
    config = odd_config(max_batch_size=4, dynamic=DynamicBatching((4,), 1_000_000))
    model, worker = await serve(config)
    tasks = [later(model, ask(i)) for i in range(10)]
    pending = []
    for when in (0.5, 10.5, 20.5):
        await asyncio.sleep(when - asyncio.get_running_loop().time())
        pending.append(model.stats.pending)
    assert pending == [6, 2, 0]
    await asyncio.gather(*tasks)
    assert [len(names) for _, names in worker.instances[0].batches] == [4, 4, 2]


async def test_an_error_of_the_backend_reaches_its_caller_only(
    serve: Serve, ask: Ask, odd_config: OddConfig
) -> None:
    model, worker = await serve(odd_config(dynamic=DynamicBatching((2,), 1_000_000)))
    worker.instances[0].answer = lambda r: (
        Internal("not this one") if r.id == "bad" else Answer(r.inputs, {"k": 1})
    )
    good, bad = later(model, ask(1, request_id="good")), later(model, ask(2, request_id="bad"))
    assert (await good).parameters == {"k": 1}
    with pytest.raises(Internal, match="not this one"):
        await bad
    stats = model.stats
    assert (stats.success.count, stats.fail.count, stats.inference_count) == (1, 1, 1)
    assert stats.failures[Failure.BACKEND] == 1
    assert (stats.execution_count, list(stats.batches)) == (1, [2])
    assert stats.compute.compute_infer.count == stats.queue.count == 1


async def test_a_caller_that_goes_while_it_waits_is_forgotten(serve: Serve, ask: Ask) -> None:
    model, worker = await serve()
    first, second = later(model, ask(1, request_id="1")), later(model, ask(2, request_id="2"))
    await asyncio.sleep(1)
    second.cancel()
    await first
    await asyncio.sleep(100)
    assert second.cancelled()
    assert [names for _, names in worker.instances[0].batches] == [["1"]]
    stats = model.stats
    assert (stats.failures[Failure.CANCELED], stats.fail.count, stats.pending) == (1, 1, 0)


async def test_a_caller_that_goes_while_it_runs_disturbs_nobody(
    serve: Serve, ask: Ask, odd_config: OddConfig
) -> None:
    model, _ = await serve(odd_config(dynamic=DynamicBatching((2,), 1_000_000)))
    stays, goes = later(model, ask(1)), later(model, ask(2))
    await asyncio.sleep(1)
    goes.cancel()
    assert (await stays).outputs[0].as_numpy().tolist() == [[1]]
    assert goes.cancelled()
    assert (model.stats.pending, model.stats.execution_count) == (0, 1)


async def test_a_dead_worker_fails_what_runs_and_then_what_waits(serve: Serve, ask: Ask) -> None:
    model, worker = await serve()
    runs, waits = later(model, ask(1)), later(model, ask(2))
    await asyncio.sleep(1)
    with capture_logs():
        worker.die(Unavailable("killed by signal SIGKILL"))
        assert not model.ready
        with pytest.raises(Unavailable, match=r"^killed by signal SIGKILL$"):
            await runs
        with pytest.raises(Unavailable) as caught:
            await waits
    assert str(caught.value) == "no instance of model 'odd' is alive: no process"
    assert model.stats.failures[Failure.BACKEND] == 1
    assert model.stats.failures[Failure.OTHER] == 1
    assert model.stats.pending == 0
    await model.stop()


async def test_draining_refuses_new_requests_and_waits_for_the_old(serve: Serve, ask: Ask) -> None:
    model, worker = await serve()
    tasks = [later(model, ask(i)) for i in range(3)]
    await asyncio.sleep(1)
    draining = asyncio.ensure_future(model.drain())
    await asyncio.sleep(1)
    with pytest.raises(Unavailable, match="has stopped accepting new inference requests"):
        await model.infer(ask(9))
    assert not draining.done()
    await draining
    assert asyncio.get_running_loop().time() == 30
    assert all(task.done() and not task.exception() for task in tasks)
    assert (model.stats.pending, model.stats.fail.count) == (0, 0)
    await model.stop()
    assert worker.stopped


async def test_draining_waits_for_what_runs_without_a_caller(serve: Serve, ask: Ask) -> None:
    model, _ = await serve()
    task = later(model, ask(1))
    await asyncio.sleep(1)
    task.cancel()
    await model.drain()
    assert asyncio.get_running_loop().time() == 10
    assert task.cancelled()


async def test_draining_an_idle_model_is_instant(serve: Serve) -> None:
    model, _ = await serve()
    await model.drain()
    assert asyncio.get_running_loop().time() == 0


async def test_abandoning_answers_everything_at_once(serve: Serve, ask: Ask) -> None:
    model, _ = await serve()
    tasks = [later(model, ask(i)) for i in range(3)]
    await asyncio.sleep(1)
    with capture_logs():
        model.abandon("time is up")
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert asyncio.get_running_loop().time() == 1
    assert [str(result) for result in results] == [
        "time is up",
        *["no instance of model 'odd' is alive: time is up"] * 2,
    ]
    await model.drain()
    await model.stop()


async def test_outputs_are_reshaped_for_clients(serve: Serve) -> None:
    config = ModelConfig(
        name="odd",
        max_batch_size=2,
        input=(ModelInput("X", "TYPE_INT32", dims=(4,), reshape=Reshape((2, 2))),),
        output=(
            ModelOutput("Y", "TYPE_INT32", dims=(4,), reshape=Reshape((2, 2))),
            ModelOutput("Z", "TYPE_INT32", dims=(2, 2)),
        ),
    )
    model, worker = await serve(config)
    seen: list[tuple[int, ...]] = []

    def answer(request: InferRequest) -> Answer:
        x = request.inputs[0]
        seen.append(x.shape)
        return Answer((replace(x, name="Y"), replace(x, name="Z")), {})

    worker.instances[0].answer = answer
    request = InferRequest("odd", (Tensor.from_numpy("X", np.zeros((1, 4), np.int32)),))
    response = await model.infer(request)
    assert seen == [(1, 2, 2)]
    assert [tensor.shape for tensor in response.outputs] == [(1, 4), (1, 2, 2)]
