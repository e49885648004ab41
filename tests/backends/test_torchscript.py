"""Running TorchScript models: made here, and one that people use."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from torch import nn
from torch_models import Difference, Failing, Keyed, Perceptron, Shout, Total, silero
from torch_models import config_of as plain_config

from microkernel import (
    Batch,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Reshape,
)

MakeBatch = Callable[..., Batch]
OutputOf = Callable[..., Any]
Save = Callable[..., Path]
Serve = Callable[..., Any]


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Named(nn.Module):
    def forward(self, x: torch.Tensor) -> Pair:
        return Pair(x + 1, x.to(torch.int32))


class Listed(nn.Module):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, x * 2]


class Numbers(nn.Module):
    def forward(self, x: torch.Tensor) -> list[int]:
        return [1, 2]


class Scaled(nn.Module):
    def forward(
        self, x: torch.Tensor, n: int, f: float, flag: bool, extra: float = 0.5
    ) -> torch.Tensor:
        scaled = x * n * f + extra
        return -scaled if flag else scaled


class Flags(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([x.is_inference(), torch.is_grad_enabled()])


def config_of(
    inputs: dict[str, tuple[Any, ...]],
    outputs: dict[str, tuple[Any, ...]],
    max_batch_size: int = 0,
    inference_mode: str = "true",
) -> ModelConfig:
    """A configuration from `name: (type, *dims)`, with the mode that the model runs in."""
    parameters = {"INFERENCE_MODE": ModelParameter(inference_mode)}
    return plain_config(inputs, outputs, max_batch_size, parameters=parameters)


ROWS = np.random.default_rng(0).standard_normal((7, 4), dtype=np.float32)
X = {"x": ("FP32", 4)}
Y = {"y": ("FP32", 3)}


def test_a_batch_equals_the_model_run_directly_bit_for_bit(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
) -> None:
    module = Perceptron().eval()
    served = serve_module(config_of(X, Y, 8), save_module(module, tmp_path))
    outcomes = served.execute(make_batch([{"x": ROWS[:1]}, {"x": ROWS[1:5]}, {"x": ROWS[5:]}]))
    with torch.inference_mode():
        whole = served.on_thread(lambda: module(torch.from_numpy(ROWS)).detach().numpy())
    parts = [output_of(outcome, "y") for outcome in outcomes]
    assert [part.shape for part in parts] == [(1, 3), (4, 3), (2, 3)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("a", "b"), 1), (("b", "a"), -1), (("I__1", "I__0"), -1), (("p", "q"), 1)],
)
def test_inputs_find_their_arguments(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
    names: tuple[str, str],
    expected: int,
) -> None:
    config = config_of(dict.fromkeys(names, ("INT32", 1)), {"y": ("INT32", 1)})
    served = serve_module(config, save_module(Difference(), tmp_path))
    inputs = {names[0]: np.array([3], np.int32), names[1]: np.array([2], np.int32)}
    (response,) = served.execute(make_batch([inputs], batching=False))
    assert output_of(response, "y").tolist() == [expected]


def test_a_dictionary_goes_in_and_out_by_key(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
) -> None:
    config = config_of(
        {"b": ("FP32", 1), "a": ("FP32", 1)}, {"difference": ("FP32", 1), "sum": ("FP32", 1)}, 4
    )
    served = serve_module(config, save_module(Keyed(), tmp_path))
    row = {"b": np.ones((1, 1), np.float32), "a": np.full((1, 1), 3, np.float32)}
    first, second = served.execute(make_batch([row, row]))
    assert output_of(first, "sum").tolist() == [[4]]
    assert output_of(second, "difference").tolist() == [[2]]


def test_a_key_that_is_not_there_is_named(
    tmp_path: Path, save_module: Save, serve_module: Serve, make_batch: MakeBatch
) -> None:
    config = config_of({"a": ("FP32", 1), "b": ("FP32", 1)}, {"product": ("FP32", 1)})
    served = serve_module(config, save_module(Keyed(), tmp_path))
    one = np.ones(1, np.float32)
    with pytest.raises(InvalidArgument, match=r"output product .* outputs difference, sum$"):
        served.execute(make_batch([{"a": one, "b": one}], batching=False))


@pytest.mark.parametrize(
    ("module", "outputs", "expected"),
    [
        (Named(), {"b__1": ("INT32", 1), "a__0": ("FP32", 1)}, {"a__0": 3.5, "b__1": 2}),
        (Named(), {"first": ("FP32", 1)}, {"first": 3.5}),
        (Listed(), {"p": ("FP32", 1), "q": ("FP32", 1)}, {"p": 2.5, "q": 5}),
    ],
)
def test_several_results_become_outputs_by_position(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
    module: nn.Module,
    outputs: dict[str, tuple[Any, ...]],
    expected: dict[str, float],
) -> None:
    served = serve_module(config_of({"x": ("FP32", 1)}, outputs), save_module(module, tmp_path))
    (response,) = served.execute(make_batch([{"x": np.array([2.5], np.float32)}], batching=False))
    assert not isinstance(response, MicrokernelError)
    assert [output.name for output in response.outputs] == list(outputs)
    assert {name: output_of(response, name).item() for name in expected} == expected


@pytest.mark.parametrize(
    ("module", "outputs", "error", "text"),
    [
        (
            Perceptron(),
            {"OUTPUT__0": ("FP32", 3), "OUTPUT__1": ("FP32", 3)},
            InvalidArgument,
            "The output OUTPUT__1 in the model configuration refers to an output index which "
            "doesn't exist. This model has 1 outputs",
        ),
        (
            Perceptron(),
            {"OUTPUT__0": ("INT32", 3)},
            InvalidArgument,
            "configuration expects datatype TYPE_INT32 for output 'OUTPUT__0', model provides "
            "TYPE_FP32",
        ),
        (
            Perceptron(),
            {"y": ("STRING", 3)},
            InvalidArgument,
            "configuration expects datatype TYPE_STRING for output 'y', model provides TYPE_FP32",
        ),
        (
            Total(),
            {"y": ("FP32", 1)},
            InvalidArgument,
            "output 'y' is a scalar which is not supported.",
        ),
        (
            Numbers(),
            {"y": ("INT64", 1)},
            Internal,
            "PyTorch execute failure: output must be of type Tensor or List[str], received "
            "List[int]",
        ),
    ],
)
def test_results_that_do_not_fit_the_configuration_fail(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    module: nn.Module,
    outputs: dict[str, tuple[Any, ...]],
    error: type[MicrokernelError],
    text: str,
) -> None:
    served = serve_module(config_of(X, outputs), save_module(module, tmp_path))
    with pytest.raises(error) as caught:
        served.execute(make_batch([{"x": ROWS[0]}], batching=False))
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("module", "shape", "first", "whole"),
    [
        (Perceptron(), (1, 5), "mat1 and mat2 shapes cannot be multiplied", "Traceback"),
        (Failing(), (1,), "builtins.ValueError: boom", 'raise ValueError("boom")'),
    ],
)
def test_a_failing_forward_puts_the_reason_first(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    module: nn.Module,
    shape: tuple[int, ...],
    first: str,
    whole: str,
) -> None:
    served = serve_module(config_of({"x": ("FP32", -1)}, Y), save_module(module, tmp_path))
    with pytest.raises(Internal) as caught:
        served.execute(make_batch([{"x": np.ones(shape, np.float32)}], batching=False))
    text = str(caught.value)
    assert text.startswith("PyTorch execute failure: ")
    assert first in text.splitlines()[0]
    assert whole in text


def test_scalar_arguments_are_fed_from_tensors_of_one_element(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
) -> None:
    config = config_of(
        {"x": ("FP32", -1), "n": ("INT32", 1), "f": ("FP64", 1), "flag": ("BOOL", 1)},
        {"y": ("FP32", -1)},
    )
    served = serve_module(config, save_module(Scaled(), tmp_path))
    inputs = {
        "x": np.array([1, 2], np.float32),
        "n": np.array([3], np.int32),
        "f": np.array([0.5]),
        "flag": np.array([True]),
    }
    (response,) = served.execute(make_batch([inputs], batching=False))
    assert output_of(response, "y").tolist() == [-2.0, -3.5]
    inputs["n"] = np.array([1, 2], np.int32)
    with pytest.raises(InvalidArgument, match=r"input 'n' .* 1 element, got shape \[2\]"):
        served.execute(make_batch([inputs], batching=False))


def test_strings_are_split_by_request_and_fail_alone(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
) -> None:
    config = ModelConfig(
        name="m",
        max_batch_size=8,
        input=(ModelInput("words", "TYPE_STRING", dims=(1,), reshape=Reshape(())),),
        output=(ModelOutput("out", "TYPE_STRING", dims=(1,), reshape=Reshape(())),),
    )
    served = serve_module(config, save_module(Shout(), tmp_path))
    first, second = np.array([b"a", b"b"], np.object_), np.array(["naïve"], np.object_)
    batch = make_batch([{"words": first}, {"words": second}])
    one, two = served.execute(batch)
    assert output_of(one, "out").tolist() == [b"a!", b"b!"]
    assert output_of(two, "out").tolist() == ["naïve!".encode()]
    broken = batch.requests[1].inputs[0]
    broken.data = memoryview(broken.data)[:3]
    one, two = served.execute(batch)
    assert output_of(one, "out").tolist() == [b"a!", b"b!"]
    assert isinstance(two, InvalidArgument)
    assert "incomplete string length indicator for inference input 'words'" in str(two)


def test_strings_that_are_no_text_get_a_clear_error(
    tmp_path: Path, save_module: Save, serve_module: Serve, make_batch: MakeBatch
) -> None:
    config = config_of({"words": ("STRING", -1)}, {"out": ("STRING", -1)})
    served = serve_module(config, save_module(Shout(), tmp_path))
    with pytest.raises(Internal, match="not valid UTF-8"):
        served.execute(make_batch([{"words": np.array([b"\xff"], np.object_)}], batching=False))


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_every_type_passes_unchanged_even_from_read_only_and_unaligned_memory(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
    dtype: str,
) -> None:
    names = {"?": "BOOL", "u1": "UINT8", "f2": "FP16", "f4": "FP32", "f8": "FP64"}
    name = names.get(dtype, f"INT{np.dtype(dtype).itemsize * 8}")
    served = serve_module(
        config_of({"x": (name, -1, 2)}, {"y": (name, -1, 2)}), save_module(nn.Identity(), tmp_path)
    )
    array = np.array([[0, 1], [1, 100]]).astype(dtype)
    batch = make_batch([{"x": array}], batching=False)
    batch.stacked["x"].data = memoryview(b"-" + array.tobytes())[1:]
    (response,) = served.execute(batch)
    assert output_of(response, "y").dtype == array.dtype
    assert output_of(response, "y").tolist() == array.tolist()
    (nothing,) = served.execute(make_batch([{"x": array[:0]}], batching=False))
    assert output_of(nothing, "y").shape == (0, 2)


@pytest.mark.parametrize(
    ("inference_mode", "expected"), [("true", [True, False]), ("false", [False, False])]
)
def test_inference_mode_is_a_parameter_and_gradients_are_always_off(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
    inference_mode: str,
    expected: list[bool],
) -> None:
    config = config_of({"x": ("FP32", 1)}, {"y": ("BOOL", 2)}, 0, inference_mode)
    served = serve_module(config, save_module(Flags(), tmp_path))
    (response,) = served.execute(make_batch([{"x": np.ones(1, np.float32)}], batching=False))
    assert output_of(response, "y").tolist() == expected


def test_silero_is_served_as_it_is_and_keeps_its_state(
    tmp_path: Path, serve_module: Serve, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    (tmp_path / "model.pt").symlink_to(silero())
    config = config_of({"x": ("FP32", -1, 512), "sr": ("INT64", 1)}, {"speech": ("FP32", -1, 1)})
    served = serve_module(config, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        direct: Any = torch.jit.load(silero())  # type: ignore[no-untyped-call]
    time = np.arange(3 * 512, dtype=np.float32) / 16000
    sound = np.sin(2 * np.pi * 220 * time).reshape(3, 1, 512).astype(np.float32)
    rate = np.array([16000])
    for chunk in sound:
        batch = make_batch([{"x": chunk, "sr": rate}], batching=False)
        (response,) = served.execute(batch)
        with torch.inference_mode():
            expected = served.on_thread(
                lambda chunk=chunk: direct(torch.from_numpy(chunk), 16000).detach().numpy()
            )
        assert output_of(response, "speech").tobytes() == expected.tobytes()
