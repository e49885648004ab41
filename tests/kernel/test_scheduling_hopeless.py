"""Requests that cannot run in time are refused at once, and no others."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from microkernel import (
    DynamicBatching,
    InferRequest,
    InstanceGroup,
    MicrokernelError,
    ModelConfig,
    ModelParameter,
    Unavailable,
)
from microkernel.config.model import QueuePolicy
from microkernel.scheduling.dynamic import queue_scheduler
from microkernel.scheduling.hopeless import Capacity, Prospects
from microkernel.scheduling.pending import Pending, Runner
from microkernel.stats import Failure

pytestmark = pytest.mark.virtual_time


@pytest.mark.parametrize(
    ("largest", "instances", "ahead", "seconds", "wait"),
    [
        (4, 1, 0, 2.0, 0.0),
        (4, 1, 3, 2.0, 0.0),  # it still fits into the next batch
        (4, 1, 4, 2.0, 2.0),
        (4, 1, 11, 2.0, 4.0),
        (4, 2, 4, 2.0, 1.0),
        (1, 4, 8, 2.0, 4.0),
    ],
)
def test_how_long_a_newcomer_waits(
    largest: int, instances: int, ahead: int, seconds: float, wait: float
) -> None:
    assert Capacity(largest, instances).wait(ahead, seconds) == wait


@pytest.mark.parametrize(
    ("config", "capacity"),
    [
        (ModelConfig(), Capacity(1, 1)),
        (ModelConfig(max_batch_size=8), Capacity(1, 1)),
        (ModelConfig(max_batch_size=8, dynamic_batching=DynamicBatching()), Capacity(8, 1)),
        (ModelConfig(dynamic_batching=DynamicBatching()), Capacity(1, 1)),
        (
            ModelConfig(
                instance_group=(
                    InstanceGroup(count=2, gpus=(0, 1)),
                    InstanceGroup(count=3),
                )
            ),
            Capacity(1, 7),
        ),
        (
            ModelConfig(instance_group=(InstanceGroup(), InstanceGroup(count=9, passive=True))),
            Capacity(1, 1),
        ),
    ],
)
def test_the_capacity_of_a_configuration(config: ModelConfig, capacity: Capacity) -> None:
    assert Capacity.of(config) == capacity


TIMEOUT = DynamicBatching(
    default_queue_policy=QueuePolicy(
        default_timeout_microseconds=25_000_000, allow_timeout_override=True
    )
)


def config(dynamic: DynamicBatching | None, **parameters: str) -> ModelConfig:
    given = {name: ModelParameter(value) for name, value in parameters.items()}
    return ModelConfig(name="m", max_batch_size=1, dynamic_batching=dynamic, parameters=given)


async def test_it_is_off_unless_asked_for() -> None:
    for plain in (config(TIMEOUT), config(TIMEOUT, REJECT_HOPELESS="false")):
        assert Prospects.of(plain) is None


class Measured:
    """An instance that takes ten seconds for every batch, and tells the scheduler so."""

    def __init__(self) -> None:
        self.ran: list[tuple[float, str]] = []
        self._loop = asyncio.get_running_loop()
        self._busy = False
        self.wake: Callable[[], None] = lambda: None
        self.told: Callable[[int, float], None] | None = None

    def idle(self, on: Runner | None = None) -> bool:
        return not self._busy

    def execute(self, batch: Sequence[Pending], on: Runner | None = None) -> None:
        self._busy = True
        self.ran.append((self._loop.time(), " ".join(p.request.id for p in batch)))
        self._loop.call_later(10, self._freed, len(batch))

    def _freed(self, size: int) -> None:
        self._busy = False
        assert self.told is not None
        self.told(size, 10.0)
        self.wake()

    def reject(self, pending: Pending, error: MicrokernelError, reason: Failure) -> None:
        raise AssertionError("what was let in has had its chance")


async def test_only_what_has_a_chance_is_let_in() -> None:
    instance, loop = Measured(), asyncio.get_running_loop()
    scheduler = queue_scheduler(config(TIMEOUT, REJECT_HOPELESS="true"), instance)
    instance.wake, instance.told = scheduler.wake, scheduler.executed

    def submit(name: str, timeout: float = 0) -> None:
        request = InferRequest("m", (), id=name, timeout_us=int(timeout * 1e6))
        scheduler.submit(Pending(request, 1, "", loop.create_future(), loop.time(), 0))

    submit("first")
    await asyncio.sleep(10)  # from now on it is known that a batch takes ten seconds
    assert scheduler.waiting == 0
    submit("runs")
    for name in ("next", "then", "last"):
        submit(name)
    text = (
        r"^\[request id: late\] Request would time out before its turn: that comes in about 30 s, "
        r"the timeout in 25 s$"
    )
    with pytest.raises(Unavailable, match=text):
        submit("late")
    with pytest.raises(Unavailable, match="the timeout in 4 s"):
        submit("hasty", timeout=4)
    assert scheduler.waiting == 3


async def test_what_may_be_late_is_let_in() -> None:
    """Where it waits on after its deadline, it never times out."""
    instance, loop = Measured(), asyncio.get_running_loop()
    levels = replace(
        TIMEOUT,
        priority_levels=2,
        default_priority_level=1,
        priority_queue_policy={2: QueuePolicy("DELAY", default_timeout_microseconds=1_000_000)},
    )
    scheduler = queue_scheduler(config(levels, REJECT_HOPELESS="true"), instance)
    instance.wake, instance.told = scheduler.wake, scheduler.executed

    def submit(name: str, priority: int) -> None:
        request = InferRequest("m", (), id=name, priority=priority)
        scheduler.submit(Pending(request, 1, "", loop.create_future(), loop.time(), 0))

    submit("first", 1)
    await asyncio.sleep(10)
    for number in range(4):
        submit(f"urgent{number}", 1)
    with pytest.raises(Unavailable, match="Request would time out before its turn"):
        submit("hopeless", 1)
    submit("patient", 2)
    await asyncio.sleep(100)
    assert [name for _, name in instance.ran][-1] == "patient"


async def test_before_anything_is_known_everything_is_let_in() -> None:
    instance, loop = Measured(), asyncio.get_running_loop()
    scheduler = queue_scheduler(config(TIMEOUT, REJECT_HOPELESS="true"), instance)
    for number in range(50):
        request = InferRequest("m", (), id=str(number))
        scheduler.submit(Pending(request, 1, "", loop.create_future(), loop.time(), 0))
    assert scheduler.waiting == 49
