"""When a batch is formed, as tables of decisions."""

import asyncio
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.config.model import DynamicBatching, ModelConfig, QueuePolicy
from microkernel.scheduling.adaptive import Adaptive
from microkernel.scheduling.policy import Batching, Decision, Dispatch, OneByOne, Wait

LONG = 1000.0


@dataclass(frozen=True)
class Request:
    """What a policy sees of one."""

    size: int
    key: str = ""
    arrived: float = 0.0


def queue_of(*sizes: int) -> list[Request]:
    return [Request(size) for size in sizes]


def batching(largest: int, *preferred: int, delay: float) -> Batching:
    return Batching(largest, frozenset(preferred or (largest,)), delay)


def runs(policy: Batching, *sizes: int) -> list[list[int]]:
    """The batches that a queue becomes at time 0, while the policy does not wait."""
    left, batches = queue_of(*sizes), []
    while left and isinstance(decision := policy.decide(left, now=0.0), Dispatch):
        batches.append([request.size for request in left[: decision.count]])
        left = left[decision.count :]
    return batches


def test_the_default_scheduler_runs_one_request_at_a_time() -> None:
    assert OneByOne().decide(queue_of(1, 1, 1), now=0.0) == Dispatch(1)


TWO_OR_SIX = batching(8, 2, 6, delay=LONG)
FOUR_OR_SIX = batching(8, 4, 6, delay=0.0)


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ((2,), [[2]]),
        ((6,), [[6]]),
        ((1,), []),
        ((3,), []),
        ((4,), []),
        ((5,), []),
        ((7,), [[7]]),
        ((8,), [[8]]),
        ((1, 1), [[1, 1]]),
        ((1, 1, 1), [[1, 1]]),
        ((3, 4), [[3]]),
        ((3, 2, 1), [[3, 2, 1]]),
        ((1, 1, 4), [[1, 1, 4]]),
        ((5, 2), [[5]]),
        ((4, 1, 3, 2), [[4, 1]]),
    ],
)
def test_with_a_large_delay_only_preferred_sizes_and_overruns_go_at_once(
    sizes: tuple[int, ...], batches: list[list[int]]
) -> None:
    assert runs(TWO_OR_SIX, *sizes)[: len(batches) or 1] == batches


def test_what_stands_behind_an_overrun_waits_for_its_own_delay() -> None:
    first, second = Request(3), Request(4, arrived=10.0)
    assert TWO_OR_SIX.decide([first, second], now=10.0) == Dispatch(1)
    assert TWO_OR_SIX.decide([second], now=10.0) == Wait(10.0 + LONG)
    assert TWO_OR_SIX.decide([second], now=10.0 + LONG) == Dispatch(1)


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ((1,) * 5, [[1] * 4, [1]]),
        ((1,) * 7, [[1] * 6, [1]]),
        ((1,) * 3, [[1] * 3]),
        ((3,), [[3]]),
        ((5,), [[5]]),
        ((8,), [[8]]),
        ((2, 2, 1), [[2, 2], [1]]),
        ((5, 2), [[5], [2]]),
        ((1, 8), [[1], [8]]),
    ],
)
def test_without_delay_everything_goes_at_once(
    sizes: tuple[int, ...], batches: list[list[int]]
) -> None:
    assert runs(FOUR_OR_SIX, *sizes) == batches


FOUR = batching(4, 4, delay=5.0)
FOUR_OF_EIGHT = batching(8, 4, delay=5.0)


@pytest.mark.parametrize(
    ("policy", "queue", "now", "decision"),
    [
        pytest.param(FOUR, queue_of(1, 1), 4.9, Wait(5.0), id="young"),
        pytest.param(FOUR, queue_of(1, 1), 5.0, Dispatch(2), id="delay over"),
        pytest.param(
            FOUR, [Request(1, arrived=2.0), Request(1, arrived=6.0)], 6.5, Wait(7.0), id="oldest"
        ),
        pytest.param(
            FOUR, [Request(1, arrived=3.0), Request(1, arrived=1.0)], 4.0, Wait(6.0), id="any place"
        ),
        pytest.param(FOUR, queue_of(1, 2, 2), 0.0, Dispatch(2), id="too large to join"),
        pytest.param(FOUR, queue_of(2, 3, 1), 0.0, Dispatch(1), id="no overtaking"),
        pytest.param(FOUR, [Request(1), Request(1, "b")], 0.0, Dispatch(1), id="other key"),
        pytest.param(
            FOUR, [Request(1), Request(1, "b"), Request(1)], 0.0, Dispatch(1), id="key comes back"
        ),
        pytest.param(FOUR_OF_EIGHT, queue_of(1, 1, 1), 0.0, Wait(5.0), id="below preferred"),
        pytest.param(FOUR_OF_EIGHT, queue_of(2, 2, 3), 0.0, Dispatch(2), id="prefix"),
        pytest.param(FOUR_OF_EIGHT, queue_of(2, 2, 3), 5.0, Dispatch(3), id="beyond preferred"),
        pytest.param(FOUR_OF_EIGHT, queue_of(2, 2, 3, 2), 5.0, Dispatch(3), id="up to the limit"),
        pytest.param(FOUR_OF_EIGHT, queue_of(3, 3), 0.0, Dispatch(1), id="before the overrun"),
        pytest.param(FOUR_OF_EIGHT, queue_of(3, 3), 5.0, Dispatch(2), id="overrun, delay over"),
        pytest.param(FOUR_OF_EIGHT, queue_of(5, 1), 0.0, Dispatch(2), id="first is past preferred"),
        pytest.param(FOUR_OF_EIGHT, queue_of(9), 0.0, Dispatch(1), id="alone, past the limit"),
    ],
)
def test_decisions(policy: Batching, queue: list[Request], now: float, decision: Decision) -> None:
    assert policy.decide(queue, now) == decision


PREPARED = batching(8, 2, 4, delay=5.0)
WITHOUT_DELAY = batching(8, 2, 4, delay=0.0)
WITH_LIMITS = replace(PREPARED, ahead=False)


@pytest.mark.parametrize(
    ("policy", "queue", "idle", "freed"),
    [
        pytest.param(PREPARED, queue_of(*[1] * 7), Dispatch(4), Dispatch(7), id="grows"),
        pytest.param(PREPARED, queue_of(1, 1, 1), Dispatch(2), Dispatch(3), id="from the smallest"),
        pytest.param(PREPARED, queue_of(*[1] * 9), Dispatch(4), Dispatch(8), id="until full"),
        pytest.param(PREPARED, queue_of(4, 3, 2, 1), Dispatch(1), Dispatch(2), id="no overtaking"),
        pytest.param(
            PREPARED,
            [Request(4), Request(1), Request(1, "b"), Request(1)],
            Dispatch(1),
            Dispatch(2),
            id="until another key",
        ),
        pytest.param(PREPARED, queue_of(3, 3, 1), Dispatch(1), Dispatch(3), id="overrun"),
        pytest.param(PREPARED, queue_of(1), Wait(5.0), Wait(5.0), id="none was prepared"),
        pytest.param(PREPARED, queue_of(4), Dispatch(1), Dispatch(1), id="nothing to grow by"),
        pytest.param(WITHOUT_DELAY, queue_of(*[1] * 7), Dispatch(4), Dispatch(4), id="no delay"),
        pytest.param(WITH_LIMITS, queue_of(*[1] * 7), Dispatch(4), Dispatch(4), id="limits"),
    ],
)
def test_what_was_prepared_while_every_instance_was_busy_has_grown(
    policy: Batching, queue: list[Request], idle: Decision, freed: Decision
) -> None:
    assert policy.decide(queue, 0.0) == idle
    assert policy.decide(queue, 0.0, freed=True) == freed


def test_a_delay_that_finds_itself_lets_prepared_batches_grow() -> None:
    async def decide() -> tuple[Decision, Decision]:
        policy, queue = Adaptive(PREPARED), queue_of(*[1] * 7)
        return policy.decide(queue, 0.0), policy.decide(queue, 0.0, freed=True)

    assert asyncio.run(decide()) == (Dispatch(4), Dispatch(7))


LIMITED = QueuePolicy(max_queue_size=9)


@pytest.mark.parametrize(
    ("limit", "dynamic", "policy"),
    [
        (8, DynamicBatching(), Batching(8, frozenset({8}), 0.0)),
        (8, DynamicBatching((2, 6), 1500), Batching(8, frozenset({2, 6}), 0.0015)),
        (0, DynamicBatching(), Batching(1, frozenset({1}), 0.0)),
        (
            8,
            DynamicBatching(priority_levels=2, default_priority_level=1),
            Batching(8, frozenset({8}), 0.0, ahead=False),
        ),
        (
            8,
            DynamicBatching(default_queue_policy=LIMITED),
            Batching(8, frozenset({8}), 0.0, ahead=False),
        ),
    ],
)
def test_the_policy_of_a_configuration(
    limit: int, dynamic: DynamicBatching, policy: Batching
) -> None:
    assert Batching.of(ModelConfig(max_batch_size=limit, dynamic_batching=dynamic)) == policy


requests = st.builds(
    Request, st.integers(1, 9), st.sampled_from("ab"), st.integers(0, 100).map(float)
)


@given(
    st.lists(requests, min_size=1, max_size=12),
    st.integers(1, 10),
    st.frozensets(st.integers(1, 10), max_size=3),
    st.integers(0, 20).map(float),
    st.integers(100, 130).map(float),
    st.booleans(),
)
def test_a_decision_makes_a_lawful_batch_or_waits_for_a_later_time(
    queue: list[Request],
    largest: int,
    preferred: frozenset[int],
    delay: float,
    now: float,
    freed: bool,
) -> None:
    within = frozenset(size for size in preferred if size <= largest)
    policy = Batching(largest, within or frozenset({largest}), delay)
    decision = policy.decide(queue, now, freed=freed)
    if isinstance(decision, Wait):
        assert delay > 0
        assert now < decision.until <= now + delay
        assert decision.until == min(r.arrived for r in queue) + delay
        assert isinstance(policy.decide(queue, decision.until), Dispatch)
        return
    batch = queue[: decision.count]
    assert 1 <= decision.count == len(batch)
    assert len({request.key for request in batch}) == 1
    assert len(batch) == 1 or sum(request.size for request in batch) <= largest
