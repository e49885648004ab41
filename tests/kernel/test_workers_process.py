"""Worker processes: how they end, what that does to the batch they run, and what they leave."""

import asyncio
import errno
import os
import signal
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
import psutil
import pytest
from odd_deeds import deed
from structlog.testing import capture_logs
from waiting import gone

from microkernel import (
    InferRequest,
    LogChanges,
    LogSettings,
    MicrokernelError,
    ModelConfig,
    Placement,
    Tensor,
    Unavailable,
)
from microkernel.log import LogControl
from microkernel.request import Answer
from microkernel.workers import descriptors, process
from microkernel.workers.arena import Block
from microkernel.workers.contract import Result
from microkernel.workers.process import ProcessWorker

Spawn = Callable[..., Awaitable[ProcessWorker]]
RunBatch = Callable[..., Awaitable[Result]]
Ask = Callable[..., InferRequest]
OddConfig = Callable[..., ModelConfig]
OpenFiles = Callable[[], list[str]]
Places = Callable[..., list[Placement]]
Children = Callable[[], list[psutil.Process]]


def output(result: Result) -> Any:
    """The first request's output."""
    answer = result.answers[0]
    assert isinstance(answer, Answer), answer
    return answer.outputs[0].as_numpy()


def ended(cause: str, *instances: str) -> str:
    names = ", ".join(f"'{name}'" for name in instances or ("odd_0",))
    return f"the worker process of model 'odd' (instances: {names}) ended: {cause}"


DEATHS = [
    ("exit", "exit code 7"),
    ("segfault", "killed by signal SIGSEGV"),
    ("kill", "killed by signal SIGKILL"),
]


@pytest.mark.parametrize(("name", "cause"), DEATHS, ids=[row[0] for row in DEATHS])
async def test_a_death_fails_the_running_batch_and_is_reported(
    spawn: Spawn,
    odd_config: OddConfig,
    placements: Places,
    run_batch: RunBatch,
    ask: Ask,
    name: str,
    cause: str,
) -> None:
    worker = await spawn()
    (instance,) = await worker.start(odd_config(), placements())
    lost: list[MicrokernelError] = []
    worker.watch(lost.append)
    assert output(await run_batch(instance, ask(1))).tolist() == [[2]]
    with capture_logs():
        result = await run_batch(instance, ask(deed(name)), ask(1))
    assert [(type(a), str(a)) for a in result.answers] == [(Unavailable, ended(cause))] * 2
    assert [str(error) for error in lost] == [ended(cause)]
    await worker.stop()


async def test_a_worker_killed_from_outside_while_idle_is_reported(
    spawn: Spawn, odd_config: OddConfig, placements: Places, run_batch: RunBatch, ask: Ask
) -> None:
    worker = await spawn()
    (instance, _) = await worker.start(odd_config(), placements(2))
    lost: asyncio.Future[MicrokernelError] = asyncio.get_running_loop().create_future()
    worker.watch(lost.set_result)
    pid = int(output(await run_batch(instance, ask(deed("pid"))))[0, 0])
    os.kill(pid, signal.SIGTERM)  # only the server ends its workers
    os.kill(pid, signal.SIGINT)
    assert output(await run_batch(instance, ask(2))).tolist() == [[4]]
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        error = await lost
    assert str(error) == ended("killed by signal SIGKILL", "odd_0", "odd_1")
    await worker.stop()


async def test_a_hanging_batch_is_ended_with_the_reason(
    spawn: Spawn, odd_config: OddConfig, placements: Places, run_batch: RunBatch, ask: Ask
) -> None:
    worker = await spawn()
    (instance,) = await worker.start(odd_config(), placements())
    running = asyncio.ensure_future(run_batch(instance, ask(deed("hang"))))
    worker.kill("it took too long")
    (answer,) = (await running).answers
    assert str(answer) == ended("it took too long")
    await worker.stop()


@pytest.mark.parametrize(
    ("where", "cause"), [("load exit", "exit code 8"), ("instance exit", "exit code 9")]
)
async def test_a_worker_that_dies_while_it_loads(
    spawn: Spawn, odd_config: OddConfig, placements: Places, where: str, cause: str
) -> None:
    worker = await spawn()
    with pytest.raises(Unavailable) as caught:
        await worker.start(odd_config(FAIL=where), placements())
    assert str(caught.value) == ended(cause)
    with pytest.raises(Unavailable, match=cause):
        await worker.complete(odd_config())
    await worker.stop()


async def test_two_workers_of_one_model_do_not_hurt_each_other(
    spawn: Spawn, odd_config: OddConfig, placements: Places, run_batch: RunBatch, ask: Ask
) -> None:
    workers = [await spawn(), await spawn()]
    (one,), (other,) = [await worker.start(odd_config(), placements()) for worker in workers]
    dies = asyncio.ensure_future(run_batch(one, ask(deed("exit"))))
    for number in range(20):
        assert output(await run_batch(other, ask(number))).tolist() == [[2 * number]]
    assert isinstance((await dies).answers[0], Unavailable)
    assert output(await run_batch(other, ask(3))).tolist() == [[6]]
    for worker in workers:
        await worker.stop()


async def test_a_stopped_worker_is_gone(
    spawn: Spawn, odd_config: OddConfig, placements: Places, run_batch: RunBatch, ask: Ask
) -> None:
    worker = await spawn()
    (instance,) = await worker.start(odd_config(), placements())
    pid = int(output(await run_batch(instance, ask(deed("pid"))))[0, 0])
    assert not gone(pid)
    await worker.stop()
    assert gone(pid)
    await worker.stop()


async def test_the_first_instance_lives_on_the_main_thread(
    spawn: Spawn, odd_config: OddConfig, placements: Places, run_batch: RunBatch, ask: Ask
) -> None:
    worker = await spawn()
    instances = await worker.start(odd_config(), placements(2))
    first, second = [output(await run_batch(i, ask(deed("pid"))))[0].tolist() for i in instances]
    assert first[0] == first[1] == second[0]
    assert second[1] != second[0]
    await worker.stop()


async def test_a_model_can_end_its_processes_and_what_it_leaves_ends_with_the_worker(
    spawn: Spawn, odd_config: OddConfig, placements: Places, run_batch: RunBatch, ask: Ask
) -> None:
    worker = await spawn()
    (instance,) = await worker.start(odd_config(), placements())
    result = await asyncio.wait_for(run_batch(instance, ask(deed("offspring"))), 20)
    forked, started, pid = output(result)[0].tolist()
    left = psutil.Process(pid)
    assert [forked, started] == [signal.SIGTERM] * 2
    assert left.is_running()
    worker.kill("its time has come")
    await worker.released()
    _, alive = psutil.wait_procs([left], timeout=10)
    assert alive == []


async def test_a_broken_log_line_does_not_fail_the_request(
    spawn: Spawn, odd_config: OddConfig, placements: Places, run_batch: RunBatch, ask: Ask
) -> None:
    with capture_logs() as lines:
        worker = await spawn()
        (instance,) = await worker.start(odd_config(), placements())
        result = await run_batch(instance, ask(deed("log_badly")))
        await worker.stop()
    assert output(result).tolist() == [[2 * deed("log_badly")]]
    (line,) = [line for line in lines if line.get("logger") == "odd"]
    assert line["event"] == "'a broken line: %d', whose arguments do not fit it"
    assert (line["model"], line["version"], line["log_level"]) == ("odd", 1, "warning")


async def test_large_tensors_make_larger_blocks(
    spawn: Spawn, odd_config: OddConfig, placements: Places, run_batch: RunBatch, ask: Ask
) -> None:
    worker = await spawn()
    (instance,) = await worker.start(odd_config(), placements())
    for size in (1, 10_000, 3_000_000, 5, 2_000_000):
        numbers = np.arange(1, size + 1, dtype=np.int32)
        request = InferRequest("odd", (Tensor.from_numpy("X", numbers[None]),))
        np.testing.assert_array_equal(output(await run_batch(instance, request))[0], numbers * 2)
    await worker.stop()


async def test_responses_stay_as_they_are_while_they_are_held(
    spawn: Spawn, odd_config: OddConfig, placements: Places, run_batch: RunBatch, ask: Ask
) -> None:
    worker = await spawn()
    (instance,) = await worker.start(odd_config(), placements())
    large, held = deed("large"), []
    for value in range(40):
        result = await run_batch(instance, ask(large, 1000 + 100 * (value % 7), value))
        if value % 3 == 0:
            held.append((value, output(result)))
        for held_value, array in held:
            assert np.all(array == held_value)
    for value, array in held:
        assert array.shape == (1, 1000 + 100 * (value % 7))
        assert np.all(array == value)
    await worker.stop()
    assert all(np.all(array == value) for value, array in held)


async def test_neither_blocks_nor_descriptors_leak(
    open_files: OpenFiles,
    spawn: Spawn,
    odd_config: OddConfig,
    placements: Places,
    run_batch: RunBatch,
    ask: Ask,
) -> None:
    await (await spawn()).stop()  # the fork server runs from now on
    before = open_files()
    worker = await spawn()
    instances = await worker.start(odd_config(), placements(2))
    large, in_use = deed("large"), []
    for number in range(200):
        instance = instances[number % 2]
        result = await run_batch(instance, ask(large, 100 + 50 * (number % 100), number))
        assert output(result)[0, -1] == number
        del result
        in_use.append(len(open_files()))
    assert max(in_use[100:]) <= max(in_use[:100])
    assert max(in_use) - len(before) < 40
    await worker.stop()
    assert open_files() == before


async def test_a_worker_that_dies_leaves_nothing_open(
    open_files: OpenFiles,
    spawn: Spawn,
    odd_config: OddConfig,
    placements: Places,
    run_batch: RunBatch,
    ask: Ask,
) -> None:
    await (await spawn()).stop()
    before = open_files()
    worker = await spawn()
    (instance,) = await worker.start(odd_config(), placements())
    await run_batch(instance, ask(deed("large"), 5000, 1))
    await run_batch(instance, ask(deed("kill")))
    await worker.stop()
    assert open_files() == before


async def test_a_worker_logs_debug_lines_only_when_it_is_verbose(
    spawn: Spawn, odd_config: OddConfig, placements: Places
) -> None:
    async def lines_of(level: int) -> list[str]:
        with capture_logs() as lines:
            control = LogControl(LogSettings(log_verbose_level=level))
            worker = await spawn(log_control=control)
            with pytest.raises(MicrokernelError):
                await worker.start(odd_config(FAIL="load"), placements())
            await worker.stop()
        return debug_lines(lines)

    assert await lines_of(1) == ["order failed"]
    assert await lines_of(0) == []


def debug_lines(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The events of those that come from a worker."""
    return [line["event"] for line in lines if line["log_level"] == "debug" and "model" in line]


async def test_a_worker_hears_that_the_log_becomes_verbose(
    spawn: Spawn, odd_config: OddConfig
) -> None:
    control = LogControl(LogSettings())
    worker = await spawn(log_control=control)
    found = []
    for level in (0, 1, 2, 0):
        control.change(LogChanges(log_verbose_level=level))
        with capture_logs() as lines, pytest.raises(MicrokernelError):
            await worker.complete(odd_config(FAIL="complete"))
        found.append(debug_lines(lines))
    assert found == [[], ["order failed"], ["order failed"], []]
    await worker.stop()


def no_memory(number: int, size: int) -> Block:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


async def test_without_memory_for_its_input_a_batch_fails_and_the_next_may_run(
    spawn: Spawn,
    odd_config: OddConfig,
    placements: Places,
    run_batch: RunBatch,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = await spawn()
    (instance,) = await worker.start(odd_config(), placements())
    with monkeypatch.context() as patch:
        patch.setattr(Block, "create", no_memory)
        (answer,) = (await run_batch(instance, ask(1))).answers
    assert isinstance(answer, Unavailable)
    assert str(answer).startswith("no memory for 64 bytes of input for 'odd_0': [Errno 12]")
    assert output(await run_batch(instance, ask(4))).tolist() == [[8]]
    await worker.stop()


async def test_without_memory_for_an_output_block_a_batch_fails_and_the_next_may_run(
    spawn: Spawn,
    odd_config: OddConfig,
    placements: Places,
    run_batch: RunBatch,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = await spawn()
    (instance,) = await worker.start(odd_config(), placements())
    held = await run_batch(instance, ask(1))  # the only output block there is
    with monkeypatch.context() as patch:
        patch.setattr(Block, "create", no_memory)
        (answer,) = (await run_batch(instance, ask(1))).answers
    assert isinstance(answer, Unavailable)
    assert output(await run_batch(instance, ask(4))).tolist() == [[8]]
    assert output(held).tolist() == [[2]]
    await worker.stop()


async def test_without_memory_for_its_output_the_worker_is_ended(
    spawn: Spawn,
    odd_config: OddConfig,
    placements: Places,
    run_batch: RunBatch,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = await spawn()
    (instance,) = await worker.start(odd_config(), placements())
    del (await run_batch(instance, ask(1))).answers  # its output block is free again
    monkeypatch.setattr(Block, "create", no_memory)
    result = await run_batch(instance, ask(deed("large"), 100_000, 1))
    assert str(result.answers[0]).startswith(
        ended("there is no memory for 400000 bytes of its output: [Errno 12]")
    )
    await worker.stop()


async def test_a_worker_that_sends_nonsense_is_ended(
    spawn: Spawn,
    odd_config: OddConfig,
    placements: Places,
    run_batch: RunBatch,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nonsense(*_: object) -> None:
        raise struct.error("unpack requires more")

    worker = await spawn()
    (instance,) = await worker.start(odd_config(), placements())
    monkeypatch.setattr(descriptors, "read_result", nonsense)
    (answer,) = (await run_batch(instance, ask(1))).answers
    assert str(answer) == ended(
        "it sent a message that cannot be read: error('unpack requires more')"
    )
    await worker.stop()


async def test_a_worker_that_does_not_end_is_ended(
    new_children: Children,
    spawn: Spawn,
    odd_config: OddConfig,
    placements: Places,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "STOP_LIMIT", 0.05)
    worker = await spawn()
    await worker.start(odd_config(FAIL="close hangs"), placements())
    (server,) = new_children()
    (child,) = server.children()
    with capture_logs() as lines:
        await worker.stop()
    assert [line["event"] for line in lines] == ["worker did not end in time and is killed"]
    assert gone(child.pid)
