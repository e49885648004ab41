"""A load that never ends: how long a worker has until its instances are made."""

import asyncio
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from odd_loader import CONFIG, odd_loader
from structlog.testing import capture_logs
from waiting import until

from microkernel import (
    InferRequest,
    InvalidArgument,
    ModelConfig,
    ModelParameter,
    Placement,
    Unavailable,
)
from microkernel.models.loader import Loader
from microkernel.models.version import ModelVersion
from microkernel.workers.process import ProcessWorker
from microkernel.workers.timed import TimedWorker
from microkernel.workers.timeouts import NO_TIMEOUTS, Timeouts, parse_timeouts, refuse_load_timeout

Ask = Callable[..., InferRequest]
Load = Callable[..., Awaitable[ModelVersion]]
Children = Callable[[], list[psutil.Process]]

PLACES = [Placement("m_0", "KIND_CPU")]


def config(**parameters: str) -> ModelConfig:
    return ModelConfig(name="m", parameters={k: ModelParameter(v) for k, v in parameters.items()})


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, NO_TIMEOUTS),
        ({"LOAD_TIMEOUT_SECS": "0"}, NO_TIMEOUTS),
        ({"LOAD_TIMEOUT_SECS": "90"}, Timeouts(load=90.0)),
        ({"EXECUTION_TIMEOUT_SECS": "0.5"}, Timeouts(execution=0.5)),
        ({"EXECUTION_TIMEOUT_SECS": "1", "LOAD_TIMEOUT_SECS": "1e2"}, Timeouts(1.0, 100.0)),
    ],
)
def test_reading(parameters: dict[str, str], expected: Timeouts) -> None:
    assert parse_timeouts(config(**parameters)) == expected


@pytest.mark.parametrize("key", ["EXECUTION_TIMEOUT_SECS", "LOAD_TIMEOUT_SECS"])
@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf", "1e999", "5s"])
def test_what_is_no_number_of_seconds_is_named(key: str, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_timeouts(config(**{key: text}))
    assert str(caught.value) == (
        f"parameter '{key}' of model 'm' must be a number of seconds, 0 for no limit, got '{text}'"
    )


def test_threads_of_the_server_have_no_limit() -> None:
    refuse_load_timeout(config(), Timeouts(execution=3.0))
    with pytest.raises(InvalidArgument) as caught:
        refuse_load_timeout(config(), Timeouts(load=3.0))
    assert str(caught.value) == (
        "parameter 'LOAD_TIMEOUT_SECS' of model 'm' holds for a worker process, but its parameter "
        "'WORKER' is 'thread', which runs it in the server's; use 'process' or 'instance'"
    )


@pytest.fixture
def slow_worker(fake_worker: Any) -> Callable[..., Any]:
    """`slow_worker(completing, starting)`: a worker in memory that takes so many seconds for
    either; `killed` are the reasons that it was given."""

    class Slow(fake_worker):  # type: ignore[misc]  # a class that a fixture gives
        def __init__(self, completing: float, starting: float) -> None:
            super().__init__()
            self.killed: list[str] = []
            self._times = completing, starting

        async def complete(self, config: ModelConfig) -> ModelConfig:
            await asyncio.sleep(self._times[0])
            return config

        async def start(self, config: ModelConfig, placements: Any) -> Any:
            await asyncio.sleep(self._times[1])
            return await super().start(config, placements)

        def kill(self, reason: str) -> None:
            self.killed.append(reason)

    return Slow


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("completing", "reading", "starting", "was_still"),
    [
        (4, 0, 5, None),
        (0, 9, 0, None),
        (11, 0, 0, "completing the configuration"),
        (4, 7, 0, "waiting until the server has read the model's files"),
        (4, 3, 4, "starting the instances"),
    ],
)
async def test_the_clock_runs_until_the_instances_are_made(
    slow_worker: Any, completing: float, reading: float, starting: float, was_still: str | None
) -> None:
    inner = slow_worker(completing, starting)
    worker = TimedWorker(inner, 10)
    await worker.complete(config())
    await asyncio.sleep(reading)
    instances = await worker.start(config(), PLACES)
    await asyncio.sleep(1000)
    assert [instance.name for instance in instances] == ["m_0"]
    text = (
        "it took longer to load than the 10 seconds of the model's parameter 'LOAD_TIMEOUT_SECS', "
        f"and was still {was_still}"
    )
    assert inner.killed == ([] if was_still is None else [text])


@pytest.mark.virtual_time
async def test_a_worker_that_is_stopped_or_fails_is_not_ended_later(slow_worker: Any) -> None:
    stopped, failing = slow_worker(0, 0), slow_worker(0, 0)
    failing._failure = Unavailable("no luck")
    await TimedWorker(stopped, 10).stop()
    with pytest.raises(Unavailable, match="no luck"):
        await TimedWorker(failing, 10).start(config(), PLACES)
    await asyncio.sleep(1000)
    assert (stopped.stopped, stopped.killed, failing.killed) == (True, [], [])


async def test_a_worker_that_is_killed_as_it_answers_is_not_taken_for_alive(
    spawn: Callable[..., Awaitable[ProcessWorker]], odd_config: Callable[..., ModelConfig]
) -> None:
    worker = await spawn()
    settle = worker._settle

    def last_words(answer: object) -> None:
        settle(answer)
        worker.kill("its time is over")

    worker._settle = last_words  # type: ignore[method-assign]  # what happens in the same turn
    with pytest.raises(Unavailable, match="its time is over"):
        await worker.start(odd_config(), PLACES)
    await worker.stop()


@pytest.fixture
async def loader(odd_path: None, new_children: Children) -> AsyncIterator[Loader]:
    made = odd_loader(verbose=True)
    yield made
    await made.close()
    assert new_children() == []


@pytest.fixture
async def load(loader: Loader, tmp_path: Path) -> AsyncIterator[Load]:
    """`model = await load(FAIL="load hangs", LOAD_TIMEOUT_SECS="0.2")`: a model with those
    parameters; its name is `name`."""
    made: list[ModelVersion] = []

    async def make(name: str = "odd", **parameters: str) -> ModelVersion:
        directory = tmp_path / name
        made.append(await loader.load(written(loader, directory, parameters), directory, 1))
        return made[-1]

    yield make
    for model in made:
        await model.drain()
        await model.stop()


def written(
    loader: Loader, directory: Path, parameters: dict[str, str], more: str = ""
) -> ModelConfig:
    (directory / "1").mkdir(parents=True, exist_ok=True)
    lines = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in parameters.items()
    )
    (directory / "config.pbtxt").write_text(textwrap.dedent(CONFIG) + lines + more)
    return loader.read(directory)


@pytest.mark.parametrize(
    ("fail", "names", "was_still"),
    [
        ("complete hangs", "none yet", "completing the configuration"),
        ("load hangs", "'odd_0'", "starting the instances"),
        ("instance hangs", "'odd_0'", "starting the instances"),
    ],
)
async def test_a_load_that_hangs_fails_and_others_serve(
    load: Load, ask: Ask, new_children: Children, fail: str, names: str, was_still: str
) -> None:
    other = await load("other")
    workers = [worker for server in new_children() for worker in server.children()]
    with pytest.raises(Unavailable) as caught:
        await load(FAIL=fail, LOAD_TIMEOUT_SECS="0.3")
    assert str(caught.value) == (
        f"the worker process of model 'odd' (instances: {names}) ended: it took longer to load "
        f"than the 0.3 seconds of the model's parameter 'LOAD_TIMEOUT_SECS', and was still "
        f"{was_still}"
    )
    assert (await other.infer(ask(2))).outputs[0].as_numpy().tolist() == [[4]]
    left = [worker for server in new_children() for worker in server.children()]
    assert left == workers


async def test_asking_for_a_complete_configuration_is_limited_as_well(
    loader: Loader, tmp_path: Path
) -> None:
    parameters = {"FAIL": "complete hangs", "LOAD_TIMEOUT_SECS": "0.3"}
    config = written(loader, tmp_path / "odd", parameters)
    with pytest.raises(Unavailable, match="was still completing the configuration"):
        await loader.completed(config, tmp_path / "odd", 1)


async def test_every_worker_of_a_model_has_the_limit_for_itself(
    loader: Loader, new_children: Children, tmp_path: Path
) -> None:
    parameters = {"FAIL": "instance hangs", "LOAD_TIMEOUT_SECS": "0.3", "WORKER": "instance"}
    count = "instance_group { kind: KIND_CPU count: 3 }"
    config = written(loader, tmp_path / "odd", parameters, count)
    with pytest.raises(
        Unavailable, match=r"\(instances: 'odd_0_0'\) ended: it took longer to load"
    ):
        await loader.load(config, tmp_path / "odd", 1)
    assert not any(server.children() for server in new_children())


async def test_a_worker_that_comes_back_has_the_limit_too(
    load: Load, ask: Ask, tmp_path: Path
) -> None:
    from odd_backend import DEEDS  # type: ignore[import-not-found]  # on the path in these tests

    model = await load(FAIL="hangs after once", LOAD_TIMEOUT_SECS="1")
    with capture_logs() as lines:
        with pytest.raises(Unavailable, match="exit code 7"):
            await model.infer(ask(DEEDS["exit"]))
        await until(lambda: sum(e["event"] == "worker restart failed" for e in lines) >= 2)
        (tmp_path / "odd" / "1" / "loaded").unlink()
        await until(lambda: model.ready)
    reasons = [line["reason"] for line in lines if line["event"] == "worker restart failed"]
    assert all("took longer to load than the 1 seconds" in reason for reason in reasons)
    assert (await model.infer(ask(4))).outputs[0].as_numpy().tolist() == [[8]]
