"""Python modules for the PyTorch 2 runtime, written as their authors write them."""

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from microkernel import ModelConfig, ModelInput, ModelOutput, ModelParameter
from microkernel_torchscript.backend import PyTorchBackend

HEAD = """\
import torch
from torch import nn
from typing import NamedTuple, Optional


"""

Tensors = dict[str, tuple[Any, ...]]
"""Inputs or outputs: `name: (type, *dims)`."""

X: Tensors = {"x": ("FP32", 4)}
Y: Tensors = {"y": ("FP32", 4)}


def write_module(files: Path, source: str, weights: object = None, name: str = "model") -> Path:
    """The file of a model, and the weights beside it where there are any. `torch`, `nn`,
    `NamedTuple` and `Optional` are imported."""
    files.mkdir(parents=True, exist_ok=True)
    (files / f"{name}.py").write_text(HEAD + textwrap.dedent(source).strip() + "\n")
    if weights is not None:
        torch.save(weights, files / f"{name}.pt")
    return files


def load(files: Path, **settings: Any) -> Any:
    """The model of a version directory, whose configuration is `module_config(**settings)`."""
    return PyTorchBackend().load(module_config(**settings), files)


def forward(body: str, arguments: str = "x") -> str:
    """A module with this `forward` and nothing else."""
    lines = textwrap.indent(textwrap.dedent(body).strip(), " " * 8)
    return f"class Net(nn.Module):\n    def forward(self, {arguments}):\n{lines}\n"


def module_config(
    inputs: Tensors | None = None,
    outputs: Tensors | None = None,
    max_batch_size: int = 0,
    filename: str = "",
    **parameters: str,
) -> ModelConfig:
    """A configuration of the runtime `model.py`; `x` to `y` where nothing is said."""
    return ModelConfig(
        name="m",
        backend="pytorch",
        runtime="model.py",
        default_model_filename=filename,
        max_batch_size=max_batch_size,
        input=tuple(
            ModelInput(n, f"TYPE_{kind}", dims=tuple(dims))
            for n, (kind, *dims) in (X if inputs is None else inputs).items()
        ),
        output=tuple(
            ModelOutput(n, f"TYPE_{kind}", dims=tuple(dims))
            for n, (kind, *dims) in (Y if outputs is None else outputs).items()
        ),
        parameters={key: ModelParameter(value) for key, value in parameters.items()},
    )


def with_parameters(config: ModelConfig, **parameters: str) -> ModelConfig:
    """The configuration with these parameters and no others."""
    found = {key: ModelParameter(value) for key, value in parameters.items()}
    return replace(config, parameters=found)
