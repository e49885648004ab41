"""The queue's scheduler on virtual time: who runs when, and with whom."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from microkernel import InferRequest, MicrokernelError, ModelConfig, Placement, Unavailable
from microkernel.config.model import DynamicBatching
from microkernel.models.crew import Crew, CrewEvents
from microkernel.models.version import ModelVersion
from microkernel.scheduling.dynamic import queue_scheduler
from microkernel.scheduling.pending import Pending, Runner
from microkernel.scheduling.policy import Batching, OneByOne
from microkernel.scheduling.queue import QueueScheduler
from microkernel.stats import Failure

pytestmark = pytest.mark.virtual_time


class OneInstance:
    """An executor whose single instance takes some time for every batch. `log` holds when each
    batch began and how long each of its requests had waited."""

    def __init__(self, seconds: float) -> None:
        self.log: list[tuple[float, dict[str, float]]] = []
        self.wake: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._busy = False

    def idle(self, on: Runner | None = None) -> bool:
        return not self._busy

    def execute(self, batch: Sequence[Pending], on: Runner | None = None) -> None:
        self._busy = True
        now = self._loop.time()
        self.log.append((now, {p.request.id: now - p.arrived for p in batch}))
        self._loop.call_later(self._seconds, self._freed)

    def reject(self, pending: Pending, error: MicrokernelError, reason: Failure) -> None:
        raise AssertionError("a request that nobody gave up was rejected")

    def _freed(self) -> None:
        self._busy = False
        self.wake()


def pending(name: str, size: int = 1, key: str = "") -> Pending:
    loop = asyncio.get_running_loop()
    return Pending(InferRequest("m", (), id=name), size, key, loop.create_future(), loop.time(), 0)


def batcher(largest: int, *preferred: int, delay: float) -> Batching:
    return Batching(largest, frozenset(preferred or (largest,)), delay)


def scheduler_of(policy: Any, seconds: float = 10.0) -> tuple[QueueScheduler, OneInstance]:
    executor = OneInstance(seconds)
    scheduler = QueueScheduler(policy, executor)
    executor.wake = scheduler.wake
    return scheduler, executor


async def submit_at(scheduler: QueueScheduler, *arrivals: tuple[float, str, int]) -> None:
    for when, name, size in arrivals:
        await asyncio.sleep(when - asyncio.get_running_loop().time())
        scheduler.submit(pending(name, size))


TIMELINE = ((0, "R1", 1), (2, "R2", 1), (6, "R3", 1), (12, "R4", 1), (13, "R5", 3))


async def test_the_worked_timeline() -> None:
    scheduler, executor = scheduler_of(batcher(4, delay=5))
    await submit_at(scheduler, *TIMELINE)
    await asyncio.sleep(100)
    assert executor.log == [
        (5, {"R1": 5, "R2": 3}),
        (15, {"R3": 9, "R4": 3}),
        (25, {"R5": 12}),
    ]
    assert scheduler.waiting == 0


async def test_the_worked_timeline_in_statistics(
    fake_worker: Any, odd_config: Callable[..., ModelConfig], ask: Callable[..., InferRequest]
) -> None:
    config = odd_config(
        max_batch_size=4,
        dynamic=DynamicBatching((4,), max_queue_delay_microseconds=5_000_000),
    )
    worker = fake_worker(seconds=10)

    def crew(events: CrewEvents) -> Crew:
        async def launch() -> Any:
            return worker

        return Crew(launch, config, [[Placement("odd_0", "KIND_CPU")]], events)

    model = ModelVersion(config, 1, crew)
    await model.start(worker)
    loop, ends = asyncio.get_running_loop(), {}

    async def infer(when: float, name: str, size: int) -> None:
        await asyncio.sleep(when)
        await model.infer(ask(*[[0]] * size, request_id=name))
        ends[name] = loop.time()

    await asyncio.gather(*(infer(*arrival) for arrival in TIMELINE))
    (instance,) = worker.instances
    assert instance.batches == [(5, ["R1", "R2"]), (15, ["R3", "R4"]), (25, ["R5"])]
    assert ends == {"R1": 15, "R2": 15, "R3": 25, "R4": 25, "R5": 35}
    stats = model.stats
    assert (stats.success.count, stats.inference_count, stats.execution_count) == (5, 7, 3)
    assert {size: b.compute_infer.count for size, b in stats.batches.items()} == {2: 2, 3: 1}
    assert (stats.fail.count, stats.pending) == (0, 0)


async def test_the_default_scheduler_runs_in_order_of_arrival() -> None:
    scheduler, executor = scheduler_of(OneByOne(), seconds=1)
    for name in "abc":
        scheduler.submit(pending(name))
    assert (executor.log, scheduler.waiting) == ([(0, {"a": 0})], 2)
    await asyncio.sleep(10)
    assert executor.log == [(0, {"a": 0}), (1, {"b": 1}), (2, {"c": 2})]


async def test_a_preferred_size_ends_the_wait() -> None:
    scheduler, executor = scheduler_of(batcher(8, 2, delay=100))
    await submit_at(scheduler, (0, "a", 1), (3, "b", 1))
    assert executor.log == [(3, {"a": 3, "b": 0})]


async def test_what_is_left_behind_a_batch_keeps_its_own_deadline() -> None:
    scheduler, executor = scheduler_of(batcher(4, 4, delay=5), seconds=0)
    await submit_at(scheduler, (0, "a", 3), (1, "b", 3))
    assert executor.log == [(1, {"a": 1})]
    await asyncio.sleep(100)
    assert executor.log == [(1, {"a": 1}), (6, {"b": 5})]


BEHIND_ONE = ((0, "R0", 4), *((1 + n / 10, f"R{n + 1}", 1) for n in range(7)))


@pytest.mark.parametrize(
    ("dynamic", "batches"),
    [
        pytest.param(DynamicBatching((4,), 20_000_000), [(0, 1), (10, 7)], id="delay"),
        pytest.param(DynamicBatching((4,)), [(0, 1), (10, 4), (20, 3)], id="no delay"),
        pytest.param(
            DynamicBatching((4,), 20_000_000, priority_levels=1, default_priority_level=1),
            [(0, 1), (10, 4), (21.4, 3)],
            id="priorities",
        ),
    ],
)
async def test_a_batch_grows_while_it_waits_for_an_instance(
    dynamic: DynamicBatching, batches: list[tuple[float, int]]
) -> None:
    """Beyond its preferred size, but not where Triton closes it there, nor where it prepares
    none."""
    executor = OneInstance(10)
    scheduler = queue_scheduler(ModelConfig(max_batch_size=8, dynamic_batching=dynamic), executor)
    executor.wake = scheduler.wake
    await submit_at(scheduler, *BEHIND_ONE)
    await asyncio.sleep(100)
    assert [(when, len(waits)) for when, waits in executor.log] == batches


async def test_a_batch_does_not_grow_while_an_instance_is_free() -> None:
    scheduler, executor = scheduler_of(batcher(8, 4, delay=5), seconds=0)
    await submit_at(scheduler, (0, "a", 3), (1, "b", 3))
    assert executor.log == [(1, {"a": 1})]


async def test_requests_of_another_key_close_a_batch() -> None:
    scheduler, executor = scheduler_of(batcher(4, delay=5), seconds=1)
    for name, key in (("a", "x"), ("b", "y"), ("c", "y")):
        scheduler.submit(pending(name, key=key))
    await asyncio.sleep(100)
    assert executor.log == [(0, {"a": 0}), (5, {"b": 5, "c": 5})]


async def test_an_abandoned_request_does_not_run() -> None:
    scheduler, executor = scheduler_of(batcher(4, delay=5), seconds=1)
    gone, stays = pending("gone"), pending("stays")
    scheduler.submit(gone)
    await asyncio.sleep(1)
    scheduler.submit(stays)
    assert scheduler.abandon(gone)
    assert not scheduler.abandon(gone)
    await asyncio.sleep(100)
    assert [list(waits) for _, waits in executor.log] == [["stays"]]
    assert not scheduler.abandon(stays)


async def test_a_closed_scheduler_refuses_and_finishes() -> None:
    scheduler, executor = scheduler_of(batcher(4, delay=5))
    scheduler.submit(pending("early"))
    scheduler.close()
    text = (
        r"^\[request id: late\] Server is stopping, scheduler for model has stopped accepting new "
        r"inference requests$"
    )
    with pytest.raises(Unavailable, match=text):
        scheduler.submit(pending("late"))
    await asyncio.sleep(100)
    assert executor.log == [(5, {"early": 5})]


async def test_what_waits_can_be_taken_back() -> None:
    scheduler, executor = scheduler_of(batcher(4, delay=5))
    waiting = [pending("a"), pending("b")]
    for request in waiting:
        scheduler.submit(request)
    assert scheduler.take_all() == waiting
    await asyncio.sleep(100)
    assert (executor.log, scheduler.waiting) == ([], 0)


@pytest.mark.parametrize(
    ("dynamic", "batches"),
    [(None, [["a"], ["b"], ["c"]]), (DynamicBatching(), [["a"], ["b", "c"]])],
)
async def test_the_configuration_chooses_the_scheduler(
    dynamic: DynamicBatching | None, batches: list[list[str]]
) -> None:
    executor = OneInstance(1)
    config = ModelConfig(max_batch_size=4, dynamic_batching=dynamic)
    scheduler = queue_scheduler(config, executor)
    executor.wake = scheduler.wake
    for name in "abc":
        scheduler.submit(pending(name))
    await asyncio.sleep(10)
    assert [list(waits) for _, waits in executor.log] == batches


async def test_an_executor_that_answers_at_once_may_have_a_long_queue() -> None:
    scheduler, executor = scheduler_of(OneByOne())
    names = [str(number) for number in range(5000)]
    scheduler.submit(pending("first"))
    for name in names:
        scheduler.submit(pending(name))
    seen: list[str] = []

    def answer(batch: Sequence[Pending], on: Runner | None = None) -> None:
        seen.extend(p.request.id for p in batch)
        scheduler.wake()

    executor.execute = answer  # type: ignore[method-assign]
    await asyncio.sleep(10)
    assert seen == names
