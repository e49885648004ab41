"""A small model with a state among its arguments, as the `.pt2` files that a server is given."""

import warnings
from pathlib import Path

import torch
from torch import nn

WEIGHT = 3.0


class Memory(nn.Module):
    """`x` [B, 4], the state [B, 1] and the control `start` [B, 1] to the sum of all rows so far,
    times 3, and `x` itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4, 1), WEIGHT))

    def forward(
        self, x: torch.Tensor, state: torch.Tensor, *, start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kept = torch.where(start > 0, torch.zeros_like(state), state)
        return kept + x @ self.weight, x


def export_memory() -> torch.export.ExportedProgram:
    """The model for batches of up to 8."""
    rows = {0: torch.export.Dim("rows", min=1, max=8)}
    example = (torch.zeros(2, 4), torch.zeros(2, 1))
    sizes = {"x": rows, "state": rows, "start": rows}
    return torch.export.export(
        Memory().eval(), example, {"start": torch.zeros(2, 1)}, dynamic_shapes=sizes
    )


def save_memory(path: Path, *, compiled: bool) -> Path:
    """Write it as an exported program, or as a package that AOTInductor compiled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = export_memory()
        if compiled:
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        else:
            torch.export.save(program, path)
    return path
