"""Both kinds of worker host the same backend alike, also when it misbehaves."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_deeds import deed
from structlog.testing import capture_logs

from microkernel import (
    RESCHEDULE,
    InferRequest,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    Placement,
    Tensor,
)
from microkernel.request import Answer
from microkernel.workers.contract import Result, Worker, WorkerInstance

Launch = Callable[[], Awaitable[Worker]]
RunBatch = Callable[..., Awaitable[Result]]
Ask = Callable[..., InferRequest]
OddConfig = Callable[..., ModelConfig]
Places = Callable[..., list[Placement]]


def rows(result: Result) -> list[Any]:
    """The output of each request; the errors among them as they are."""
    return [
        answer.outputs[0].as_numpy().tolist() if isinstance(answer, Answer) else answer
        for answer in result.answers
    ]


@pytest.fixture
async def served(launch: Launch, odd_config: OddConfig, placements: Places) -> Any:
    """A worker with one instance."""
    worker = await launch()
    (instance,) = await worker.start(odd_config(), placements())
    yield instance
    await worker.stop()


async def test_a_batch_of_one(served: WorkerInstance, run_batch: RunBatch, ask: Ask) -> None:
    result = await run_batch(served, ask(1, 2, 3))
    assert served.name == "odd_0"
    assert rows(result) == [[[2, 4, 6]]]
    (answer,) = result.answers
    assert isinstance(answer, Answer)
    assert [tensor.name for tensor in answer.outputs] == ["Y"]


async def test_a_batch_of_several(served: WorkerInstance, run_batch: RunBatch, ask: Ask) -> None:
    result = await run_batch(served, ask(1, 2), ask([3, 4], [5, 6]), ask(7, 8))
    assert rows(result) == [[[2, 4]], [[6, 8], [10, 12]], [[14, 16]]]


async def test_an_empty_tensor(served: WorkerInstance, run_batch: RunBatch) -> None:
    nothing = InferRequest("odd", (Tensor.from_numpy("X", np.empty((2, 0), np.int32)),))
    assert rows(await run_batch(served, nothing)) == [[[], []]]


async def test_an_empty_request_beside_others(
    served: WorkerInstance, run_batch: RunBatch, ask: Ask
) -> None:
    nothing = InferRequest("odd", (Tensor.from_numpy("X", np.empty((0, 2), np.int32)),))
    result = await run_batch(served, ask(1, 2), nothing, ask(3, 4))
    assert rows(result) == [[[2, 4]], [], [[6, 8]]]


async def test_the_moments_of_an_execution_are_in_order(
    served: WorkerInstance, run_batch: RunBatch, ask: Ask
) -> None:
    times = (await run_batch(served, ask(1))).times
    assert 0 < times.start <= times.input_end <= times.output_start <= times.end


ERRORS = [
    ("ours", InvalidArgument, "the first number is wrong"),
    ("strange", Internal, "Stranger: what is this"),
    ("system_exit", Internal, "SystemExit: 3"),
    ("interrupt", Internal, "KeyboardInterrupt: "),
    ("none", Internal, "TypeError: object of type 'NoneType' has no len()"),
    ("too_few", Internal, "the backend gave 1 outcomes for a batch of 2 requests"),
    ("no_outcome", Internal, "AttributeError: 'NoneType' object has no attribute 'outputs'"),
    ("wrong_size", Internal, "output 'Y' of shape [1, 1, 2] should hold 8 bytes, "),
    ("strange_parameter", Internal, "response parameter 'when' must be a boolean, "),
    ("no_buffer", Internal, ""),
]


@pytest.mark.parametrize(("name", "kind", "text"), ERRORS, ids=[row[0] for row in ERRORS])
async def test_what_a_backend_does_wrong_fails_the_batch_and_nothing_else(
    served: WorkerInstance,
    run_batch: RunBatch,
    ask: Ask,
    name: str,
    kind: type[MicrokernelError],
    text: str,
) -> None:
    with capture_logs():
        result = await run_batch(served, ask(deed(name)), ask(1))
    for answer in result.answers:
        assert type(answer) is kind
        assert str(answer).startswith(text)
    assert rows(await run_batch(served, ask(4))) == [[[8]]]


async def test_one_request_of_a_batch_may_fail(
    served: WorkerInstance, run_batch: RunBatch, ask: Ask
) -> None:
    first, second = rows(await run_batch(served, ask(deed("second_fails")), ask(1)))
    assert first == [[2 * deed("second_fails")]]
    assert (type(second), str(second)) == (Internal, "only the second")


async def test_one_request_of_a_batch_may_come_again(
    served: WorkerInstance, run_batch: RunBatch, ask: Ask
) -> None:
    number = deed("second_comes_again")
    result = await run_batch(served, ask(number), ask(1), ask(2))
    assert rows(result) == [[[2 * number]], RESCHEDULE, [[4]]]


LOAD_FAILURES = [
    ("load", Internal, "Stranger: cannot load"),
    ("load sys.exit", Internal, "SystemExit: bye"),
    ("odd_0", InvalidArgument, "no instance odd_0 today"),
    ("odd_1", InvalidArgument, "no instance odd_1 today"),
]


@pytest.mark.parametrize(("where", "kind", "text"), LOAD_FAILURES, ids=lambda value: str(value)[:9])
async def test_a_load_that_fails(
    launch: Launch,
    odd_config: OddConfig,
    placements: Places,
    where: str,
    kind: type[MicrokernelError],
    text: str,
) -> None:
    worker = await launch()
    with pytest.raises(kind) as caught:
        await worker.start(odd_config(FAIL=where), placements(2))
    assert (type(caught.value), str(caught.value)) == (kind, text)
    async with asyncio.timeout(10):
        await worker.stop()


async def test_completing(launch: Launch, odd_config: OddConfig) -> None:
    worker, config = await launch(), odd_config(KEY="value")
    assert await worker.complete(config) == config
    with pytest.raises(InvalidArgument, match=r"^cannot complete$"):
        await worker.complete(odd_config(FAIL="complete"))
    await worker.stop()


async def test_a_worker_completes_and_then_starts(
    launch: Launch, odd_config: OddConfig, placements: Places, run_batch: RunBatch, ask: Ask
) -> None:
    worker = await launch()
    config = await worker.complete(odd_config())
    (instance,) = await worker.start(config, placements())
    assert rows(await run_batch(instance, ask(21))) == [[[42]]]
    await worker.stop()


async def test_stopping_closes_the_instances_and_unloads_the_model(
    launch: Launch, odd_config: OddConfig, placements: Places, tmp_path: Path
) -> None:
    worker = await launch()
    await worker.start(odd_config(), placements(3))
    await worker.stop()
    trace = (tmp_path / "__pycache__" / "trace").read_text().splitlines()
    assert sorted(trace[:3]) == ["made odd_0", "made odd_1", "made odd_2"]
    assert sorted(trace[3:6]) == ["closed odd_0", "closed odd_1", "closed odd_2"]
    assert trace[6:] == ["unloaded"]


async def test_each_instance_keeps_its_thread(
    launch: Launch, odd_config: OddConfig, placements: Places, run_batch: RunBatch, ask: Ask
) -> None:
    worker = await launch()
    instances = await worker.start(odd_config(), placements(2))
    seen = []
    for instance in (*instances, *instances):
        ((identity,),) = rows(await run_batch(instance, ask(deed("pid"))))
        seen.append(tuple(identity))
    assert seen[:2] == seen[2:]
    assert seen[0] != seen[1]
    await worker.stop()


async def test_instances_run_at_the_same_time(
    launch: Launch, odd_config: OddConfig, placements: Places, run_batch: RunBatch, ask: Ask
) -> None:
    worker = await launch()
    instances = await worker.start(odd_config(), placements(2))
    results = await asyncio.gather(
        *(run_batch(instances[i % 2], ask(i)) for i in range(2)),
    )
    assert [rows(result) for result in results] == [[[[0]]], [[[2]]]]
    await worker.stop()


async def test_what_a_backend_logs_reaches_the_log(
    real_log: None,
    launch: Launch,
    odd_config: OddConfig,
    placements: Places,
    run_batch: RunBatch,
    ask: Ask,
) -> None:
    with capture_logs() as lines:
        worker = await launch()
        (instance,) = await worker.start(odd_config(), placements())
        result = await run_batch(instance, ask(deed("log")))
        await worker.stop()
    assert rows(result) == [[[2 * deed("log")]]]
    of_the_model = [line for line in lines if line.get("logger") == "odd"]
    assert [line["event"] for line in of_the_model] == [
        "a line with words",
        "a level of one's own",
        "it went wrong",
    ]
    assert of_the_model[0]["log_level"] == "info"
    assert of_the_model[-1]["log_level"] == "error"


async def test_a_running_batch_learns_that_nobody_waits(
    served: WorkerInstance, run_batch: RunBatch, ask: Ask
) -> None:
    for _ in range(3):
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        number = served.execute([ask(deed("until_cancelled"))], [1], done.set_result)
        served.cancel(number)
        async with asyncio.timeout(20):
            result = await done
        assert rows(result) == [[[2 * deed("until_cancelled")]]]
        served.cancel(number)  # too late, which harms nobody
    assert rows(await run_batch(served, ask(4))) == [[[8]]]
