"""Models on real workers, from a directory to answers: they come back after a crash, and nothing
stays behind."""

import asyncio
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from odd_deeds import deed, rows
from odd_loader import CONFIG, odd_loader
from structlog.testing import capture_logs
from waiting import until

from microkernel import (
    InferRequest,
    Internal,
    InvalidArgument,
    Unavailable,
)
from microkernel.models.loader import Loader
from microkernel.models.version import ModelVersion

Ask = Callable[..., InferRequest]
Load = Callable[..., Awaitable[ModelVersion]]
Children = Callable[[], list[psutil.Process]]


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def instances(count: int) -> str:
    return f"instance_group {{ kind: KIND_CPU count: {count} }}\n"


def serves(model: ModelVersion) -> bool:
    return model.ready


@pytest.fixture
async def loader(odd_path: None, new_children: Children) -> AsyncIterator[Loader]:
    made = odd_loader(verbose=True)
    yield made
    await made.close()
    assert new_children() == []


@pytest.fixture
async def load(loader: Loader, tmp_path: Path) -> AsyncIterator[Load]:
    """`model = await load(parameter("WORKER", "thread"), ...)`: version 1 of a model, stopped in
    the end."""
    made: list[ModelVersion] = []

    async def make(*more: str) -> ModelVersion:
        directory = tmp_path / "odd"
        (directory / "1").mkdir(parents=True, exist_ok=True)
        (directory / "config.pbtxt").write_text(textwrap.dedent(CONFIG) + "".join(more))
        config = loader.read(directory)
        made.append(await loader.load(config, directory, 1))
        return made[-1]

    yield make
    for model in made:
        await model.drain()
        await model.stop()


def trace(tmp_path: Path) -> list[str]:
    return (tmp_path / "odd" / "1" / "__pycache__" / "trace").read_text().splitlines()


@pytest.mark.parametrize("kind", ["process", "instance", "thread"])
async def test_every_kind_of_worker_serves(load: Load, ask: Ask, tmp_path: Path, kind: str) -> None:
    model = await load(parameter("WORKER", kind), instances(2))
    assert serves(model)
    assert model.stats.load_seconds > 0
    responses = await asyncio.gather(*(model.infer(ask(n, request_id=str(n))) for n in range(20)))
    assert [rows(response) for response in responses] == [[[2 * n]] for n in range(20)]
    assert [response.id for response in responses] == [str(n) for n in range(20)]
    await model.drain()
    await model.stop()
    assert not serves(model)
    unloads = 2 if kind == "instance" else 1
    events = trace(tmp_path)
    assert events.count("unloaded") == unloads
    assert sorted(e for e in events if e.startswith("closed")) == [
        "closed odd_0_0",
        "closed odd_0_1",
    ]


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("exit", "exit code 7"),
        ("segfault", "killed by signal SIGSEGV"),
        ("kill", "killed by signal SIGKILL"),
    ],
)
async def test_a_model_serves_again_after_a_crash(
    load: Load, ask: Ask, name: str, cause: str
) -> None:
    model = await load()
    assert rows(await model.infer(ask(1))) == [[2]]
    with capture_logs() as lines, pytest.raises(Unavailable) as caught:
        await model.infer(ask(deed(name)))
    text = f"the worker process of model 'odd' (instances: 'odd_0') ended: {cause}"
    assert str(caught.value) == text
    assert not serves(model)
    waits = asyncio.ensure_future(model.infer(ask(4)))  # it arrives while nobody is there
    assert rows(await asyncio.wait_for(waits, 20)) == [[8]]
    assert serves(model)
    (lost,) = [line for line in lines if line["event"] == "worker lost"]
    assert (lost["model"], lost["reason"]) == ("odd", text)


async def test_a_crash_of_one_worker_leaves_the_other_to_serve(load: Load, ask: Ask) -> None:
    model = await load(parameter("WORKER", "instance"), instances(2))
    hangs = asyncio.ensure_future(model.infer(ask(deed("hang"))))
    await asyncio.sleep(0)
    with capture_logs(), pytest.raises(Unavailable, match=r"ended: exit code 7"):
        await model.infer(ask(deed("exit")))
    assert serves(model)
    await until(lambda: model.idle())
    assert rows(await model.infer(ask(4))) == [[8]]
    assert not hangs.done()
    with capture_logs():
        model.abandon("the test is over")
        with pytest.raises(Unavailable, match="the test is over"):
            await hangs


async def test_what_waits_is_answered_when_the_worker_does_not_come_back(
    load: Load, ask: Ask, tmp_path: Path
) -> None:
    model = await load(parameter("FAIL", "once"))
    with capture_logs():
        dies = asyncio.ensure_future(model.infer(ask(deed("exit"))))
        waits = asyncio.ensure_future(model.infer(ask(1)))
        with pytest.raises(Unavailable, match="exit code 7"):
            await dies
        with pytest.raises(Unavailable, match="no instance of model 'odd' is alive: Stranger: can"):
            await asyncio.wait_for(waits, 20)
        (tmp_path / "odd" / "1" / "loaded").unlink()
        await until(lambda: serves(model))
    assert rows(await model.infer(ask(4))) == [[8]]


async def test_a_hanging_execution_is_ended_by_the_limit(load: Load, ask: Ask) -> None:
    model = await load(parameter("EXECUTION_TIMEOUT_SECS", "0.2"))
    with capture_logs(), pytest.raises(Unavailable) as caught:
        await model.infer(ask(deed("hang")))
    assert str(caught.value) == (
        "the worker process of model 'odd' (instances: 'odd_0') ended: an execution took longer "
        "than 0.2 seconds"
    )
    assert rows(await model.infer(ask(4))) == [[8]]


async def test_a_hanging_thread_is_left_behind(load: Load, ask: Ask) -> None:
    model = await load(parameter("WORKER", "thread") + parameter("EXECUTION_TIMEOUT_SECS", "0.2"))
    with capture_logs(), pytest.raises(Unavailable) as caught:
        await model.infer(ask(deed("hang")))
    assert str(caught.value) == (
        "the threads of model 'odd' were given up: an execution took longer than 0.2 seconds"
    )
    await until(lambda: serves(model))
    assert rows(await model.infer(ask(4))) == [[8]]


@pytest.mark.parametrize(
    ("more", "kind", "text"),
    [
        (parameter("FAIL", "load"), Internal, "Stranger: cannot load"),
        (parameter("FAIL", "odd_0_1") + instances(2), InvalidArgument, "no instance odd_0_1 today"),
        (parameter("FAIL", "complete"), InvalidArgument, "cannot complete"),
        (parameter("FAIL", "load exit"), Unavailable, "the worker process of model 'odd' "),
        (
            parameter("WORKER", "magic"),
            InvalidArgument,
            "parameter 'WORKER' of model 'odd' must be one of process, instance, thread, got "
            "'magic'",
        ),
        (
            parameter("EXECUTION_TIMEOUT_SECS", "soon"),
            InvalidArgument,
            "parameter 'EXECUTION_TIMEOUT_SECS' of model 'odd' must be a number of seconds, 0 for "
            "no limit, got 'soon'",
        ),
        (parameter("EXECUTION_TIMEOUT_SECS", "-1"), InvalidArgument, "parameter 'EXECUTION_TIM"),
        (parameter("EXECUTION_TIMEOUT_SECS", "inf"), InvalidArgument, "parameter 'EXECUTION_TIM"),
        (
            parameter("LOAD_TIMEOUT_SECS", "soon"),
            InvalidArgument,
            "parameter 'LOAD_TIMEOUT_SECS' of model 'odd' must be a number of seconds, 0 for no "
            "limit, got 'soon'",
        ),
        (
            parameter("LOAD_TIMEOUT_SECS", "5") + parameter("WORKER", "thread"),
            InvalidArgument,
            "parameter 'LOAD_TIMEOUT_SECS' of model 'odd' holds for a worker process, but its "
            "parameter 'WORKER' is 'thread'",
        ),
        (
            'sequence_batching { state { input_name: "S" output_name: "T" data_type: TYPE_INT8 '
            'dims: 1 initial_state { name: "s" data_type: TYPE_INT8 dims: 1 data_file: "s" } } }\n',
            InvalidArgument,
            "file 's' of the initial state of 'S' cannot be read",
        ),
    ],
)
async def test_a_model_that_cannot_be_loaded_leaves_no_process(
    load: Load, new_children: Children, more: str, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as caught:
        await load(more)
    assert str(caught.value).startswith(text)
    await until(lambda: not any(server.children() for server in new_children()))


async def test_a_thread_worker_that_cannot_start_unloads_its_model_once(
    load: Load, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match="no instance odd_0_1 today"):
        await load(parameter("WORKER", "thread"), parameter("FAIL", "odd_0_1"), instances(2))
    assert trace(tmp_path) == ["made odd_0_0", "closed odd_0_0", "unloaded"]
