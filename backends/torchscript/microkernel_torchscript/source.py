"""What every kind of PyTorch model is to the rest of the backend."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from microkernel import Placement
from microkernel_torchscript.inputs import InputPlan
from microkernel_torchscript.outputs import OutputPlan

Forward: TypeAlias = Callable[..., Any]
"""Runs a model: takes what `InputPlan.lay_out` gives, on the instance's device, and returns what
`OutputPlan.tensors` reads."""


class Source(ABC):
    """A version's files, loaded in a worker once. `inputs` and `outputs` say how the tensors of the
    configuration become arguments, and results become tensors."""

    inputs: InputPlan
    outputs: OutputPlan

    @abstractmethod
    def forward(self, placement: Placement, device: torch.device | None) -> Forward:
        """What one instance calls, on its device; None where each tensor stays where it was saved.
        Called on the instance's thread, in the modes that it will run in. Raises to fail the load.
        """

    def close(self) -> None:  # noqa: B027 - most sources have nothing to give back
        """Every instance is closed."""
