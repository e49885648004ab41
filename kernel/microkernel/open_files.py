"""How many files the server may have open (a connection is one, and so is a region of shared
memory), and what it does when there are no more."""

import asyncio
import errno
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import structlog

if sys.platform != "win32":
    import resource

log = structlog.get_logger()

QUIET = 30.0
"""Seconds in which it is said once that connections cannot be accepted."""

_NONE_LEFT = (errno.EMFILE, errno.ENFILE)


def none_left(error: BaseException | None) -> bool:
    """Whether an error says that no more files can be opened."""
    return isinstance(error, OSError) and error.errno in _NONE_LEFT


def most_open_files() -> int:
    """How many files this process may have open, -1 for any number."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def raise_limit() -> None:
    """Let this process open as many files as the system allows it. The lower limit that a process
    usually starts with is for those that use `select`."""
    soft, hard = started_with()
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:  # some systems refuse what they say is allowed
            log.warning("the limit of open files stays as it is", limit=soft, reason=str(error))


def lower_limit(pid: int) -> None:
    """Give a child process, which runs the code of models, the limit that this one was started
    with; the child may be gone already."""
    limits = started_with()
    if limits[0] != most_open_files() and sys.platform == "linux":
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        except OSError as error:
            log.warning("a worker has the server's limit of open files", reason=str(error))


@cache
def started_with() -> tuple[int, int]:
    """The limit of open files and the highest it can be set to, as they were when first asked
    for."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


class AcceptFailures:
    """An event loop's exception handler that tells once in a while, in one line, that connections
    cannot be accepted: the loop would report a hundred failures each second. They wait, and are
    accepted when files are closed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quiet_until = float("-inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """See `asyncio.loop.set_exception_handler`."""
        if not (none_left(context.get("exception")) and "accept" in context["message"]):
            loop.default_exception_handler(context)
        elif self._clock() >= self._quiet_until:
            self._quiet_until = self._clock() + QUIET
            reason = str(context["exception"])
            limit = most_open_files()
            log.error(
                "new connections have to wait: no file can be opened", reason=reason, limit=limit
            )
