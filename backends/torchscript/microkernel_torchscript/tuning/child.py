"""The interpreter that measures: `python -m microkernel_torchscript.tuning.child DESCRIPTOR`.

An order comes as a line on the standard input, whose end is the end of who asked, and so of this
process. News and the answer go to the descriptor, a JSON object a line, since the model may print.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from microkernel import MicrokernelError, config_from_json, config_to_json
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.kinds import Kind, kind_of
from microkernel_torchscript.script.files import model_file
from microkernel_torchscript.tuning.key import key_of
from microkernel_torchscript.tuning.record import measured_to_json
from microkernel_torchscript.tuning.tuner import tune


def carry_out(order: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Complete the configuration of a model and, where the order gives more than 0 seconds, measure
    it. Returns the answer; raises what the model's files are refused for."""
    config, files = config_from_json(order["config"]), Path(order["files"])
    config = PyTorchBackend().complete(config, files)
    answer: dict[str, Any] = {"config": config_to_json(config), "key": {}}
    if kind_of(config, files) is not Kind.SCRIPT:
        return answer
    answer["key"] = key_of(config, model_file(config, files), torch.__version__)
    if order["seconds"] > 0:
        answer["measured"] = measured_to_json(tune(config, files, order["seconds"], say))
    return answer


def _first_to_go() -> None:
    """When memory runs out, this process goes before a server does."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("700")


def _end_with(source: TextIO) -> None:
    source.read()
    os._exit(1)


def _answer(order: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    try:
        return carry_out(order, say)
    except MicrokernelError as error:
        return {"failed": [error.code, str(error)]}
    except Exception as error:  # noqa: BLE001 - whatever a model or torch raises
        return {"failed": ["INTERNAL", f"{type(error).__name__}: {error}"[:2000]]}


def main() -> None:
    """Carry out one order."""
    _first_to_go()
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with, args=(sys.stdin,), daemon=True).start()
    with os.fdopen(int(sys.argv[1]), "w") as news:

        def tell(document: dict[str, Any]) -> None:
            news.write(json.dumps(document) + "\n")
            news.flush()

        tell(_answer(order, lambda text: tell({"news": text})))
    os._exit(0)  # a model may have left threads that do not end


if __name__ == "__main__":
    main()
