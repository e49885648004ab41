"""The interpreter that measures: `python -m microkernel_torchscript.tuning.child DESCRIPTOR`."""

from pathlib import Path
from typing import Any

import torch

from microkernel import config_from_json, config_to_json
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.kinds import Kind, kind_of
from microkernel_torchscript.script.files import model_file
from microkernel_torchscript.tuning.answering import Say, answer
from microkernel_torchscript.tuning.key import key_of
from microkernel_torchscript.tuning.record import measured_to_json
from microkernel_torchscript.tuning.tuner import tune


def carry_out(order: dict[str, Any], say: Say) -> dict[str, Any]:
    """Complete the configuration of a model and, where the order gives more than 0 seconds, measure
    it. Returns the answer; raises what the model's files are refused for."""
    config, files = config_from_json(order["config"]), Path(order["files"])
    config = PyTorchBackend().complete(config, files)
    found: dict[str, Any] = {"config": config_to_json(config), "key": {}}
    if kind_of(config, files) is not Kind.SCRIPT:
        return found
    found["key"] = key_of(config, model_file(config, files), torch.__version__)
    if order["seconds"] > 0:
        folder = order.get("folder")
        measured = tune(config, files, order["seconds"], say, Path(folder) if folder else None)
        found["measured"] = measured_to_json(measured)
    return found


if __name__ == "__main__":
    answer(carry_out)
