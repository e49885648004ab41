"""What Triton's users know of the outputs of a TorchScript model, and what goes beyond it."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
import torch_models as models
from torch_models import config_of

from microkernel import (
    Batch,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    Reshape,
)
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.signature import signature_of

MakeBatch = Callable[..., Batch]
OutputOf = Callable[..., Any]
Run = Callable[..., Any]
Save = Callable[..., Path]
Serve = Callable[..., Any]

X = {"x": ("FP32", 1)}
ZERO = {"x": np.zeros(1, np.float32)}
FAILURE = "PyTorch execute failure: "
NEITHER = (
    f"{FAILURE}output must be of type Tensor, List[str] or Tuple containing one of these two "
    "types. It should not be a List / Dictionary of Tensors or a Scalar"
)


def floats(*names: str) -> dict[str, tuple[Any, ...]]:
    return dict.fromkeys(names, ("FP32", -1))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (models.Nested(), {f"OUTPUT__{i}": i for i in range(5)}),
        (models.Nested(), {"y__4": 4, "y__1": 1}),
        (models.Nested(), {"first": 0, "second": 1}),
        (models.ListOfPairs(), {"OUTPUT__3": 3, "OUTPUT__0": 0}),
        (models.NestedKeys(), {"b.1.0": 3, "a.0": 0, "b.1.1": 4}),
        (models.NestedKeys(), {"OUTPUT__4": 4, "OUTPUT__1": 1}),
        (models.FieldsWithin(), {"q.right": 3, "p.left": 0}),
        (models.Fields(), {"right": 0, "left": 1}),
        (models.Fields(), {"first": 1, "second": 0}),
        (models.Fields(), {"y__1": 0, "y__0": 1}),
    ],
)
def test_results_within_one_another_are_found_by_index_and_by_name(
    run_module: Run, output_of: OutputOf, module: torch.nn.Module, expected: dict[str, float]
) -> None:
    (response,) = run_module(module, config_of(X, floats(*expected)), ZERO)
    assert [output.name for output in response.outputs] == list(expected)
    assert {n: output_of(response, n).item() for n in expected} == expected


def test_results_within_one_another_are_split_by_request(
    run_module: Run, output_of: OutputOf
) -> None:
    config = config_of(X, {"b.0": ("FP32", 1), "a.1.0": ("FP32", 1)}, 8)
    rows = [np.array([[1], [2]], np.float32), np.array([[3]], np.float32)]
    first, second = run_module(models.NestedKeys(), config, *({"x": row} for row in rows))
    assert output_of(first, "b.0").tolist() == [[3], [4]]
    assert output_of(second, "a.1.0").tolist() == [[4]]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (models.Nested(), [f"OUTPUT__{i}" for i in range(5)]),
        (models.Fields(), ["left", "right"]),
        (models.FieldsWithin(), ["p.left", "p.right", "q.left", "q.right"]),
        (models.Mixed(), ["OUTPUT__0"]),
    ],
)
def test_completion_names_results_as_they_may_be_asked_for(
    tmp_path: Path, save_module: Save, module: torch.nn.Module, expected: list[str]
) -> None:
    completed = PyTorchBackend().complete(config_of(X, {}), save_module(module, tmp_path))
    assert [entry.name for entry in completed.output] == expected
    PyTorchBackend().load(completed, tmp_path).unload()


@pytest.mark.parametrize(
    ("module", "count"),
    [(models.Nested(), 4), (models.Fields(), 2), (models.ListOfPairs(), 1), (models.Number(), 1)],
)
def test_a_signature_tells_how_many_results_there_are(module: torch.nn.Module, count: int) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        assert signature_of(torch.jit.script(module)).returned == count


def test_an_empty_list_is_one_of_strings_where_strings_are_configured(
    run_module: Run, output_of: OutputOf
) -> None:
    config = config_of(X, {"w__0": ("STRING", -1), "y__2": ("FP32", -1), "x__1": ("FP32", -1)})
    (response,) = run_module(models.WordsAndNothing(), config, ZERO)
    assert output_of(response, "w__0").tolist() == []
    assert [output_of(response, name).item() for name in ("x__1", "y__2")] == [0, 1]


@pytest.mark.parametrize(
    ("module", "outputs", "error", "text"),
    [
        (models.Nothing(), floats("y"), Internal, NEITHER),
        (models.Number(), floats("y"), Internal, NEITHER),
        (
            models.Numbers(),
            floats("y"),
            Internal,
            f"{FAILURE}output must be of type Tensor or List[str], received List[int]",
        ),
        (
            models.NumbersByKey(),
            floats("y"),
            Internal,
            f"{FAILURE}output 'y' must be of type Tensor or List[str], received int",
        ),
        (
            models.Mixed(),
            floats("y__0", "y__1"),
            Internal,
            f"{FAILURE}output at index 1 must be of type Tensor or List[str], received int",
        ),
        (
            models.Mixed(),
            floats("y__2"),
            Internal,
            f"{FAILURE}output at index 2 must be of type Tensor or List[str], received NoneType",
        ),
        (
            models.Mixed(),
            floats("y__3"),
            Internal,
            f"{FAILURE}output at index 3 must be of type Tensor or List[str], received List[int]",
        ),
        (
            models.Nested(),
            floats("OUTPUT__0", "OUTPUT__5"),
            InvalidArgument,
            "The output OUTPUT__5 in the model configuration refers to an output index which "
            "doesn't exist. This model has 5 outputs",
        ),
        (
            models.NestedKeys(),
            floats("a.0", "c"),
            InvalidArgument,
            "The output c in the model configuration refers to a key which doesn't exist. This "
            "model has outputs a.0, a.1.0, b.0, b.1.0, b.1.1",
        ),
        (
            models.Fields(),
            {"OUTPUT__0": ("INT32", 1)},
            InvalidArgument,
            "configuration expects datatype TYPE_INT32 for output 'OUTPUT__0', model provides "
            "TYPE_FP32",
        ),
        (
            models.Total(),
            floats("y"),
            InvalidArgument,
            "output 'y' is a scalar which is not supported.",
        ),
        (
            models.Sparse(),
            floats("y"),
            Internal,
            f"{FAILURE}output 'y' is not a dense tensor (torch.sparse_coo); return it with "
            ".to_dense()",
        ),
        (
            models.Packed(),
            floats("y"),
            Internal,
            f"{FAILURE}output 'y' is not a dense tensor (torch._mkldnn); return it with "
            ".to_dense()",
        ),
        (
            models.Quantized(),
            {"y": ("UINT8", 1)},
            Internal,
            f"{FAILURE}output 'y' is quantized (torch.quint8); return it with .dequantize()",
        ),
        (
            models.Complex(),
            floats("y"),
            Internal,
            f"{FAILURE}output 'y' is complex (torch.complex64); return it with torch.view_as_real",
        ),
        (
            models.Elsewhere(),
            floats("y"),
            Internal,
            f"{FAILURE}output 'y' is on the device 'meta', where tensors have no data",
        ),
    ],
)
def test_results_that_cannot_be_served_say_why(
    run_module: Run,
    module: torch.nn.Module,
    outputs: dict[str, tuple[Any, ...]],
    error: type[MicrokernelError],
    text: str,
) -> None:
    with pytest.raises(error) as caught:
        run_module(module, config_of(X, outputs), ZERO)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("module", "inputs", "data_type", "provided"),
    [
        (models.Shout(), {"words": np.array([b"a"], np.object_)}, "INT32", "TYPE_STRING"),
        (torch.nn.Identity(), {"x": np.zeros(1, np.int32)}, "STRING", "TYPE_INT32"),
    ],
)
def test_strings_are_not_taken_for_numbers_nor_numbers_for_strings(
    run_module: Run,
    module: torch.nn.Module,
    inputs: dict[str, Any],
    data_type: str,
    provided: str,
) -> None:
    given = {name: ("STRING" if name == "words" else "INT32", -1) for name in inputs}
    with pytest.raises(InvalidArgument) as caught:
        run_module(module, config_of(given, {"y": (data_type, -1)}), inputs)
    assert str(caught.value) == (
        f"configuration expects datatype TYPE_{data_type} for output 'y', model provides {provided}"
    )


def test_outputs_are_checked_whether_a_request_asks_for_them_or_not(
    tmp_path: Path, save_module: Save, serve_module: Serve, make_batch: MakeBatch
) -> None:
    config = config_of(X, floats("y__0", "y__9"))
    served = serve_module(config, save_module(models.Fields(), tmp_path))
    with pytest.raises(InvalidArgument, match="index which doesn't exist"):
        served.execute(make_batch([ZERO], ("y__0",), batching=False))


def test_shapes_are_not_held_against_the_configuration(
    run_module: Run, output_of: OutputOf
) -> None:
    (response,) = run_module(torch.nn.Identity(), config_of(X, {"y": ("FP32", 7, 7)}), ZERO)
    assert output_of(response, "y").shape == (1,)


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({}, "model configuration must contain at least one output, none were specified."),
        ({"y": ("INVALID", 1)}, "unsupported datatype TYPE_INVALID for output 'y' for model 'm'"),
        (
            {"y": ("STRING", 2, 2)},
            "Triton only supports 1 dimensional List of String as output for 'y' for model 'm'",
        ),
    ],
)
def test_outputs_that_cannot_be_fail_the_load(
    tmp_path: Path, save_module: Save, outputs: dict[str, tuple[Any, ...]], text: str
) -> None:
    with pytest.raises(Internal) as caught:
        PyTorchBackend().load(config_of(X, outputs), save_module(models.Fields(), tmp_path))
    assert str(caught.value) == text


def test_results_that_lie_oddly_in_memory_come_out_in_order(
    run_module: Run, output_of: OutputOf
) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    config = config_of({"x": ("FP32", -1, -1)}, floats("same", "again", "turned"))
    (response,) = run_module(models.Twice(), config, {"x": array})
    assert output_of(response, "same").tolist() == array.tolist()
    assert output_of(response, "again").tolist() == array.tolist()
    assert output_of(response, "turned").tolist() == array.T.tolist()


def test_a_sign_that_is_yet_to_be_turned_is_turned(run_module: Run, output_of: OutputOf) -> None:
    (response,) = run_module(
        models.Conjugate(), config_of(X, floats("y")), {"x": np.full(1, 2, np.float32)}
    )
    assert output_of(response, "y").tolist() == [-2]


def test_a_model_that_changes_its_mind_fails_only_where_it_does(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
) -> None:
    served = serve_module(config_of(X, floats("y")), save_module(models.Fickle(), tmp_path))
    batch = make_batch([ZERO], batching=False)
    (response,) = served.execute(batch)
    assert output_of(response, "y").tolist() == [0]
    with pytest.raises(InvalidArgument, match="model provides TYPE_INT32"):
        served.execute(batch)


def words_config(max_batch_size: int = 8) -> ModelConfig:
    config = config_of({"words": ("STRING", 1)}, {"out": ("STRING", 1)}, max_batch_size)
    (entry,), (out,) = config.input, config.output
    nothing = Reshape(())
    return replace(
        config, input=(replace(entry, reshape=nothing),), output=(replace(out, reshape=nothing),)
    )


def test_bytes_that_are_no_text_come_back_as_a_clear_error_of_their_batch(
    run_module: Run,
) -> None:
    requests = [{"words": np.array([word], np.object_)} for word in (b"a", "é".encode())]
    with pytest.raises(Internal) as caught:
        run_module(models.Surrogate(), words_config(), *requests)
    assert str(caught.value) == f"{FAILURE}the model returned a string that is not valid UTF-8"


@pytest.mark.parametrize(
    ("module", "writable", "expected"),
    [
        (models.InPlace(), True, 1),  # the worker's own memory may be written to
        (models.InPlace(), False, 0),
        (models.InPlaceWithin(), False, 0),
        (torch.nn.Identity(), False, 0),
    ],
)
def test_memory_of_others_is_not_written_to(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
    module: torch.nn.Module,
    writable: bool,
    expected: float,
) -> None:
    served = serve_module(config_of(X, floats("y")), save_module(module, tmp_path))
    batch = make_batch([ZERO], batching=False)
    tensor = batch.stacked["x"]
    memory = memoryview(tensor.data)
    tensor.data = memory if writable else memory.toreadonly()
    (response,) = served.execute(batch)
    (given,) = response.outputs
    shared = np.shares_memory(np.frombuffer(given.data, np.uint8), np.frombuffer(memory, np.uint8))
    works_in_place = not isinstance(module, torch.nn.Identity)
    assert output_of(response, "y").tolist() == [float(works_in_place)]
    assert np.frombuffer(memory, np.float32).tolist() == [expected]
    assert shared is (writable or not works_in_place)
