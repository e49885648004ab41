"""Small modules, exported as `.pt2` files."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

BATCH = torch.export.Dim("batch", min=1, max=32)


class Perceptron(nn.Module):
    """`x` [B, 4] to [B, 3]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x)
        return result


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


class Keyed(nn.Module):
    def forward(self, d: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sum": d["a"] + d["b"], "difference": d["a"] - d["b"]}


class Counter(nn.Module):
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x + self.count


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
