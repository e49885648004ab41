"""Waking the threads of a call on processors of their own. No torch.

The threads of an OpenMP team sleep while nothing is to be done. On a virtual machine the scheduler
of Linux takes a processor that has rested for one that the host has taken away, and avoids it:
after a pause the whole team wakes on the processor of the thread that calls, and stays there for a
call or several. So they are told where to run for the first call after a pause, and only for that.
"""

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

PAUSE = 0.03
"""Seconds without a call after which processors count as rested."""

_TASKS = Path("/proc/self/task")
_OWN = 0
"""How the system calls the calling thread."""
_AS_THEY_ARE = contextlib.nullcontext()


class Helpers:
    """The threads that the calling thread starts from now on. They are known by its name, which
    they inherit, so it gets one that no other thread of the process has."""

    def __init__(self) -> None:
        self._own = threading.get_native_id()
        self._name = f"model-{self._own}"
        self._tasks: list[str] = []
        self._found: list[int] = []
        with contextlib.suppress(OSError):  # then there are none
            (_TASKS / str(self._own) / "comm").write_text(self._name)

    def find(self) -> list[int]:
        """Their thread ids in ascending order, which is mostly that in which they were started."""
        tasks = os.listdir(_TASKS)  # noqa: PTH208 - a path for each would be slower
        if tasks != self._tasks:
            found = {int(task) for task in tasks if self._is_ours(task)}
            self._tasks, self._found = tasks, sorted(found - {self._own})
        return self._found

    def _is_ours(self, task: str) -> bool:
        try:
            return (_TASKS / task / "comm").read_text().rstrip() == self._name
        except OSError:  # it has ended meanwhile
            return False


def places(allowed: Set[int], here: int, helpers: int) -> list[int]:
    """A processor for each of the threads that help one on the processor `here`, in the order in
    which they were started; empty where they do not take all that are allowed together, for of more
    the scheduler has the choice. A thread may have several teams, which help it in turn."""
    others = sorted(allowed - {here})
    if here not in allowed or not others or helpers % len(others):
        return []
    return others * (helpers // len(others))


class Spread:
    """A callable whose helpers get processors of their own in the first call after a pause. To be
    called on the thread that `helpers` was made on."""

    def __init__(
        self,
        forward: Callable[..., Any],
        helpers: Helpers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._forward, self._helpers, self._clock = forward, helpers, clock
        self._last = clock()

    def __call__(self, *arguments: Any) -> Any:
        """What the callable returns; raises what it raises."""
        rested = self._clock() - self._last >= PAUSE
        try:
            with _apart(self._helpers) if rested else _AS_THEY_ARE:
                return self._forward(*arguments)
        finally:
            self._last = self._clock()


def spread(forward: Callable[..., Any], helpers: Helpers, threads: int) -> Callable[..., Any]:
    """The callable of an instance with so many threads, to be called on the thread that `helpers`
    was made on, with each thread on a processor of its own after a pause, where they take all."""
    if sys.platform != "linux" or not 1 < threads == len(os.sched_getaffinity(0)):
        return forward
    return Spread(forward, helpers)


@contextlib.contextmanager
def _apart(helpers: Helpers) -> Iterator[None]:
    """Keep the calling thread and its helpers on processors of their own while the block lasts."""
    allowed, here = os.sched_getaffinity(0), _processor()
    team = helpers.find()
    chosen = places(allowed, here, len(team))
    bound = dict(zip(team, ({place} for place in chosen), strict=False))
    if bound:
        bound[_OWN] = {here}  # or it may move to a helper's
    _bind(bound)
    try:
        yield
    finally:
        _bind(dict.fromkeys(bound, allowed))


def _bind(wanted: Mapping[int, Set[int]]) -> None:
    for thread, processors in wanted.items():
        with contextlib.suppress(OSError):  # it has ended, or a sandbox forbids it
            os.sched_setaffinity(thread, processors)


def _processor() -> int:
    """The processor that the calling thread is on."""
    return int(ctypes.CDLL(None).sched_getcpu())
