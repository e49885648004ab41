"""Small modules, each with one trait that a test is about, and configurations; written so that
TorchScript takes them."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from packaged import packaged
from torch import nn

from microkernel import ModelConfig, ModelInput, ModelOutput

Tensor = torch.Tensor


class Perceptron(nn.Module):
    """`x` [B, 4] to [B, 3], always the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


class Counter(nn.Module):
    """Adds to its input how often it has been called."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x + self.count


class Drop(nn.Module):
    """Drops nearly everything while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.drop(x)
        return result


FROZEN = ("frozen", "optimized", "traced")
"""How a module may be frozen."""


def save_frozen(form: str, module: nn.Module, files: Path) -> Path:
    """A frozen module of inputs [B, 4] as `model.pt` in a version directory."""
    jit: Any = torch.jit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module.eval()
        made = jit.trace(module, torch.rand(2, 4)) if form == "traced" else jit.script(module)
        made = jit.optimize_for_inference(made) if form == "optimized" else jit.freeze(made)
        made.save(files / "model.pt")
    return files


class MakesTensors(nn.Module):
    """Names the device of its input, which tracing bakes in, twice."""

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(3, device=x.device)
        return x + ones + torch.zeros(3, device=x.device)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > 0:
            raise ValueError("boom")
        return x


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Difference(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b


class Keyed(nn.Module):
    def forward(self, d: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sum": d["a"] + d["b"], "difference": d["a"] - d["b"]}


class LateDictionary(nn.Module):
    def forward(self, x: Tensor, d: dict[str, Tensor]) -> Tensor:
        return x + d["a"]


class EarlyDictionary(nn.Module):
    def forward(self, d: dict[str, Tensor], x: Tensor) -> Tensor:
        return x + d["a"]


class TensorList(nn.Module):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return xs[0]


class Grouped(nn.Module):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[0]


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None, n: int | None = None) -> Tensor:
        y = x if mask is None else x * mask
        return y if n is None else y + n


class MaskedFirst(nn.Module):
    def forward(self, mask: Tensor | None, x: Tensor) -> Tensor:
        return x if mask is None else x * mask


class Shout(nn.Module):
    def forward(self, words: list[str]) -> list[str]:
        return [word + "!" for word in words]


class Counted(nn.Module):
    def forward(self, words: list[str], x: Tensor) -> tuple[list[str], Tensor]:
        return [word + str(int(x[i, 0])) for i, word in enumerate(words)], x + 1


class Twice(nn.Module):
    """Two names for the memory of the input, and a view that is not contiguous."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x, x.t()


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


class InPlaceWithin(nn.Module):
    """Works in place in a block and a submodule, where a glance at the graph does not show it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = InPlace()

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > 0:
            x = self.inner(x)
        return x


class Fields(nn.Module):
    def forward(self, x: Tensor) -> Pair:
        return Pair(x + 1, x * 10)


class Nested(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, list[Tensor]], dict[str, Tensor]]:
        return x, (x + 1, [x + 2, x + 3]), {"four": x + 4}


class NestedKeys(nn.Module):
    def forward(self, x: Tensor) -> dict[str, tuple[Tensor, list[Tensor]]]:
        return {"a": (x, [x + 1]), "b": (x + 2, [x + 3, x + 4])}


class FieldsWithin(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Pair]:
        return {"p": Pair(x, x + 1), "q": Pair(x + 2, x + 3)}


class ListOfPairs(nn.Module):
    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(x, x + 1), (x + 2, x + 3)]


class WordsAndNothing(nn.Module):
    """An empty list of strings before, and an empty list of tensors after a tensor."""

    def forward(self, x: Tensor) -> tuple[list[str], Tensor, list[Tensor], Tensor]:
        words: list[str] = []
        parts: list[Tensor] = []
        return words, x, parts, x + 1


class Mixed(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int, Tensor | None, list[int]]:
        return x, 3, None, [1, 2]


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


class Number(nn.Module):
    def forward(self, x: Tensor) -> float:
        return float(x.sum())


class Numbers(nn.Module):
    def forward(self, x: Tensor) -> list[int]:
        return [1, 2]


class NumbersByKey(nn.Module):
    def forward(self, x: Tensor) -> dict[str, int]:
        return {"y": 1}


class Total(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


class Fickle(nn.Module):
    """Floats at first, integers from the second call on."""

    calls: int

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x if self.calls == 1 else x.to(torch.int32)


class Sparse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to_sparse()


class Quantized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)


class Complex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x, x)


class Conjugate(nn.Module):
    """The imaginary part of a conjugate: a real tensor whose sign is yet to be turned."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.imag(torch.conj(torch.complex(x, x)))


class Elsewhere(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to("meta")


class Packed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to_mkldnn()


class Flipped(nn.Module):
    """Not contiguous, of every rank."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, -1)


class Surrogate(nn.Module):
    """Cuts the two bytes of a letter apart."""

    def forward(self, words: list[str]) -> list[str]:
        return [word[:-1] for word in words]


class Methodless(nn.Module):
    @torch.jit.export
    def other(self, x: Tensor) -> Tensor:
        return x


def silero() -> Path:
    """The file of a model of speech that people use."""
    return packaged("silero_vad", "data/silero_vad.jit")


def config_of(
    inputs: dict[str, tuple[Any, ...]],
    outputs: dict[str, tuple[Any, ...]],
    max_batch_size: int = 0,
    **rest: Any,
) -> ModelConfig:
    """A configuration of the model `m` from `name: (type, *dims)`."""
    return ModelConfig(
        name="m",
        max_batch_size=max_batch_size,
        input=tuple(ModelInput(n, f"TYPE_{t}", dims=tuple(d)) for n, (t, *d) in inputs.items()),
        output=tuple(ModelOutput(n, f"TYPE_{t}", dims=tuple(d)) for n, (t, *d) in outputs.items()),
        **rest,
    )


def save_script(module: Any, path: Path) -> None:
    """Save a module or a function as TorchScript, without torch's advice not to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        scripted: Any = torch.jit.script(module)
        scripted.save(str(path))
