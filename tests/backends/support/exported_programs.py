"""Modules, exported as `.pt2` files."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch_models import Perceptron

BATCH = torch.export.Dim("batch", min=1, max=32)


class Nested(nn.Module):
    """Arguments and results inside one another."""

    def forward(
        self,
        x: torch.Tensor,
        pair: tuple[torch.Tensor, torch.Tensor],
        keyed: dict[str, torch.Tensor],
        *,
        scale: torch.Tensor,
    ) -> dict[str, Any]:
        total = x * scale + pair[0] - pair[1]
        return {"total": total, "parts": [keyed["b"] * 2, (keyed["a"],)]}


class Accumulator(nn.Module):
    """`x` and a state [B, 1], and the control START, to the new state, twice."""

    def forward(
        self, x: torch.Tensor, state: torch.Tensor, start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + torch.where(start > 0, torch.zeros_like(state), state)
        return total, total.clone()


def nested_example(rows: int = 2) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of `Nested`."""
    pair = (torch.full((rows, 4), 1.0), torch.full((rows, 4), 2.0))
    keyed = {"b": torch.ones(rows, 2), "a": torch.zeros(rows, 1, dtype=torch.int64)}
    return (torch.ones(rows, 4), pair, keyed), {"scale": torch.full((rows, 1), 3.0)}


def nested_sizes(batch: Any = BATCH) -> dict[str, Any]:
    """The dynamic shapes of `Nested`."""
    rows = {0: batch}
    return {"x": rows, "pair": (rows, rows), "keyed": {"b": rows, "a": rows}, "scale": rows}


def export(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    sizes: Any = None,
) -> torch.export.ExportedProgram:
    """An exported program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module.eval(), args, kwargs, dynamic_shapes=sizes)


def save(program: torch.export.ExportedProgram, files: Path) -> Path:
    """`model.pt2` in a version directory."""
    files.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, files / "model.pt2")
    return files


def save_perceptron(files: Path, sizes: Any = ({0: BATCH},)) -> Path:
    """`Perceptron` in a version directory."""
    return save(export(Perceptron(), (torch.zeros(2, 4),), sizes=sizes), files)
