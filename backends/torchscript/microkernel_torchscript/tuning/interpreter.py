"""Interpreters of our own that carry out one order each, so that a model that crashes or hangs, and
whatever torch's compiler starts, takes nothing along. No torch."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_MOST_BYTES = 4 * 1024 * 1024

_RUNNING: set["subprocess.Popen[bytes]"] = set()
"""The interpreters that this process has to end when it is ended itself."""


class NotDone(Exception):
    """The interpreter ended or hung; the text says how."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What an interpreter is started for: the module that it runs, what it is called in messages,
    and what to say where it is not done in time."""

    module: str
    what: str
    late: str


def documents(
    errand: Errand, order: Mapping[str, Any], seconds: float, environment: Mapping[str, str]
) -> Generator[dict[str, Any], None, None]:
    """What an interpreter says of an order, one document after the other until it ends. It has so
    many seconds, and variables beside ours.

    Raises NotDone. The interpreter, with all that it started, is gone when this is closed.
    """
    deadline = time.monotonic() + seconds
    read_end, write_end = os.pipe()
    try:
        process = _start(errand.module, write_end, environment)
    finally:
        os.close(write_end)
    try:
        _order(errand, process, order)
        for line in _lines(errand, read_end, deadline):
            yield _document(errand, line)
        raise NotDone(f"{errand.what} ended with {_how(process.wait())}")
    finally:
        _end(process)
        os.close(read_end)


def end_running() -> None:
    """End every interpreter that this process has started and all that those started."""
    for process in list(_RUNNING):
        _kill(process)


def _start(
    module: str, descriptor: int, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        # -P: what lies in the working directory is not imported.
        [sys.executable, "-P", "-m", module, str(descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(descriptor,),
        env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment},
        process_group=0,
    )
    _RUNNING.add(process)
    return process


def _end(process: "subprocess.Popen[bytes]") -> None:
    _kill(process)
    process.communicate()
    _RUNNING.discard(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """A compiler that it started is in its group, which outlives it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _order(errand: Errand, process: "subprocess.Popen[bytes]", order: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        raise NotDone(f"{errand.what} did not start") from None


def _document(errand: Errand, line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise NotDone(f"{errand.what} answers what is no answer: {error}") from None
    if not isinstance(document, dict):
        raise NotDone(f"{errand.what} answers what is no answer")
    return document


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _lines(errand: Errand, descriptor: int, deadline: float) -> Iterator[bytes]:
    """The lines that come through a pipe until it ends. Raises NotDone at the deadline."""
    kept = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise NotDone(errand.late)
        if not (more := os.read(descriptor, 65536)):
            return
        *lines, kept = (kept + more).split(b"\n")
        yield from lines
        if len(kept) > _MOST_BYTES:
            raise NotDone(f"{errand.what} said too much")
