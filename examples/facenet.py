"""The three small networks that find faces in a picture, as published with facenet-pytorch: one
proposes places, one refines them, one finds eyes, nose and mouth."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Faces(NamedTuple):
    """How the edges of each box move, and how likely it holds a face."""

    boxes: Tensor
    score: Tensor


class Landmarks(NamedTuple):
    """As `Faces`, with five points: the x of each, then the y of each, as shares of the box."""

    boxes: Tensor
    points: Tensor
    score: Tensor


def convolution(inner: int, outer: int, size: int) -> list[nn.Module]:
    """A convolution and its activation, which has a slope for each channel."""
    return [nn.Conv2d(inner, outer, size), nn.PReLU(outer)]


def pool(size: int) -> nn.Module:
    """Halves a picture; what is left at the edges counts."""
    return nn.MaxPool2d(size, 2, ceil_mode=True)


class Proposals(nn.Module):
    """`picture` [B, 3, H, W], values from -1 to 1, to a box at every second pixel of both
    directions: `boxes` [B, 4, h, w] and `score` [B, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *convolution(3, 10, 3), pool(2), *convolution(10, 16, 3), *convolution(16, 32, 3)
        )
        self.score = nn.Conv2d(32, 2, 1)
        self.boxes = nn.Conv2d(32, 4, 1)

    def forward(self, picture: Tensor) -> Faces:
        """A map of boxes for each picture."""
        seen = self.trunk(picture)
        return Faces(self.boxes(seen), self.score(seen).softmax(1)[:, 1])


class Refinement(nn.Module):
    """`face` [B, 3, 24, 24], a cut-out for each proposal, to `boxes` [B, 4] and `score` [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *convolution(3, 28, 3),
            pool(3),
            *convolution(28, 48, 3),
            pool(3),
            *convolution(48, 64, 2),
        )
        self.inner = nn.Sequential(nn.Linear(576, 128), nn.PReLU(128))
        self.score = nn.Linear(128, 2)
        self.boxes = nn.Linear(128, 4)

    def forward(self, face: Tensor) -> Faces:
        """A better box for each cut-out."""
        seen = self.inner(_columns(self.trunk(face)))
        return Faces(self.boxes(seen), self.score(seen).softmax(1)[:, 1])


class Points(nn.Module):
    """`face` [B, 3, 48, 48], a cut-out for each face, to `boxes` [B, 4], `points` [B, 10] and
    `score` [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *convolution(3, 32, 3),
            pool(3),
            *convolution(32, 64, 3),
            pool(3),
            *convolution(64, 64, 3),
            pool(2),
            *convolution(64, 128, 2),
        )
        self.inner = nn.Sequential(nn.Linear(1152, 256), nn.PReLU(256))
        self.score = nn.Linear(256, 2)
        self.boxes = nn.Linear(256, 4)
        self.points = nn.Linear(256, 10)

    def forward(self, face: Tensor) -> Landmarks:
        """The last word on each cut-out."""
        seen = self.inner(_columns(self.trunk(face)))
        score = self.score(seen).softmax(1)[:, 1]
        return Landmarks(self.boxes(seen), self.points(seen), score)


NETWORKS: Mapping[str, tuple[type[nn.Module], str, tuple[str, ...]]] = {
    "face_proposals": (Proposals, "pnet.pt", ("score", "boxes")),
    "face_refinement": (Refinement, "rnet.pt", ("inner.0", "inner.1", "score", "boxes")),
    "face_points": (Points, "onet.pt", ("inner.0", "inner.1", "score", "boxes", "points")),
}
"""By the name of the model: its class, its published weights, and what follows the trunk in
them."""


def load_network(name: str, folder: Path) -> nn.Module:
    """A network with its published weights, which lie in `folder`, in evaluation mode. Raises
    RuntimeError naming every tensor that is missing, left over or of another shape."""
    make, file, rest = NETWORKS[name]
    network = make()
    weights = torch.load(folder / file, map_location="cpu", weights_only=True)
    network.load_state_dict(_renamed(network, weights, rest))
    return network.eval()


def _renamed(
    network: nn.Module, weights: Mapping[str, Tensor], rest: tuple[str, ...]
) -> dict[str, Tensor]:
    """Published weights by the names that they have here. Layers are published in the order in
    which they run, the trunk first, under other names."""
    trunk = network.get_submodule("trunk")
    here = [f"trunk.{i}" for i, layer in trunk.named_children() if list(layer.parameters())]
    here += rest
    there = list(dict.fromkeys(key.rpartition(".")[0] for key in weights))
    names = dict(zip(there, here, strict=True))
    renamed = {}
    for key, tensor in weights.items():
        layer, _, kind = key.rpartition(".")
        renamed[f"{names[layer]}.{kind}"] = tensor
    return renamed


def _columns(seen: Tensor) -> Tensor:
    """Feature maps as one row for each picture, column by column: so the weights were made."""
    return seen.permute(0, 3, 2, 1).flatten(1)
