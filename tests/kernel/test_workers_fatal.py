"""A backend that says that its process cannot go on: the batch is answered with what it says, the
worker is replaced, and what waits is answered by the next one."""

import asyncio
import signal
import socket
import struct
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from odd_deeds import deed, rows, stream_deed
from odd_loader import CONFIG, odd_loader
from structlog.testing import capture_logs
from waiting import until

from microkernel import (
    InferRequest,
    InferResponse,
    InvalidArgument,
    ModelConfig,
    Placement,
    ResponseStream,
    Unavailable,
    WorkerFailed,
)
from microkernel.models.version import ModelVersion
from microkernel.stats import Failure
from microkernel.workers import wire
from microkernel.workers.contract import Hosted, Result, Worker
from microkernel.workers.process import ProcessWorker
from microkernel.workers.spawning import Spawned
from microkernel.workers.wire import Kind

Ask = Callable[..., InferRequest]
Children = Callable[[], list[psutil.Process]]
Launch = Callable[[], Awaitable[Worker]]
Load = Callable[..., Awaitable[ModelVersion]]
OddConfig = Callable[..., ModelConfig]
Places = Callable[..., list[Placement]]
RunBatch = Callable[..., Awaitable[Result]]

FIRE = "the device is on fire"
DECOUPLED = "model_transaction_policy { decoupled: true }\n"
KINDS = pytest.mark.parametrize("kind", ["process", "thread"])


def errors(result: Result) -> list[tuple[type, str]]:
    return [(type(answer), str(answer)) for answer in result.answers]


async def read(stream: ResponseStream) -> list[str | list[list[int]]]:
    async with asyncio.timeout(20):
        return [rows(r) if r.error is None else str(r.error) async for r in stream]


@pytest.fixture
async def load(odd_path: None, new_children: Children, tmp_path: Path) -> AsyncIterator[Load]:
    """`model = await load("thread", ...)`: a model on that kind of worker; no process is left in
    the end."""
    loader = odd_loader()
    made: list[ModelVersion] = []

    async def make(kind: str, *more: str) -> ModelVersion:
        directory = tmp_path / "odd"
        (directory / "1").mkdir(parents=True)
        worker = f'parameters {{ key: "WORKER" value {{ string_value: "{kind}" }} }}\n'
        text = textwrap.dedent(CONFIG) + worker + "".join(more)
        (directory / "config.pbtxt").write_text(text)
        made.append(await loader.load(loader.read(directory), directory, 1))
        return made[-1]

    yield make
    for model in made:
        async with asyncio.timeout(20):
            await model.drain()
            await model.stop()
    await loader.close()
    assert new_children() == []


async def test_the_batch_gets_the_reason_and_the_worker_is_lost(
    launch: Launch, odd_config: OddConfig, placements: Places, run_batch: RunBatch, ask: Ask
) -> None:
    worker = await launch()
    (instance,) = await worker.start(odd_config(), placements())
    lost: list[str] = []
    worker.watch(lambda error: lost.append(str(error)))
    with capture_logs():
        result = await run_batch(instance, ask(deed("give_up")), ask(1))
    assert errors(result) == [(WorkerFailed, FIRE)] * 2
    assert len(lost) == 1, "once, and before the batch is answered"
    assert lost[0].endswith(f": {FIRE}")
    await worker.stop()


async def test_what_others_in_the_worker_run_fails_as_in_a_death(
    launch: Launch, odd_config: OddConfig, placements: Places, run_batch: RunBatch, ask: Ask
) -> None:
    worker = await launch()
    busy, broken = await worker.start(odd_config(), placements(2))
    running = asyncio.ensure_future(run_batch(busy, ask(deed("until_cancelled"))))
    await asyncio.sleep(0)
    with capture_logs():
        broke = await run_batch(broken, ask(deed("give_up")))
        ((kind, text),) = errors(await running)
    assert errors(broke) == [(WorkerFailed, FIRE)]
    assert kind is Unavailable
    assert text.endswith(f": {FIRE}")
    busy.cancel(0)  # lets a thread that was left behind end
    await worker.stop()


@KINDS
async def test_what_waits_is_answered_by_the_next_worker(load: Load, ask: Ask, kind: str) -> None:
    model = await load(kind)
    with capture_logs() as logs:
        asked = [ask(deed("give_up")), *(ask(n) for n in range(1, 20))]
        calls = [model.infer(request) for request in asked]
        async with asyncio.timeout(20):
            first, *others = await asyncio.gather(*calls, return_exceptions=True)
    assert (type(first), str(first)) == (WorkerFailed, FIRE)
    answered = [rows(other) for other in others if isinstance(other, InferResponse)]
    assert answered == [[[2 * n]] for n in range(1, 20)]
    events = [line["event"] for line in logs]
    assert (events.count("worker lost"), events.count("worker restarted")) == (1, 1)
    (reason,) = [line["reason"] for line in logs if line["event"] == "worker lost"]
    assert reason.endswith(f": {FIRE}")
    assert (model.stats.success.count, model.stats.failures[Failure.BACKEND]) == (19, 1)


@pytest.mark.parametrize(
    ("text", "expected"), [(FIRE, FIRE), ("", ""), ("é\n漢", "é\n漢"), ("\udcff", "?")]
)
def test_why_a_worker_cannot_go_on_is_any_text(text: str, expected: str) -> None:
    ((kind, body),) = wire.split_messages(bytearray(wire.fatal_message(text)))
    assert (kind, wire.read_fatal(body)) == (Kind.FATAL, expected)


async def test_nothing_more_comes_to_a_worker_while_it_ends(
    hosted: Hosted,
    odd_path: None,
    odd_config: OddConfig,
    placements: Places,
    run_batch: RunBatch,
    ask: Ask,
) -> None:
    """It takes a driver its time to take a process from a GPU."""
    ours, theirs = socket.socketpair()
    exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    worker = ProcessWorker(hosted, Spawned(2**30, ours, exit_code))
    starting = asyncio.ensure_future(worker.start(odd_config(), placements(2)))
    with theirs:
        await asyncio.sleep(0)
        theirs.sendall(wire.control_message(Kind.DONE, []))
        instance, _ = await starting
        lost: list[str] = []
        worker.watch(lambda error: lost.append(str(error)))
        running = asyncio.ensure_future(run_batch(instance, ask(1)))
        await asyncio.sleep(0)
        worker.kill(FIRE)
        assert [text for _, text in errors(await running)] == lost
        assert len(lost) == 1
        assert lost[0].endswith(f"(instances: 'odd_0', 'odd_1') ended: {FIRE}")
        with pytest.raises(Unavailable, match=FIRE):
            await worker.complete(odd_config())
        released = asyncio.ensure_future(worker.released())
        await asyncio.sleep(0)
        assert not released.done()
        exit_code.set_result(-signal.SIGKILL)
        await released
    await worker.stop()
    assert len(lost) == 1


async def test_the_log_says_why_and_where(load: Load, ask: Ask) -> None:
    model = await load("process")
    with capture_logs() as logs, pytest.raises(WorkerFailed, match=FIRE):
        await model.infer(ask(deed("give_up")))
    line = next(line for line in logs if "cannot go on" in line["event"])
    assert line["log_level"] == "error"
    assert line["event"] == "the worker of instance odd_0 cannot go on"
    assert "in _give_up" in line["exception"]


async def test_a_thread_leaves_its_memory_behind_and_says_so(load: Load, ask: Ask) -> None:
    model = await load("thread")
    with capture_logs() as logs, pytest.raises(WorkerFailed, match=FIRE):
        await model.infer(ask(deed("give_up")))
    (line,) = [line for line in logs if line["log_level"] == "warning"]
    assert line["event"] == "what the threads of a model hold is left behind"
    assert line["model"] == "odd"


@KINDS
async def test_every_stream_of_the_instance_ends_once(load: Load, ask: Ask, kind: str) -> None:
    model = await load(kind, DECOUPLED)
    with capture_logs():
        earlier = await model.stream(ask(stream_deed("never")))
        async with asyncio.timeout(20):
            assert rows(await anext(earlier)) == [[1]]
        broken = await model.stream(ask(stream_deed("give_up"), 0))
        assert await read(broken) == [[[0]]]
        assert await read(earlier) == [FIRE]
        again = await model.stream(ask(stream_deed("count"), 2))
        assert await read(again) == [[[0]], [[1]]]
    assert model.stats.failures[Failure.BACKEND] == 1


async def test_a_fault_of_the_warm_up_fails_the_load(load: Load, tmp_path: Path) -> None:
    (tmp_path / "odd" / "warmup").mkdir(parents=True)
    (tmp_path / "odd" / "warmup" / "deed").write_bytes(struct.pack("<i", deed("give_up")))
    given = 'data_type: TYPE_INT32 dims: 1 input_data_file: "deed"'
    sample = (
        f'model_warmup {{ name: "hot" inputs {{ key: "X" value {{ {given} }} }} batch_size: 1 }}'
    )
    with capture_logs(), pytest.raises(InvalidArgument, match=f"warmup sample 'hot': {FIRE}"):
        await load("process", sample)


async def test_restarts_of_one_that_never_lives_come_ever_more_slowly(load: Load, ask: Ask) -> None:
    model = await load("process")
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(WorkerFailed):
                await _ask_until_alive(model, ask(deed("give_up")))
    delays = [line["restart_seconds"] for line in logs if line["event"] == "worker lost"]
    assert delays == [0.1, 0.2, 0.4]


async def _ask_until_alive(model: ModelVersion, request: InferRequest) -> InferResponse:
    await until(lambda: model.ready)
    async with asyncio.timeout(20):
        return await model.infer(request)
