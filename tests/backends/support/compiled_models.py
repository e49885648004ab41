"""A small model that tuning may compile, and a record that says so."""

from pathlib import Path

import torch
from torch import nn

from microkernel import ModelConfig, ModelInput, ModelOutput, ModelParameter
from microkernel_torchscript.tuning import key, places
from microkernel_torchscript.tuning.deciding import Decision
from microkernel_torchscript.tuning.keeping import keep, made_now
from microkernel_torchscript.tuning.record import Measured
from microkernel_torchscript.tuning.trial import AOTI, Candidate

CONFIG = ModelConfig(
    name="net",
    backend="pytorch",
    max_batch_size=4,
    input=(ModelInput("x", "TYPE_FP32", dims=(3, 8, 8)),),
    output=(ModelOutput("OUTPUT__0", "TYPE_FP32", dims=(5,)),),
    parameters={"AUTOTUNE": ModelParameter("load")},
)
CHOSEN = Measured(Decision(Candidate(AOTI, 1, 1, 4), "it is faster", 1.5, 1.5, 1e-7))
"""As where the compiled model won."""


class Net(nn.Module):
    """`x` [B, 3, 8, 8] to [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 8, 3)
        self.normalised = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.normalised(self.convolution(x)))
        result: torch.Tensor = self.head(inner.mean((2, 3)))
        return result


def store(files: Path, package: Path) -> None:
    """Keep a record that the model of a version directory was compiled into that package."""
    fitting = key.key_of(CONFIG, files / "model.pt", torch.__version__)
    keep("net", places.places(files), made_now(fitting, CHOSEN), package)
