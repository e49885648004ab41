"""What the TorchScript backend fills in, and what it asks a person for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from torch import nn
from torch_models import Difference, Drop, Failing, Keyed, Perceptron, Shout, Total, silero

from microkernel import (
    Batch,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
)
from microkernel_torchscript.backend import PyTorchBackend

MakeBatch = Callable[..., Batch]
OutputOf = Callable[..., Any]
Save = Callable[..., Path]
Serve = Callable[..., Any]


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 5, 3)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(picture)
        return result


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows: torch.Tensor = self.table(ids)
        return rows, rows.mean(1)


class Masked(Embedded):
    def forward(  # type: ignore[override]
        self, ids: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        rows = self.table(ids) * mask.unsqueeze(-1)
        return {"rows": rows, "pooled": rows.sum(1)}


LABEL = (ModelOutput("label", "TYPE_FP32", dims=(3,)),)


def listing(max_batch_size: int = 0, **inputs: tuple[Any, ...]) -> ModelConfig:
    """A configuration that lists inputs only, each `(type, *dims)`."""
    return ModelConfig(
        name="m",
        max_batch_size=max_batch_size,
        input=tuple(ModelInput(n, f"TYPE_{t}", dims=tuple(d)) for n, (t, *d) in inputs.items()),
    )


def shapes(config: ModelConfig) -> dict[str, tuple[Any, ...]]:
    """What a configuration says of its tensors, without the words that all types begin with."""
    entries: list[ModelInput | ModelOutput] = [*config.input, *config.output]
    return {e.name: (e.data_type.removeprefix("TYPE_"), *e.dims) for e in entries}


LONG = torch.zeros(1, 7, dtype=torch.long)


@pytest.mark.parametrize(
    ("module", "example", "max_batch_size", "expected"),
    [
        (
            Perceptron(),
            (torch.zeros(2, 4),),
            0,
            {"x": ("FP32", -1, 4), "OUTPUT__0": ("FP32", -1, 3)},
        ),
        (Perceptron(), (), 8, {"x": ("FP32", 4), "OUTPUT__0": ("FP32", 3)}),
        (
            Convolution(),
            (),
            2,
            {"picture": ("FP32", 3, -1, -1), "OUTPUT__0": ("FP32", 5, -1, -1)},
        ),
        (
            Embedded(),
            (),
            0,
            {
                "ids": ("INT64", -1, -1),
                "OUTPUT__0": ("FP32", -1, -1, 6),
                "OUTPUT__1": ("FP32", -1, 6),
            },
        ),
        (
            Masked(),
            (LONG, LONG),
            4,
            {
                "ids": ("INT64", -1),
                "mask": ("INT64", -1),
                "rows": ("FP32", -1, 6),
                "pooled": ("FP32", 6),
            },
        ),
        (
            Difference(),
            (torch.zeros(3), torch.zeros(3)),
            4,
            {"a": ("FP32", 1), "b": ("FP32", 1), "OUTPUT__0": ("FP32", 1)},
        ),
        (Shout(), (), 0, {"words": ("STRING", -1), "OUTPUT__0": ("STRING", -1)}),
    ],
)
def test_what_a_file_tells_is_filled_in(
    tmp_path: Path,
    save_module: Save,
    module: nn.Module,
    example: tuple[Any, ...],
    max_batch_size: int,
    expected: dict[str, tuple[Any, ...]],
) -> None:
    files = save_module(module, tmp_path, *example)
    backend = PyTorchBackend()
    given = ModelConfig(name="m", max_batch_size=max_batch_size)
    config = backend.complete(given, files)
    assert shapes(config) == expected
    assert config.max_batch_size == max_batch_size
    backend.load(config, files)


def test_listed_inputs_are_kept_and_tell_the_outputs(tmp_path: Path, save_module: Save) -> None:
    listed = listing(4, mask=("FP32", -1), ids=("INT32", -1))
    config = PyTorchBackend().complete(listed, save_module(Masked(), tmp_path))
    assert config.input == listed.input
    assert shapes(config)["rows"] == ("FP32", -1, 6)


def test_listed_outputs_are_kept_and_the_inputs_filled(tmp_path: Path, save_module: Save) -> None:
    files = save_module(Perceptron(), tmp_path, torch.zeros(1, 4))
    config = PyTorchBackend().complete(ModelConfig(name="m", max_batch_size=2, output=LABEL), files)
    assert shapes(config) == {"x": ("FP32", 4), "label": ("FP32", 3)}


def test_a_complete_configuration_is_returned_without_looking_at_the_file(tmp_path: Path) -> None:
    config = replace(listing(x=("FP32", 4)), output=LABEL)
    assert PyTorchBackend().complete(config, tmp_path) is config


def test_completing_leaves_the_threads_of_torch_alone(tmp_path: Path, save_module: Save) -> None:
    before = torch.get_num_threads()
    PyTorchBackend().complete(ModelConfig(name="m"), save_module(Perceptron(), tmp_path))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("module", "config", "reason", "pasted"),
    [
        (
            Difference(),
            ModelConfig(name="m"),
            "does not tell the types and shapes of 'a', 'b', because a scripted model",
            'input {\n  name: "b"\n  data_type: TYPE_FP32  # fill in: its type\n',
        ),
        (
            Keyed(),
            ModelConfig(name="m"),
            "the names of the inputs, because the model takes them as a dictionary",
            'input {\n  name: "KEY"',
        ),
        (
            Drop(),
            ModelConfig(name="m"),
            "the inputs, because no layer hints at their shape",
            'input {\n  name: "x"',
        ),
        (
            Failing(),
            listing(x=("FP32", -1)),
            "the outputs, because a trial run failed: builtins.ValueError: boom",
            'output {\n  name: "OUTPUT__0"\n  data_type: TYPE_FP32  # fill in: its type\n',
        ),
        (
            Total(),
            listing(x=("FP32", 4)),
            "the outputs, because the model returns none that can be served",
            "output {",
        ),
    ],
)
def test_what_cannot_be_told_is_asked_for(
    tmp_path: Path,
    save_module: Save,
    module: nn.Module,
    config: ModelConfig,
    reason: str,
    pasted: str,
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        PyTorchBackend().complete(config, save_module(module, tmp_path))
    text = str(caught.value)
    assert reason in text
    assert pasted in text
    assert str(tmp_path.parent / "config.pbtxt") in text


class Alone(nn.Module):
    def forward(self) -> torch.Tensor:
        return torch.ones(1)


def test_a_model_without_arguments_has_nothing_to_fill_in(
    tmp_path: Path, save_module: Save
) -> None:
    with pytest.raises(InvalidArgument, match=r"no arguments.* must have at least one input") as e:
        PyTorchBackend().complete(ModelConfig(name="m"), save_module(Alone(), tmp_path))
    assert "fill in" not in str(e.value)


def test_a_traced_model_that_fails_says_why(tmp_path: Path, save_module: Save) -> None:
    """Torch's words stand below the calls that were traced, and end in advice."""
    files = save_module(Perceptron(), tmp_path, torch.zeros(2, 4))
    with pytest.raises(InvalidArgument, match="trial run failed: RuntimeError: mat1 and mat2"):
        PyTorchBackend().complete(listing(x=("FP32", 2, 3)), files)


def test_a_model_that_mixes_its_rows_cannot_be_batched(tmp_path: Path, save_module: Save) -> None:
    class Pooled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(0, keepdim=True)

    files = save_module(Pooled(), tmp_path, torch.zeros(2, 4))
    with pytest.raises(InvalidArgument) as caught:
        PyTorchBackend().complete(ModelConfig(name="m", max_batch_size=4), files)
    assert str(caught.value) == (
        "autofill failed for model 'm': model does not support batching while non-zero "
        "max_batch_size is specified"
    )


def test_silero_without_configuration_gets_one_to_fill_in(tmp_path: Path) -> None:
    (tmp_path / "model.pt").symlink_to(silero())
    with pytest.raises(InvalidArgument) as caught:
        PyTorchBackend().complete(ModelConfig(name="vad"), tmp_path)
    assert 'input {\n  name: "sr"\n  data_type: TYPE_INT64\n  dims: [ 1 ]\n}' in str(caught.value)
