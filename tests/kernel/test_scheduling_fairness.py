"""Clients that take turns: the order of a lane, shares under a flood, limits, and what it keeps."""

import random
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import InferRequest, ModelConfig, ModelParameter, Unavailable
from microkernel.scheduling.fairness import FairLane, Fairness, key_of
from microkernel.scheduling.levels import LevelledQueue
from microkernel.scheduling.limits import LevelLimits, Limits
from microkernel.scheduling.pending import Pending, Reply
from microkernel.scheduling.waiting import Rank

NOBODY: Reply = object()  # type: ignore[assignment]  # never looked at


def config(**parameters: str) -> ModelConfig:
    given = {name: ModelParameter(value) for name, value in parameters.items()}
    return ModelConfig(name="m", parameters=given)


def lane(most: int = 0) -> FairLane:
    return lanes(most)((0, False))


def lanes(most: int) -> Callable[[Rank], FairLane]:
    return Fairness("client", lambda request: request.parameters.get("client", ""), most).lanes()


def waiting(client: Any, name: str = "", size: int = 1) -> Pending:
    request = InferRequest("m", (), id=name, parameters={"client": client})
    return Pending(request, size, "", NOBODY, 0.0, 0)


def fill(into: FairLane, *names: str, size: int = 1) -> None:
    """Requests whose client is the first letter of their name."""
    for name in names:
        into.append(waiting(name[0], name, size))


def order(of: FairLane) -> list[str]:
    return [pending.request.id for pending in of]


@pytest.mark.parametrize(
    ("arrivals", "runs"),
    [
        ("a1 a2 a3", "a1 a2 a3"),
        ("a1 a2 a3 b1", "a1 b1 a2 a3"),
        ("a1 a2 a3 b1 b2 c1", "a1 b1 c1 a2 b2 a3"),
        ("b1 a1 a2 b2", "b1 a1 a2 b2"),
    ],
)
def test_the_order_of_turns(arrivals: str, runs: str) -> None:
    fair = lane()
    fill(fair, *arrivals.split())
    assert order(fair) == runs.split()
    assert [p.request.id for p in fair.take(len(fair))] == runs.split()


def test_a_large_request_takes_as_many_turns_as_it_has_items() -> None:
    fair = lane()
    fill(fair, "a1", "a2", "a3", size=4)
    fill(fair, *(f"b{n}" for n in range(8)))
    assert " ".join(order(fair)) == "a1 b0 b1 b2 b3 a2 b4 b5 b6 b7 a3"


def test_who_comes_late_is_next_but_catches_up_on_nothing() -> None:
    fair = lane()
    fill(fair, *(f"a{n}" for n in range(9)))
    fair.take(5)
    fill(fair, "b0", "b1", "b2")
    assert " ".join(order(fair)) == "b0 a5 b1 a6 b2 a7 a8"


def test_who_has_nothing_waiting_is_forgotten() -> None:
    fair = lane()
    for number in range(1000):
        fair.append(waiting(str(number)))
        fair.take(1)
    for number in range(1000):
        pending = waiting(str(number))
        fair.append(pending)
        assert fair.remove(pending)
        assert not fair.remove(pending)
    assert (len(fair), fair._clients, fair._keys) == (0, {}, {})
    assert len(fair._heap) <= 1


def test_one_client_may_not_fill_the_queue() -> None:
    fair = lane(most=2)
    fill(fair, "a1", "a2", "b1")
    text = (
        r"^\[request id: a3\] Exceeds maximum queue size of one client: 2 requests of 'client' "
        r"'a' wait already$"
    )
    with pytest.raises(Unavailable, match=text):
        fill(fair, "a3")
    fair.take(1)
    fill(fair, "a4")
    assert order(fair) == ["b1", "a2", "a4"]


def test_a_long_key_is_cut_in_the_message() -> None:
    fair = lane(most=1)
    fair.append(waiting("x" * 100_000))
    with pytest.raises(Unavailable) as caught:
        fair.append(waiting("x" * 100_000))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "parameters", "key"),
    [
        ("user", {"user": "u"}, "u"),
        ("user", {"user": 7}, 7),
        ("user", {"User": "u"}, ""),
        ("user", {}, ""),
        ("header:X-Client", {"x-client": "c"}, "c"),
        ("header:x-client", {"X-Client": "c"}, "c"),
        (
            "header:x-client",
            {"x-client": "claimed", "X-Client": "from the proxy"},
            "from the proxy",
        ),
        ("header:x-client", {"other": "c"}, ""),
    ],
)
def test_the_key_of_a_request(name: str, parameters: dict[str, Any], key: Hashable) -> None:
    assert key_of(name)(InferRequest("m", (), parameters=parameters)) == key


def test_what_a_configuration_asks_for() -> None:
    assert Fairness.of(config()) is None
    found = Fairness.of(config(FAIR_QUEUE_KEY="user", FAIR_QUEUE_MAX_PER_KEY="3"))
    assert found is not None
    assert (found.name, found.most) == ("user", 3)


def delaying(most: int = 0) -> LevelledQueue:
    """A queue in which a request is late after a second, and waits on."""
    return LevelledQueue(Limits(otherwise=LevelLimits(1.0, delays=True)), lanes(most))


def order_of(queue: LevelledQueue) -> str:
    return " ".join(pending.request.id for pending in queue)


def test_clients_take_turns_also_with_what_is_late() -> None:
    queue = delaying()
    for name in ("a1", "a2", "a3", "b1"):
        queue.append(waiting(name[0], name))
    assert queue.expire(1.0) == []
    late = waiting("c", "c1")
    late.arrived = 1.0
    queue.append(late)
    assert order_of(queue) == "c1 a1 b1 a2 a3"
    assert [p.request.id for p in queue.take(2)] == ["c1", "a1"]
    assert order_of(queue) == "b1 a2 a3"


def test_the_late_count_among_what_a_client_has_waiting() -> None:
    queue = delaying(most=2)
    first, second, third = waiting("a", "a1"), waiting("a", "a2"), waiting("a", "a3")
    second.arrived = third.arrived = 0.5
    queue.append(first)
    queue.append(second)
    assert queue.expire(1.0) == []
    for _ in range(2):  # one is late, then both are
        with pytest.raises(Unavailable, match="of one client: 2 requests of 'client' 'a'"):
            queue.append(third)
        assert queue.expire(1.5) == []
    queue.append(waiting("b", "b1"))
    assert queue.remove(second)
    queue.append(third)
    assert order_of(queue) == "b1 a3 a1"
    queue.take(3)
    queue.append(waiting("a", "a4"))
    assert order_of(queue) == "a4"


@pytest.mark.parametrize(
    ("own", "others", "size", "before"),
    [
        (0, (), 1, 0),
        (5, (), 1, 5),
        (0, (100,), 1, 1),
        (0, (100,), 4, 4),
        (2, (100, 1), 1, 8),
        (2, (1, 1), 1, 4),
    ],
)
def test_what_runs_before_a_newcomer(
    own: int, others: tuple[int, ...], size: int, before: int
) -> None:
    """About its own share of everybody's work."""
    fair, items = lane(), own + sum(others)
    fill(fair, *(f"n{n}" for n in range(own)))
    for client, count in zip("abc", others, strict=False):
        fill(fair, *(f"{client}{n}" for n in range(count)))
    assert fair.before(waiting("n", size=size), items) == before


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 9)), min_size=1, max_size=60))
def test_looking_along_the_lane_tells_what_is_taken(requests: list[tuple[str, int]]) -> None:
    fair, chance = lane(), random.Random(len(requests))
    for client, size in requests:
        fair.append(waiting(client, size=size))
        if chance.random() < 0.3:
            (expected, *_) = fair
            assert fair.take(1) == [expected]
    rest = list(fair)
    for gone in rest[::3]:
        assert fair.remove(gone)
    rest = [pending for index, pending in enumerate(rest) if index % 3]
    assert list(fair) == rest
    assert fair.take(len(fair)) == rest


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 8)), min_size=30, max_size=150),
    st.integers(1, 30),
)
def test_while_two_clients_wait_they_get_equal_shares(
    requests: list[tuple[str, int]], taken: int
) -> None:
    """Up to the largest request, whatever sizes they send."""
    fair = lane()
    for client, size in requests:
        fair.append(waiting(client, size=size))
    served: Counter[str] = Counter()
    left = Counter(client for client, _ in requests)
    for pending in fair.take(min(taken, len(requests))):
        client = str(pending.request.parameters["client"])
        if min(left.values()) == 0:
            break
        served[client] += pending.size
        left[client] -= 1
        busy = [served[other] for other in left if left[other]]
        assert max(busy, default=0) - min(busy, default=0) <= 16
