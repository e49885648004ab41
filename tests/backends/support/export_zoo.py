"""Modules to be exported, as a person's file has them. The tests of `microkernel export` name this
file; torch reads the source of what it scripts."""

from typing import NamedTuple

import torch
from torch import nn


class Net(nn.Module):
    """A small classifier of pictures of any size."""

    def __init__(self, classes: int = 5, *, name: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.name = name
        self.body = nn.Conv2d(3, 8, 3, stride=2)
        self.drop = nn.Dropout(0.9)
        self.head = nn.Linear(8, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.body(image).relu().mean((2, 3))
        scores: torch.Tensor = self.head(self.drop(pooled))
        return scores


class Embedded(nn.Module):
    """Two inputs that vary together, a default, and a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, scale: float = 2.0
    ) -> dict[str, torch.Tensor]:
        rows = self.table(ids) * mask.unsqueeze(-1) * scale
        return {"rows": rows, "pooled": rows.sum(1)}


class Sides(NamedTuple):
    """Results by name."""

    left: torch.Tensor
    right: torch.Tensor


class Named(nn.Module):
    """Gives a NamedTuple."""

    def forward(self, x: torch.Tensor) -> Sides:
        return Sides(x + 1, x.sum(1))


class Two(nn.Module):
    """Gives two results of different rank."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x.sum(1)


class Keyed(nn.Module):
    """Takes a dictionary."""

    def forward(self, d: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sum": d["a"] + d["b"], "difference": d["a"] - d["b"]}


class Shout(nn.Module):
    """Takes and gives texts."""

    def forward(self, words: list[str]) -> list[str]:
        return [word + "!" for word in words]


class Times(nn.Module):
    """Takes a number."""

    def forward(self, x: torch.Tensor, n: int) -> torch.Tensor:
        return x * n


class Random(nn.Module):
    """Never gives the same twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Branch(nn.Module):
    """Looks at its numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


class Fixed(nn.Module):
    """Takes one size only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(2, 4) + 1


class Total(nn.Module):
    """Gives one row for all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(0)


class Unscriptable(nn.Module):
    """Takes any number of arguments, which TorchScript does not know."""

    def forward(self, *xs: torch.Tensor) -> torch.Tensor:
        return xs[0] + xs[1]


class Scalar(nn.Module):
    """Gives nothing that can be served."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


class Broken(nn.Module):
    """Does not run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"boom at {x.dim()}")


def make(classes: int = 2) -> nn.Module:
    """A function that makes a module."""
    return Net(classes)


def wrong() -> str:
    """A function that makes none."""
    return "no module"


READY = Two()
NUMBER = 3


class Counting(nn.Module):
    """Counts its calls."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + 1


class Uncopied(Counting):
    """Cannot be copied."""

    def __deepcopy__(self, memo: object) -> "Uncopied":
        raise RuntimeError("there is one of me")
