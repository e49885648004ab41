"""Which level a request waits at, until when, and in what order: decisions without a loop."""

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import DynamicBatching, InferRequest, ModelConfig, Unavailable
from microkernel.config.model import QueuePolicy
from microkernel.scheduling.fairness import Fairness
from microkernel.scheduling.levels import LevelledQueue
from microkernel.scheduling.limits import LevelLimits, Limits
from microkernel.scheduling.pending import Pending, Reply
from microkernel.scheduling.waiting import PlainQueue, Queue


def limits_of(**dynamic: Any) -> Limits:
    return Limits.of(ModelConfig(dynamic_batching=DynamicBatching(**dynamic)))


def waiting(
    name: str, reply: Reply, *, priority: int = 0, timeout_us: int = 0, at: float = 0.0
) -> Pending:
    request = InferRequest("m", (), id=name, priority=priority, timeout_us=timeout_us)
    return Pending(request, 1, "", reply, at, 0)


NOBODY: Reply = object()  # type: ignore[assignment]  # never looked at


def names(queue: LevelledQueue) -> list[str]:
    return [pending.request.id for pending in queue]


@pytest.mark.parametrize(
    ("levels", "usual", "priority", "level"),
    [
        (0, 0, 0, 0),
        (0, 0, 7, 0),
        (0, 3, 2, 0),
        (3, 2, 0, 2),
        (3, 2, 1, 1),
        (3, 2, 3, 3),
        (3, 2, 4, 2),
        (3, 1, 2**64 - 1, 1),
    ],
)
def test_the_level_of_a_priority(levels: int, usual: int, priority: int, level: int) -> None:
    limits = limits_of(priority_levels=levels, default_priority_level=usual)
    assert limits.level(InferRequest("m", (), priority=priority)) == level


@pytest.mark.parametrize(
    ("default", "override", "asked", "deadline"),
    [
        (0, False, 0, inf),
        (0, False, 5, inf),
        (0, True, 5, inf),  # nothing is smaller than no timeout
        (100, False, 0, 1000.0001),
        (100, False, 50, 1000.0001),
        (100, True, 0, 1000.0001),
        (100, True, 50, 1000.00005),
        (100, True, 100, 1000.0001),
        (100, True, 200, 1000.0001),
        (2**64 - 1, True, 2**64 - 2, 1000.0 + (2**64 - 2) / 1e6),
    ],
)
def test_the_deadline_of_a_request(
    default: int, override: bool, asked: int, deadline: float
) -> None:
    policy = QueuePolicy(default_timeout_microseconds=default, allow_timeout_override=override)
    assert LevelLimits.of(policy).deadline(1000.0, asked) == deadline


@pytest.mark.parametrize(
    ("dynamic", "none", "timed"),
    [
        ({}, True, False),
        ({"preferred_batch_size": (2,), "max_queue_delay_microseconds": 5}, True, False),
        ({"default_queue_policy": QueuePolicy()}, True, False),
        ({"default_queue_policy": QueuePolicy(max_queue_size=1)}, False, False),
        ({"default_queue_policy": QueuePolicy(default_timeout_microseconds=1)}, False, True),
        ({"priority_levels": 2, "default_priority_level": 1}, False, False),
        (
            {
                "priority_levels": 2,
                "default_priority_level": 1,
                "priority_queue_policy": {2: QueuePolicy(default_timeout_microseconds=1)},
            },
            False,
            True,
        ),
    ],
)
def test_what_needs_more_than_a_plain_queue(
    dynamic: dict[str, Any], none: bool, timed: bool
) -> None:
    limits = limits_of(**dynamic)
    assert (limits.none, limits.timed) == (none, timed)


def test_the_urgent_go_first_and_within_a_level_the_oldest() -> None:
    queue = LevelledQueue(limits_of(priority_levels=3, default_priority_level=2))
    for name, priority in (("a3", 3), ("b2", 0), ("c1", 1), ("d2", 2), ("e9", 9), ("f1", 1)):
        queue.append(waiting(name, NOBODY, priority=priority))
    assert names(queue) == ["c1", "f1", "b2", "d2", "e9", "a3"]
    assert [p.request.id for p in queue.take(3)] == ["c1", "f1", "b2"]
    assert names(queue) == ["d2", "e9", "a3"]
    assert len(queue) == 3


def test_a_level_has_its_own_limit_and_the_others_the_default() -> None:
    queue = LevelledQueue(
        limits_of(
            priority_levels=2,
            default_priority_level=2,
            default_queue_policy=QueuePolicy(max_queue_size=2),
            priority_queue_policy={1: QueuePolicy(max_queue_size=1)},
        )
    )
    queue.append(waiting("a", NOBODY, priority=1))
    text = r"^\[request id: b\] Exceeds maximum queue size$"
    with pytest.raises(Unavailable, match=text):
        queue.append(waiting("b", NOBODY, priority=1))
    queue.append(waiting("c", NOBODY))
    queue.append(waiting("d", NOBODY))
    with pytest.raises(Unavailable, match="Exceeds maximum queue size"):
        queue.append(waiting("e", NOBODY, priority=2))
    assert names(queue) == ["a", "c", "d"]
    queue.take(1)
    queue.append(waiting("f", NOBODY, priority=1))
    assert names(queue) == ["f", "c", "d"]


def test_the_delayed_wait_behind_their_level_and_count_there() -> None:
    policy = QueuePolicy("DELAY", default_timeout_microseconds=1_000_000, max_queue_size=3)
    queue = LevelledQueue(
        limits_of(priority_levels=2, default_priority_level=1, default_queue_policy=policy)
    )
    late, other, young = (
        waiting(name, NOBODY, at=at, priority=p)
        for name, at, p in (("late", 0.0, 1), ("other", 0.0, 2), ("young", 0.5, 1))
    )
    for pending in (late, other, young):
        queue.append(pending)
    assert (queue.next_deadline(), names(queue)) == (1.0, ["late", "young", "other"])
    assert queue.expire(0.9) == []
    assert queue.expire(1.0) == []
    assert (queue.next_deadline(), names(queue)) == (1.5, ["young", "late", "other"])
    assert late.deadline == inf
    queue.append(waiting("last", NOBODY, at=1.0))
    assert names(queue) == ["young", "last", "late", "other"]
    with pytest.raises(Unavailable):
        queue.append(waiting("surplus", NOBODY, at=1.0))


def test_the_refused_are_given_back_once() -> None:
    policy = QueuePolicy(default_timeout_microseconds=1_000_000, allow_timeout_override=True)
    queue = LevelledQueue(limits_of(default_queue_policy=policy))
    slow = waiting("slow", NOBODY)
    hasty = waiting("hasty", NOBODY, timeout_us=500_000)
    queue.append(slow)
    queue.append(hasty)
    assert queue.next_deadline() == 0.5
    assert queue.expire(0.5) == [hasty]
    assert queue.expire(0.5) == []
    assert not queue.remove(hasty)
    assert queue.remove(slow)
    assert (queue.next_deadline(), len(queue), queue.expire(9.0)) == (inf, 0, [])


def test_deadlines_of_requests_that_are_gone_do_not_pile_up() -> None:
    policy = QueuePolicy(default_timeout_microseconds=1_000_000)
    queue = LevelledQueue(limits_of(default_queue_policy=policy))
    for number in range(1000):
        queue.append(waiting(str(number), NOBODY))
        if number:
            queue.take(1)
        queue.next_deadline()
    assert len(queue) == 1
    assert len(queue._deadlines) < 100


def everything() -> LevelledQueue:
    policy = QueuePolicy(default_timeout_microseconds=1_000_000)
    fairness = Fairness("client", lambda request: request.priority)
    return LevelledQueue(
        limits_of(priority_levels=2, default_priority_level=1, default_queue_policy=policy),
        fairness.lanes(),
    )


@pytest.mark.parametrize("make", [PlainQueue, everything])
@pytest.mark.parametrize("gone", [0, 777, -1])
def test_a_long_queue_takes_no_longer_for_a_step(
    make: Callable[[], Queue], gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts comparisons of requests: a list that is searched makes one for each."""
    queue = make()
    requests = [waiting(str(n), NOBODY, priority=1 + n % 2) for n in range(2000)]
    for pending in requests:
        queue.append(pending)
    compared = 0

    def compare(self: Pending, other: object) -> bool:
        nonlocal compared
        compared += 1
        return self is other

    monkeypatch.setattr(Pending, "__eq__", compare)
    monkeypatch.setattr(Pending, "__hash__", object.__hash__)
    assert queue.remove(requests[gone])
    (first,) = queue.take(1)
    assert first is requests[0 if gone else 2 if make is everything else 1]
    assert len(queue) == 1998
    queue.next_deadline()
    assert compared < 20


@given(st.lists(st.sampled_from(["come", "take", "leave", "all"]), max_size=60))
def test_a_plain_queue_is_a_list(steps: list[str]) -> None:
    queue, model = PlainQueue(), list[Pending]()
    for number, step in enumerate(steps):
        if step == "come":
            model.append(waiting(str(number), NOBODY))
            queue.append(model[-1])
        elif step == "all":
            assert queue.take(len(queue)) == model
            model.clear()
        elif model and step == "take":
            count = 1 + number % len(model)
            assert queue.take(count) == model[:count]
            del model[:count]
        elif model:
            gone = model.pop(number % len(model))
            assert queue.remove(gone)
            assert not queue.remove(gone)
        assert (list(queue), len(queue)) == (model, len(model))
