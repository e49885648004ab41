"""Metrics that backends declare, from workers of either kind to the books of the page."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from microkernel import BackendType, InferRequest, ModelConfig, Placement, Unavailable
from microkernel.metrics.custom import CustomMetrics
from microkernel.workers.contract import Hosted, Result
from microkernel.workers.process import ProcessWorker
from microkernel.workers.spawning import ForkServers
from microkernel.workers.thread import ThreadWorker

RunBatch = Callable[..., Awaitable[Result]]
Ask = Callable[..., InferRequest]
OddConfig = Callable[..., ModelConfig]
Places = Callable[..., list[Placement]]
Launch = Callable[[], Awaitable[ProcessWorker | ThreadWorker]]


@pytest.fixture
def books() -> CustomMetrics:
    return CustomMetrics(["nv_inference_count"])


@pytest.fixture
def counting(tmp_path: Path) -> Hosted:
    return Hosted(BackendType("odd", "odd_metrics:CountingBackend"), None, "odd", 1, tmp_path)


@pytest.fixture
async def process(
    forks: ForkServers, books: CustomMetrics, counting: Hosted
) -> AsyncIterator[Launch]:
    started: list[ProcessWorker] = []

    async def launch() -> ProcessWorker:
        started.append(await ProcessWorker.spawn(counting, forks, metrics=books))
        return started[-1]

    yield launch
    for worker in started:
        await worker.stop()


@pytest.fixture(params=["process", "thread"])
def counter(
    request: pytest.FixtureRequest, odd_path: None, books: CustomMetrics, counting: Hosted
) -> Launch:
    """A worker of either kind."""
    if request.param == "process":
        launch: Launch = request.getfixturevalue("process")
        return launch

    async def thread() -> ThreadWorker:
        return ThreadWorker(counting, books)

    return thread


def value(result: Result) -> Any:
    """The first number of the first answer."""
    answer: Any = result.answers[0]
    return answer.outputs[0].as_numpy().flat[0]


async def test_families_come_with_the_model_and_go_with_it(
    counter: Launch,
    odd_config: OddConfig,
    placements: Places,
    books: CustomMetrics,
    run_batch: RunBatch,
    ask: Ask,
    tmp_path: Path,
) -> None:
    worker = await counter()
    config = await worker.complete(odd_config())
    (instance,) = await worker.start(config, placements())
    assert 'odd_numbers{part="all"} 100\n' in books.text()
    assert value(await run_batch(instance, ask(3), ask(4))) == 107
    page = books.text()
    assert 'odd_numbers{part="all"} 107\n' in page
    assert "# HELP odd_sizes Sizes.\n# TYPE odd_sizes histogram\n" in page
    assert 'odd_sizes_bucket{le="1"} 0\nodd_sizes_bucket{le="10"} 1\n' in page
    assert "odd_completions" not in page
    await worker.stop()
    assert books.text() == ""
    assert (tmp_path / "last").read_text() == "107.0"


async def test_workers_share_a_series_until_the_last_has_ended(
    counter: Launch,
    odd_config: OddConfig,
    placements: Places,
    books: CustomMetrics,
) -> None:
    one, two = await counter(), await counter()
    for worker in (one, two):
        await worker.start(odd_config(), placements())
    assert 'odd_numbers{part="all"} 200\n' in books.text()
    await one.stop()
    assert 'odd_numbers{part="all"} 200\n' in books.text()
    await two.stop()
    assert books.text() == ""


async def test_what_a_process_held_is_forgotten_when_it_is_killed(
    process: Launch,
    odd_config: OddConfig,
    placements: Places,
    books: CustomMetrics,
    run_batch: RunBatch,
    ask: Ask,
) -> None:
    worker = await process()
    (instance,) = await worker.start(odd_config(), placements())
    lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    worker.watch(lost.set_result)
    result = await run_batch(instance, ask(-1))
    assert isinstance(result.answers[0], Unavailable)
    assert isinstance(await lost, Unavailable)
    assert books.text() == ""


async def test_threads_that_are_given_up_cannot_reach_the_page(
    odd_path: None, counting: Hosted, odd_config: OddConfig, placements: Places
) -> None:
    books = CustomMetrics(())
    worker = ThreadWorker(counting, books)
    await worker.start(odd_config(), placements())
    worker.kill("a reason")
    assert books.text() == ""
    await worker.stop()
    assert not (counting.files / "last").exists()  # the model was told that there is no page


async def test_without_books_metrics_work_and_are_nowhere(
    odd_path: None,
    counting: Hosted,
    odd_config: OddConfig,
    placements: Places,
    run_batch: RunBatch,
    ask: Ask,
) -> None:
    worker = ThreadWorker(counting)
    (instance,) = await worker.start(odd_config(), placements())
    assert value(await run_batch(instance, ask(5))) == 105
    await worker.stop()
