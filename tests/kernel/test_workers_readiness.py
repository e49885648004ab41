"""Instances that say whether they are ready: who is asked when, and what comes of it."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from microkernel import InferRequest, ModelConfig, Placement
from microkernel.workers import readiness
from microkernel.workers.contract import Result, Worker
from microkernel.workers.process import ProcessWorker
from microkernel.workers.readiness import LIMIT, Readiness, agreed

Launch = Callable[..., Awaitable[Worker]]
Spawn = Callable[..., Awaitable[ProcessWorker]]
OddConfig = Callable[..., ModelConfig]
Places = Callable[..., list[Placement]]
RunBatch = Callable[..., Awaitable[Result]]
Ask = Callable[..., InferRequest]


@pytest.mark.virtual_time
async def test_who_asks_meanwhile_shares_the_call_and_each_waits_for_the_limit() -> None:
    calls: list[float] = []
    clock = asyncio.get_running_loop()
    asked = Readiness(lambda: calls.append(clock.time()))
    first = asyncio.ensure_future(asked.get())
    await asyncio.sleep(LIMIT - 1)
    second = asyncio.ensure_future(asked.get())
    assert not await first
    assert clock.time() == LIMIT
    asked.said(True)
    assert await second
    third = asyncio.ensure_future(asked.get())
    await asyncio.sleep(1)
    asked.said(False)
    assert not await third
    assert calls == [0, LIMIT]


async def test_one_who_stops_waiting_does_not_end_the_call() -> None:
    asked = Readiness(lambda: None)
    first, second = (asyncio.ensure_future(asked.get()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    asked.said(True)
    assert await second


@pytest.mark.parametrize(
    ("answers", "agree"), [([], True), ([True, True], True), ([True, False], False)]
)
@pytest.mark.virtual_time
async def test_all_must_agree(answers: list[bool], agree: bool) -> None:
    asked = [Readiness(lambda: None) for _ in answers]
    check = asyncio.ensure_future(agreed(asked))
    await asyncio.sleep(1)
    for readiness_of_one, answer in zip(asked, answers, strict=True):
        readiness_of_one.said(answer)
    assert await check is agree
    assert asyncio.get_running_loop().time() == 1


async def test_an_instance_is_asked_beside_what_it_runs(
    launch: Launch,
    odd_config: OddConfig,
    placements: Places,
    run_batch: RunBatch,
    ask: Ask,
    tmp_path: Path,
) -> None:
    worker = await launch()
    instances = await worker.start(odd_config(SAYS="ready"), placements(2))
    first = instances[0].readiness
    assert first is not None
    file = tmp_path / "__pycache__" / "ready"
    os.mkfifo(file)
    checks = [asyncio.ensure_future(first.get()) for _ in range(2)]
    await asyncio.sleep(0)
    await run_batch(instances[0], ask(1))
    await asyncio.to_thread(file.write_text, "yes")
    assert await asyncio.gather(*checks) == [True, True]
    assert (file.parent / "trace").read_text().split().count("asked") == 1
    file.unlink()
    with capture_logs():
        assert not await first.get()
    file.write_text("no")
    assert not await agreed(i.readiness for i in instances if i.readiness is not None)
    file.write_text("yes")
    assert await agreed(i.readiness for i in instances if i.readiness is not None)
    await worker.stop()


async def test_most_instances_are_not_asked(
    launch: Launch, odd_config: OddConfig, placements: Places
) -> None:
    worker = await launch()
    (instance,) = await worker.start(odd_config(), placements())
    assert instance.readiness is None
    await worker.stop()


async def test_one_that_dies_is_not_ready(
    spawn: Spawn,
    odd_config: OddConfig,
    placements: Places,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readiness, "LIMIT", 3600)
    worker = await spawn()
    (instance,) = await worker.start(odd_config(SAYS="ready"), placements())
    assert instance.readiness is not None
    os.mkfifo(tmp_path / "__pycache__" / "ready")
    check = asyncio.ensure_future(instance.readiness.get())
    await asyncio.sleep(0)
    with capture_logs():
        worker.kill("it is time")
    assert not await asyncio.wait_for(check, 10)
    await worker.stop()
