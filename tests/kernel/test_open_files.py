"""What the server says when it can open no more files, and how often."""

import errno
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from microkernel.open_files import QUIET, AcceptFailures


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Loop:
    """Keeps what is reported in the usual way."""

    def __init__(self) -> None:
        self.reported: list[dict[str, Any]] = []

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.reported.append(context)


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with capture_logs() as found:
        yield found


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_failures_to_accept_are_told_once_in_a_while(lines: list[Any], number: int) -> None:
    clock, loop = Clock(), Loop()
    handler: Any = AcceptFailures(clock)
    context = {
        "message": "socket.accept() out of system resource",
        "exception": OSError(number, ""),
    }
    for seconds in (0, 0.5, QUIET - 1, 1, 1):
        clock.now += seconds
        handler(loop, context)
    assert [line["log_level"] for line in lines] == ["error"] * 2
    assert all("new connections have to wait" in line["event"] for line in lines)
    assert loop.reported == []


@pytest.mark.parametrize(
    "context",
    [
        {"message": "Task exception was never retrieved", "exception": ValueError("x")},
        {"message": "Task exception was never retrieved", "exception": OSError(errno.EMFILE, "")},
        {"message": "socket.accept() broke", "exception": OSError(errno.EPIPE, "")},
        {"message": "Unclosed transport"},
    ],
)
def test_all_else_is_reported_as_ever(lines: list[Any], context: dict[str, Any]) -> None:
    loop, handler = Loop(), AcceptFailures()
    handler(loop, context)  # type: ignore[arg-type]  # a part of a loop
    handler(loop, context)  # type: ignore[arg-type]
    assert (loop.reported, lines) == ([context] * 2, [])
