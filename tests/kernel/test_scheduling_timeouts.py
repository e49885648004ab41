"""Priorities, timeouts and limits of length on virtual time: who runs when, and who is refused."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from microkernel import (
    DynamicBatching,
    InferRequest,
    MicrokernelError,
    ModelConfig,
    Unavailable,
)
from microkernel.config.model import QueuePolicy
from microkernel.scheduling.dynamic import queue_scheduler
from microkernel.scheduling.pending import Pending, Runner
from microkernel.scheduling.queue import QueueScheduler
from microkernel.stats import Failure

pytestmark = pytest.mark.virtual_time


class Recorder:
    """An executor of one instance that takes some seconds for every batch. `ran` holds when each
    batch began and what was in it, `refused` when which request was, and why."""

    def __init__(self, seconds: float) -> None:
        self.ran: list[tuple[float, str]] = []
        self.refused: list[tuple[float, str, str, Failure]] = []
        self.wake: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._busy = False

    def idle(self, on: Runner | None = None) -> bool:
        return not self._busy

    def execute(self, batch: Sequence[Pending], on: Runner | None = None) -> None:
        self._busy = True
        self.ran.append((self._loop.time(), " ".join(p.request.id for p in batch)))
        self._loop.call_later(self._seconds, self._freed)

    def _freed(self) -> None:
        self._busy = False
        self.wake()

    def reject(self, pending: Pending, error: MicrokernelError, reason: Failure) -> None:
        assert isinstance(error, Unavailable)
        self.refused.append((self._loop.time(), pending.request.id, str(error), reason))


@dataclass(frozen=True)
class Arrival:
    """A request that comes at a time."""

    at: float
    name: str
    size: int = 1
    priority: int = 0
    timeout: float = 0


Make = Callable[..., tuple[QueueScheduler, Recorder]]


@pytest.fixture
async def make() -> Make:
    """`scheduler, recorder = make(largest=4, seconds=10, **dynamic)`: times in seconds."""

    def scheduler(
        largest: int = 4, seconds: float = 10, delay: float = 0, **dynamic: Any
    ) -> tuple[QueueScheduler, Recorder]:
        recorder = Recorder(seconds)
        batching = DynamicBatching(max_queue_delay_microseconds=int(delay * 1e6), **dynamic)
        config = ModelConfig(name="m", max_batch_size=largest, dynamic_batching=batching)
        made = queue_scheduler(config, recorder)
        recorder.wake = made.wake
        return made, recorder

    return scheduler


async def arrive(scheduler: QueueScheduler, *arrivals: Arrival) -> None:
    loop = asyncio.get_running_loop()
    for one in arrivals:
        await asyncio.sleep(one.at - loop.time())
        timeout_us = int(one.timeout * 1e6)
        request = InferRequest("m", (), id=one.name, priority=one.priority, timeout_us=timeout_us)
        scheduler.submit(Pending(request, one.size, "", loop.create_future(), loop.time(), 0))


def waits(seconds: float, action: str = "REJECT", **more: Any) -> QueuePolicy:
    return QueuePolicy(action, default_timeout_microseconds=int(seconds * 1e6), **more)


EXPIRED = "Request timeout expired"


@dataclass(frozen=True)
class Timeline:
    """A configuration, who arrives, when which batch runs, and when who is refused."""

    dynamic: dict[str, Any]
    arrivals: Sequence[Arrival]
    ran: Sequence[tuple[float, str]]
    refused: Sequence[tuple[float, str]] = field(default=())


LEVELS = {"priority_levels": 3, "default_priority_level": 2}
DELAY_EXAMPLE = (Arrival(0, "A"), Arrival(200, "B", 2), Arrival(200, "C", 2))


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(
            Timeline(
                {"delay": 10_000, "default_queue_policy": waits(100, "DELAY")},
                DELAY_EXAMPLE,
                [(200, "B C"), (10_000, "A")],
            ),
            id="DELAY, as the specification has it",
        ),
        pytest.param(
            Timeline(
                {"delay": 10_000, "default_queue_policy": waits(100)},
                DELAY_EXAMPLE,
                [(200, "B C")],
                [(100, "A")],
            ),
            id="REJECT, as the specification has it",
        ),
        pytest.param(
            Timeline(
                {"default_queue_policy": waits(4)},
                [Arrival(0, "a"), Arrival(1, "b"), Arrival(7, "c")],
                [(0, "a"), (10, "c")],
                [(5, "b")],
            ),
            id="refused while the instance is busy",
        ),
        pytest.param(
            Timeline(
                {"default_queue_policy": waits(9)},
                [Arrival(0, "a"), Arrival(1, "b")],
                [(0, "a")],
                [(10, "b")],
            ),
            id="too late by nothing",
        ),
        pytest.param(
            Timeline(
                {"default_queue_policy": waits(8, allow_timeout_override=True)},
                [
                    Arrival(0, "a"),
                    Arrival(1, "hasty", timeout=2),
                    Arrival(1, "slow", timeout=20),
                    Arrival(1, "usual"),
                ],
                [(0, "a")],
                [(3, "hasty"), (9, "slow"), (9, "usual")],
            ),
            id="an override shortens only",
        ),
        pytest.param(
            Timeline(
                {"default_queue_policy": waits(8)},
                [Arrival(0, "a"), Arrival(3, "hasty", timeout=2)],
                [(0, "a"), (10, "hasty")],
            ),
            id="no override without leave",
        ),
        pytest.param(
            Timeline(
                {"default_queue_policy": waits(3, "DELAY")},
                [Arrival(0, "a", 4), Arrival(1, "b", 2), Arrival(2, "c"), Arrival(9, "d", 2)],
                [(0, "a"), (10, "d b"), (20, "c")],
            ),
            id="the delayed go last and in order",
        ),
        pytest.param(
            Timeline(
                LEVELS,
                [
                    Arrival(0, "a"),
                    Arrival(1, "low", 3, priority=3),
                    Arrival(2, "usual", 3),
                    Arrival(3, "high", priority=1),
                    Arrival(4, "unknown", priority=9),
                ],
                [(0, "a"), (10, "high usual"), (20, "unknown low")],
            ),
            id="strict priorities, mixed where there is room",
        ),
        pytest.param(
            Timeline(
                {"delay": 5, **LEVELS, "seconds": 1},
                [Arrival(0, "low", 3, priority=3), Arrival(1, "high", 2, priority=1)],
                [(1, "high"), (5, "low")],
            ),
            id="an urgent one that does not fit goes before what is being collected",
        ),
        pytest.param(
            Timeline(
                {
                    **LEVELS,
                    "default_queue_policy": waits(2),
                    "priority_queue_policy": {1: waits(4), 3: QueuePolicy()},
                },
                [Arrival(0, "a")] + [Arrival(1, f"p{p}", priority=p) for p in (3, 2, 1)],
                [(0, "a"), (10, "p3")],
                [(3, "p2"), (5, "p1")],
            ),
            id="a policy of its own for a level",
        ),
        pytest.param(
            Timeline(
                {"delay": 5, "seconds": 0, "default_queue_policy": waits(2)},
                [Arrival(0, "a"), Arrival(1, "b"), Arrival(2.5, "c", 3)],
                [(2.5, "b c")],
                [(2, "a")],
            ),
            id="a deadline passes while a batch is collected",
        ),
    ],
)
async def test_timelines(make: Make, line: Timeline) -> None:
    scheduler, recorder = make(**line.dynamic)
    await arrive(scheduler, *line.arrivals)
    await asyncio.sleep(20_000)
    assert recorder.ran == line.ran
    assert [(at, name) for at, name, _, _ in recorder.refused] == list(line.refused)
    assert {why for *_, why in recorder.refused} <= {Failure.REJECTED}
    assert {text for _, _, text, _ in recorder.refused} <= {EXPIRED}
    assert scheduler.waiting == 0


async def test_a_full_level_refuses_and_says_so(make: Make) -> None:
    scheduler, recorder = make(
        largest=1, default_queue_policy=QueuePolicy(max_queue_size=2), **LEVELS
    )
    await arrive(scheduler, *(Arrival(0, name) for name in "abc"))
    text = r"^\[request id: d\] Exceeds maximum queue size$"
    with pytest.raises(Unavailable, match=text):
        await arrive(scheduler, Arrival(1, "d"))
    await arrive(scheduler, Arrival(1, "e", priority=1))
    await asyncio.sleep(100)
    assert recorder.ran == [(0, "a"), (10, "e"), (20, "b"), (30, "c")]


async def test_what_waits_is_taken_in_the_order_in_which_it_would_run(make: Make) -> None:
    scheduler, recorder = make(**LEVELS, default_queue_policy=waits(50))
    await arrive(scheduler, Arrival(0, "a"), Arrival(1, "b"), Arrival(2, "c", priority=1))
    assert [p.request.id for p in scheduler.take_all()] == ["c", "b"]
    await asyncio.sleep(100)
    assert (recorder.ran, recorder.refused) == ([(0, "a")], [])


async def test_an_abandoned_request_is_not_refused_later(make: Make) -> None:
    scheduler, recorder = make(default_queue_policy=waits(5))
    await arrive(scheduler, Arrival(0, "a"))
    loop = asyncio.get_running_loop()
    gone = Pending(InferRequest("m", (), id="b"), 1, "", loop.create_future(), loop.time(), 0)
    scheduler.submit(gone)
    assert scheduler.abandon(gone)
    assert not scheduler.abandon(gone)
    await asyncio.sleep(100)
    assert (recorder.ran, recorder.refused) == ([(0, "a")], [])


async def test_a_closed_scheduler_still_refuses_what_is_too_late(make: Make) -> None:
    scheduler, recorder = make(default_queue_policy=waits(5))
    await arrive(scheduler, Arrival(0, "a"), Arrival(1, "b"), Arrival(7, "c"))
    scheduler.close()
    with pytest.raises(Unavailable, match="has stopped accepting"):
        await arrive(scheduler, Arrival(8, "d"))
    await asyncio.sleep(100)
    assert recorder.ran == [(0, "a"), (10, "c")]
    assert [(at, name) for at, name, _, _ in recorder.refused] == [(6, "b")]


async def test_it_waits_for_the_first_requests_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITONSERVER_DELAY_SCHEDULER", "3")
    scheduler, recorder = make(seconds=1)
    await arrive(scheduler, Arrival(0, "a"), Arrival(5, "b"), Arrival(9, "c"), Arrival(20, "d"))
    await asyncio.sleep(100)
    assert recorder.ran == [(9, "a b c"), (20, "d")]


async def test_a_deadline_passes_before_the_first_requests_have_come(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITONSERVER_DELAY_SCHEDULER", "2")
    scheduler, recorder = make(default_queue_policy=waits(5))
    await arrive(scheduler, Arrival(0, "a"), Arrival(6, "b"), Arrival(7, "c"))
    await asyncio.sleep(100)
    assert recorder.ran == [(7, "b c")]
    assert [(at, name) for at, name, _, _ in recorder.refused] == [(5, "a")]


async def test_closing_ends_the_wait_for_the_first_requests(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITONSERVER_DELAY_SCHEDULER", "3")
    scheduler, recorder = make()
    await arrive(scheduler, Arrival(0, "a"))
    scheduler.close()
    assert recorder.ran == [(0, "a")]


async def test_a_wrong_number_of_first_requests_is_an_error(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITONSERVER_DELAY_SCHEDULER", "many")
    with pytest.raises(MicrokernelError, match="TRITONSERVER_DELAY_SCHEDULER must be a number"):
        make()


async def test_one_timer_serves_a_long_queue(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, _ = make(default_queue_policy=waits(1000))
    loop, timers = asyncio.get_running_loop(), 0
    original = loop.call_at

    def call_at(when: float, *rest: Any, **more: Any) -> asyncio.TimerHandle:
        nonlocal timers
        timers += 1
        return original(when, *rest, **more)

    monkeypatch.setattr(loop, "call_at", call_at)
    requests = [
        Pending(InferRequest("m", ()), 1, "", loop.create_future(), loop.time() + n / 1000, 0)
        for n in range(500)
    ]
    for request in requests:
        scheduler.submit(request)
    assert timers <= 3
