"""The other side of `interpreter`: the process that carries out one order.

The order comes as a line on the standard input, whose end is the end of who asked, and so of this
process. News and the answer go to the descriptor that is its argument, a JSON object a line, since
a model may print.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from microkernel import MicrokernelError
from microkernel_torchscript.tuning.interpreter import end_running

Say: TypeAlias = Callable[[str], None]
CarryOut: TypeAlias = Callable[[dict[str, Any], Say], dict[str, Any]]


def answer(carry_out: CarryOut) -> None:
    """Carry out the order that is waiting, tell what came of it, and end this process. Where the
    order names a `folder` and nobody waits for the answer any more, that is removed."""
    _first_to_go()
    order = json.loads(sys.stdin.readline())
    ending = (sys.stdin, str(order.get("folder") or ""))
    threading.Thread(target=_end_with, args=ending, daemon=True).start()
    with os.fdopen(int(sys.argv[1]), "w") as news:

        def tell(document: dict[str, Any]) -> None:
            news.write(json.dumps(document) + "\n")
            news.flush()

        tell(_told(carry_out, order, lambda text: tell({"news": text})))
    os._exit(0)  # a model may have left threads that do not end


def _told(carry_out: CarryOut, order: dict[str, Any], say: Say) -> dict[str, Any]:
    try:
        return carry_out(order, say)
    except MicrokernelError as error:
        return {"failed": [error.code, str(error)]}
    except Exception as error:  # noqa: BLE001 - whatever a model or torch raises
        return {"failed": ["INTERNAL", f"{type(error).__name__}: {error}"[:2000]]}


def _first_to_go() -> None:
    """When memory runs out, this process goes before a server does."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("700")


def _end_with(source: TextIO, folder: str) -> None:
    source.read()
    end_running()
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    if os.getpgrp() == os.getpid():  # a compiler may be running
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
