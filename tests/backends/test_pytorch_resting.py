"""Where the threads of a call run after a pause."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="the extra 'torchscript' is missing")

from microkernel_torchscript.resting import PAUSE, Helpers, Spread, places, spread  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells its threads")


@pytest.mark.parametrize(
    ("allowed", "here", "helpers", "expected"),
    [
        ({0, 1}, 0, 1, [1]),
        ({0, 1}, 1, 1, [0]),
        ({2, 5, 7, 8}, 5, 3, [2, 7, 8]),
        ({0, 1}, 0, 2, [1, 1]),  # two teams
        ({0, 1, 2}, 2, 4, [0, 1, 0, 1]),
        ({0, 1, 2, 3}, 0, 1, []),  # the scheduler has the choice
        ({0, 1, 2}, 0, 3, []),  # a team and something else
        ({0, 1}, 7, 1, []),  # bound elsewhere in this moment
        ({0}, 0, 0, []),
        ({0, 1}, 0, 0, []),
    ],
)
def test_places(allowed: set[int], here: int, helpers: int, expected: list[int]) -> None:
    assert places(allowed, here, helpers) == expected


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def on_a_thread(work: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


def work() -> None:
    """Enough for every thread of a team."""
    torch.ones(1 << 20).add_(1).sum()


needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor")


@needs_two
def test_helpers_are_the_threads_that_the_thread_has_started() -> None:
    count = len(os.sched_getaffinity(0))

    def check() -> None:
        torch.set_num_threads(count)
        helpers = Helpers()
        assert helpers.find() == []
        work()
        assert len(helpers.find()) == count - 1
        others = set(helpers.find())
        on_a_thread(lambda: check_other(others))

    def check_other(others: set[int]) -> None:
        torch.set_num_threads(count)
        own = Helpers()
        work()
        assert len(own.find()) == count - 1
        assert not others & set(own.find())

    on_a_thread(check)


@needs_two
def test_helpers_have_processors_of_their_own_in_the_first_call_after_a_pause() -> None:
    allowed = os.sched_getaffinity(0)
    clock, seen = Clock(), []

    def check() -> None:
        torch.set_num_threads(len(allowed))
        helpers = Helpers()

        def forward(fails: bool) -> str:
            work()
            seen.append([os.sched_getaffinity(thread) for thread in helpers.find()])
            if fails:
                raise ValueError("no")
            return "done"

        work()
        spreading = Spread(forward, helpers, clock)
        everywhere = [allowed] * (len(allowed) - 1)
        assert spreading(False) == "done"
        clock.now += PAUSE / 2
        assert spreading(False) == "done"
        assert seen == [everywhere] * 2
        for fails in (False, True):
            clock.now += 2 * PAUSE
            seen.clear()
            if fails:
                with pytest.raises(ValueError, match="no"):
                    spreading(fails)
            else:
                assert spreading(fails) == "done"
            assert all(len(processors) == 1 for processors in seen[0])
            assert len(set().union(*seen[0])) == len(allowed) - 1
            assert [os.sched_getaffinity(thread) for thread in helpers.find()] == everywhere

    on_a_thread(check)


@needs_two
def test_what_cannot_be_bound_runs_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def check() -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        helpers = Helpers()
        work()
        spreading = Spread(lambda: "done", helpers, clock)
        for _ in range(2):
            clock.now += 1
            assert spreading() == "done"

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    on_a_thread(check)


def test_a_team_that_does_not_take_all_processors_is_left_alone() -> None:
    def forward() -> None:
        """Nothing."""

    count = len(os.sched_getaffinity(0))
    for threads in {1, count - 1, count + 1} - {count}:
        assert spread(forward, Helpers(), threads) is forward
