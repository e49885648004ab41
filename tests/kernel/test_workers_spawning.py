"""Starting worker processes: fork servers, settings, and what fails before the first batch."""

import asyncio
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from waiting import gone

from microkernel import (
    BackendType,
    InferRequest,
    MicrokernelError,
    ModelConfig,
    Placement,
    Unavailable,
)
from microkernel.request import Answer
from microkernel.workers import wire
from microkernel.workers.contract import Hosted, Result
from microkernel.workers.process import ProcessWorker
from microkernel.workers.spawning import ForkServers, Spawned
from microkernel.workers.wire import Kind

Spawn = Callable[..., Awaitable[ProcessWorker]]
RunBatch = Callable[..., Awaitable[Result]]
Ask = Callable[..., InferRequest]
OddConfig = Callable[..., ModelConfig]
Places = Callable[..., list[Placement]]
Children = Callable[[], list[psutil.Process]]


async def test_settings_reach_the_backend(
    forks: ForkServers, hosted: Hosted, odd_config: OddConfig, placements: Places
) -> None:
    from odd_backend import (  # type: ignore[import-not-found]  # on the path in these tests
        OddSettings,
    )

    kind = BackendType("odd", "odd_backend:make_with_settings")
    settings = OddSettings(fail="load", words=("a", "b"))
    hosted = Hosted(kind, settings, "odd", 1, hosted.files)
    worker = await ProcessWorker.spawn(hosted, forks)
    with pytest.raises(MicrokernelError, match=r"told to fail at load with \('a', 'b'\)"):
        await worker.start(odd_config(), placements())
    await worker.stop()


async def test_a_missing_backend_is_an_error_of_the_load(
    forks: ForkServers, hosted: Hosted, odd_config: OddConfig, placements: Places, tmp_path: Path
) -> None:
    hosted = Hosted(BackendType("odd", "no_such_module:Backend"), None, "odd", 1, tmp_path)
    worker = await ProcessWorker.spawn(hosted, forks)
    with pytest.raises(MicrokernelError, match="ModuleNotFoundError: No module named 'no_such_mo"):
        await worker.start(odd_config(), placements())
    await worker.stop()


async def test_a_death_between_the_start_and_its_news_fails_the_start(
    hosted: Hosted, odd_path: None, odd_config: OddConfig, placements: Places
) -> None:
    ours, theirs = socket.socketpair()
    exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    worker = ProcessWorker(hosted, Spawned(2**30, ours, exit_code))
    starting = asyncio.ensure_future(worker.start(odd_config(), placements()))
    with theirs:
        await asyncio.sleep(0)
        theirs.sendall(wire.control_message(Kind.DONE, []))
        await asyncio.sleep(0)  # now the loop has seen the message, and reads it after this
        exit_code.set_result(-signal.SIGKILL)
        with pytest.raises(Unavailable, match="killed by signal SIGKILL"):
            await starting
    await worker.stop()


async def test_when_the_fork_server_ends_so_do_its_workers_and_another_takes_over(
    new_children: Children,
    spawn: Spawn,
    odd_config: OddConfig,
    placements: Places,
    run_batch: RunBatch,
    ask: Ask,
) -> None:
    worker = await spawn()
    await worker.start(odd_config(), placements())
    lost: asyncio.Future[MicrokernelError] = asyncio.get_running_loop().create_future()
    worker.watch(lost.set_result)
    (server,) = new_children()
    (child,) = server.children()
    server.kill()
    async with asyncio.timeout(10):
        assert str(await lost).endswith("ended: killed by signal SIGKILL")
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()
    again = await spawn()
    assert gone(server.pid)  # not even a zombie is left
    (instance,) = await again.start(odd_config(), placements())
    (answer,) = (await run_batch(instance, ask(4))).answers
    assert isinstance(answer, Answer)
    assert answer.outputs[0].as_numpy().tolist() == [[8]]
    await again.stop()


async def test_an_interpreter_that_cannot_start_is_an_error(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(Unavailable, match=r"no worker process can be started: .*No such file"):
        await spawn()


async def test_a_fork_server_that_cannot_import_is_an_error(
    forks: ForkServers, hosted: Hosted
) -> None:
    kind = BackendType("odd", "odd_backend:OddBackend", preload=("no_such_module",))
    with pytest.raises(Unavailable, match="the fork server ended before it could start a worker"):
        await ProcessWorker.spawn(Hosted(kind, None, "odd", 1, hosted.files), forks)
