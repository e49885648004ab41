"""Exported programs, the `.pt2` files of `torch.export.save`: completing, checking, running."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from exported_programs import (
    BATCH,
    Nested,
    export,
    nested_example,
    nested_sizes,
    save,
    save_perceptron,
)
from torch_models import Counter, Keyed, Perceptron

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
from microkernel_torchscript.backend import PyTorchBackend

CONFIG = ModelConfig(name="m", backend="pytorch", platform="torch_aoti")
X = ModelInput("x", "TYPE_FP32", dims=(4,))
Y = ModelOutput("y", "TYPE_FP32", dims=(3,))

MakeBatch = Callable[..., Batch]
Serve = Callable[..., Any]


@pytest.fixture(scope="module")
def perceptron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_perceptron(tmp_path_factory.mktemp("perceptron") / "1")


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    args, kwargs = nested_example()
    program = export(Nested(), args, kwargs, nested_sizes())
    return save(program, tmp_path_factory.mktemp("nested") / "1")


def _expected(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        result: np.ndarray[Any, Any] = Perceptron()(torch.from_numpy(rows)).numpy()
    return result


@pytest.mark.parametrize("limit", [0, 32])
def test_a_program_tells_its_inputs_and_outputs(perceptron: Path, limit: int) -> None:
    found = PyTorchBackend().complete(replace(CONFIG, max_batch_size=limit), perceptron)
    batch = () if limit else (-1,)
    assert found.input == (ModelInput("x", "TYPE_FP32", dims=(*batch, 4)),)
    assert found.output == (ModelOutput("OUTPUT__0", "TYPE_FP32", dims=(*batch, 3)),)
    assert found.max_batch_size == limit


def test_that_rows_may_be_batched_is_suggested(
    perceptron: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "microkernel_torchscript"):
        PyTorchBackend().complete(CONFIG, perceptron)
    assert "varies, up to 32; if its rows do not depend" in caplog.text


def test_nested_arguments_and_results_have_names(nested: Path) -> None:
    found = PyTorchBackend().complete(replace(CONFIG, max_batch_size=8), nested)
    assert [(e.name, e.data_type, e.dims) for e in found.input] == [
        ("x", "TYPE_FP32", (4,)),
        ("ARGS[1][0]", "TYPE_FP32", (4,)),
        ("ARGS[1][1]", "TYPE_FP32", (4,)),
        ("ARGS[2][b]", "TYPE_FP32", (2,)),
        ("ARGS[2][a]", "TYPE_INT64", (1,)),
        ("scale", "TYPE_FP32", (1,)),
    ]
    assert [(e.name, e.data_type, e.dims) for e in found.output] == [
        ("total", "TYPE_FP32", (4,)),
        ("parts.0", "TYPE_FP32", (2,)),
        ("parts.1.0", "TYPE_INT64", (1,)),
    ]


def test_results_in_a_dictionary_are_called_as_those_of_torchscript(
    nested: Path, serve_module: Serve, make_batch: MakeBatch, output_of: Callable[..., Any]
) -> None:
    """By the keys that lead to them, in any order, and never by the order of the configuration."""
    listed = PyTorchBackend().complete(replace(CONFIG, max_batch_size=8), nested)
    first, second, third = listed.output
    config = replace(listed, output=(third, second, first))
    (args, kwargs), names = nested_example(), [entry.name for entry in listed.input]
    values = [args[0], *args[1], args[2]["b"], args[2]["a"], kwargs["scale"]]
    request = {n: v.numpy() for n, v in zip(names, values, strict=True)}
    (outcome,) = serve_module(config, nested).execute(make_batch([request]))
    assert output_of(outcome, "parts.1.0").tolist() == [[0]] * 2
    assert output_of(outcome, "parts.0").tolist() == [[2.0] * 2] * 2
    assert output_of(outcome, "total").tolist() == [[2.0] * 4] * 2
    wrong = replace(listed, output=(replace(first, name="sum"),))
    with pytest.raises(InvalidArgument, match=r"the output sum .* has 3 outputs: total, RESULT"):
        PyTorchBackend().load(wrong, nested)


NAMINGS = [
    ["x", "ARGS[1][0]", "ARGS[1][1]", "ARGS[2][b]", "ARGS[2][a]", "scale"],
    ["ARGS[0]", "INPUT__1", "pair_1", "keyed_b", "INPUT__4", "KWARGS[scale]"],
    [f"INPUT__{i}" for i in range(6)],
    [f"anything__{i}" for i in range(6)],
    ["one", "two", "three", "four", "five", "six"],
]


@pytest.mark.parametrize("names", NAMINGS)
@pytest.mark.parametrize("reversed_order", [False, True])
def test_every_naming_leads_to_the_same_arguments(
    nested: Path,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: Callable[..., Any],
    names: list[str],
    reversed_order: bool,
) -> None:
    args, kwargs = nested_example()
    values = [args[0], *args[1], args[2]["b"], args[2]["a"], kwargs["scale"]]
    listed = [
        ModelInput(n, "TYPE_INT64" if v.dtype == torch.int64 else "TYPE_FP32", dims=v.shape[1:])
        for n, v in zip(names, values, strict=True)
    ]
    if reversed_order and names[0] != "one":  # the only names that mean their order
        listed.reverse()
    config = replace(
        CONFIG,
        max_batch_size=4,
        input=tuple(listed),
        output=(
            ModelOutput("RESULT[parts][0]", "TYPE_FP32", dims=(2,)),
            ModelOutput("total", "TYPE_FP32", dims=(4,)),
        ),
    )
    request = {n: v.numpy() for n, v in zip(names, values, strict=True)}
    (outcome,) = serve_module(config, nested).execute(make_batch([request]))
    assert output_of(outcome, "total").tolist() == [[2.0] * 4] * 2
    assert output_of(outcome, "RESULT[parts][0]").tolist() == [[2.0] * 2] * 2


def test_requests_are_batched(
    perceptron: Path, serve_module: Serve, make_batch: MakeBatch, output_of: Callable[..., Any]
) -> None:
    rows = np.random.default_rng(0).standard_normal((6, 4), dtype=np.float32)
    config = replace(CONFIG, max_batch_size=8, input=(X,), output=(Y,))
    served = serve_module(config, perceptron)
    outcomes = served.execute(make_batch([{"x": part} for part in (rows[:1], rows[1:3], rows[3:])]))
    got = np.concatenate([output_of(outcome, "y") for outcome in outcomes])
    np.testing.assert_allclose(got, _expected(rows), rtol=1e-5)


def test_an_only_dictionary_is_fed_by_its_keys(
    tmp_path: Path, serve_module: Serve, make_batch: MakeBatch, output_of: Callable[..., Any]
) -> None:
    files = save(export(Keyed(), ({"b": torch.ones(2), "a": torch.zeros(2)},)), tmp_path)
    config = PyTorchBackend().complete(CONFIG, files)
    assert [entry.name for entry in config.input] == ["b", "a"]
    assert [entry.name for entry in config.output] == ["sum", "difference"]
    request = {"a": np.array([3, 4], np.float32), "b": np.array([1, 1], np.float32)}
    (outcome,) = serve_module(config, files).execute(make_batch([request], batching=False))
    assert output_of(outcome, "sum").tolist() == [4, 5]
    assert output_of(outcome, "difference").tolist() == [2, 3]


def test_numbers_and_constants_among_the_arguments(
    tmp_path: Path, serve_module: Serve, make_batch: MakeBatch, output_of: Callable[..., Any]
) -> None:
    class Scaled(torch.nn.Module):
        def forward(self, x: torch.Tensor, n: int, k: float, absent: None) -> torch.Tensor:
            return x * n + k

    sizes = {"x": None, "n": torch.export.Dim.DYNAMIC, "k": None, "absent": None}
    files = save(export(Scaled(), (torch.ones(2), 5, 0.5, None), sizes=sizes), tmp_path)
    config = PyTorchBackend().complete(CONFIG, files)
    assert [(e.name, e.data_type, e.dims) for e in config.input] == [
        ("x", "TYPE_FP32", (2,)),
        ("n", "TYPE_INT64", (1,)),
    ]
    request = {"x": np.array([1, 2], np.float32), "n": np.array([7], np.int64)}
    (outcome,) = serve_module(config, files).execute(make_batch([request], batching=False))
    assert output_of(outcome, "OUTPUT__0").tolist() == [7.5, 14.5]


def test_a_tensor_without_dimensions_is_sent_as_one_element(tmp_path: Path) -> None:
    class Power(torch.nn.Module):
        def forward(self, x: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
            return x**power

    files = save(export(Power(), (torch.ones(2), torch.tensor(2.0))), tmp_path)
    found = PyTorchBackend().complete(CONFIG, files)
    assert found.input[1] == ModelInput("power", "TYPE_FP32", dims=(1,), reshape=Reshape(()))
    PyTorchBackend().load(found, files)


def test_each_instance_counts_for_itself(
    tmp_path: Path, make_batch: MakeBatch, output_of: Callable[..., Any], host: Callable[..., Any]
) -> None:
    files = save(export(Counter(), (torch.zeros(1),)), tmp_path)
    backend = PyTorchBackend()
    model = backend.load(backend.complete(CONFIG, files), files)
    served = [host(model), host(model)]
    batch = make_batch([{"x": np.zeros(1, np.float32)}], batching=False)
    counts = [output_of(s.execute(batch)[0], "OUTPUT__0").item() for s in (*served, served[0])]
    assert counts == [1, 1, 2]


def test_it_is_compiled_where_the_model_asks_for_that(
    perceptron: Path, serve_module: Serve, make_batch: MakeBatch, output_of: Callable[..., Any]
) -> None:
    parameter = ModelParameter('{"backend": "eager"}')
    config = replace(
        CONFIG,
        max_batch_size=8,
        input=(X,),
        output=(Y,),
        parameters={"TORCH_COMPILE_OPTIONAL_PARAMETERS": parameter},
    )
    rows = np.ones((3, 4), np.float32)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    (outcome,) = serve_module(config, perceptron).execute(make_batch([{"x": rows}]))
    np.testing.assert_allclose(output_of(outcome, "y"), _expected(rows), rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


def _listed(*inputs: ModelInput, limit: int = 0, outputs: tuple[ModelOutput, ...] = ()) -> Any:
    default = (ModelOutput("y", "TYPE_FP32", dims=(3,) if limit else (-1, 3)),)
    return replace(CONFIG, max_batch_size=limit, input=inputs, output=outputs or default)


MISFITS = {
    "batch": (
        _listed(X, limit=64),
        InvalidArgument,
        "unable to load model 'm', max_batch_size is 64, but the program was exported for batches "
        "of 0 to 32 (input 'x'): set max_batch_size to 32, or",
    ),
    "type": (
        _listed(replace(X, data_type="TYPE_INT32"), limit=8),
        InvalidArgument,
        "configuration expects datatype TYPE_INT32 for input 'x', model provides TYPE_FP32",
    ),
    "output type": (
        _listed(X, limit=8, outputs=(replace(Y, data_type="TYPE_INT64"),)),
        InvalidArgument,
        "configuration expects datatype TYPE_INT64 for output 'y', model provides TYPE_FP32",
    ),
    "size": (
        _listed(replace(X, dims=(5,)), limit=8),
        InvalidArgument,
        "input 'x' has shape [-1, 5] in the configuration, model provides [0 to 32, 4]",
    ),
    "output size": (
        _listed(X, limit=8, outputs=(replace(Y, dims=(2,)),)),
        InvalidArgument,
        "output 'y' has shape [-1, 2] in the configuration, model provides [0 to 32, 3]",
    ),
    "rank": (
        _listed(replace(X, dims=(4,))),
        InvalidArgument,
        "input 'x' has shape [4] in the configuration, model provides [0 to 32, 4]",
    ),
    "count": (
        _listed(X, ModelInput("z", "TYPE_FP32", dims=(4,)), limit=8),
        Internal,
        'Failed to load model "m" configuration expects 2 inputs, but model expects 1 inputs.',
    ),
    "name": (
        _listed(replace(X, name="ARGS[1]"), limit=8),
        Internal,
        'Input "ARGS[1]" for model instance "m" is not found in model input map. It has x, ARGS[0]',
    ),
    "index": (
        _listed(replace(X, name="X__1"), limit=8),
        Internal,
        'Input "X__1" for model instance "m" is not found in model input map.',
    ),
    "output name": (
        _listed(X, limit=8, outputs=(replace(Y, name="OUTPUT__1"),)),
        InvalidArgument,
        "the output OUTPUT__1 in the model configuration refers to an output which doesn't exist. "
        "This model has 1 outputs: RESULT, OUTPUT__0",
    ),
    "strings": (
        _listed(replace(X, data_type="TYPE_STRING"), limit=8),
        Internal,
        'Unsupported datatype TYPE_STRING for input "x" for model instance "m".',
    ),
    "no outputs": (
        replace(CONFIG, max_batch_size=8, input=(X,)),
        Internal,
        "model configuration must contain at least one output, none were specified.",
    ),
}


@pytest.mark.parametrize(("config", "kind", "text"), MISFITS.values(), ids=list(MISFITS))
def test_a_configuration_that_does_not_fit_is_refused(
    perceptron: Path, config: ModelConfig, kind: type[MicrokernelError], text: str
) -> None:
    with pytest.raises(kind) as caught:
        PyTorchBackend().load(config, perceptron)
    assert text in str(caught.value)


@pytest.mark.parametrize("limit", [0, 4])
def test_a_program_for_one_size_of_batch_does_not_batch(tmp_path: Path, limit: int) -> None:
    files = save_perceptron(tmp_path, sizes=None)
    config = replace(CONFIG, max_batch_size=limit)
    if not limit:
        assert PyTorchBackend().complete(config, files).input[0].dims == (2, 4)
        return
    with pytest.raises(InvalidArgument, match="model does not support batching while non-zero"):
        PyTorchBackend().complete(config, files)
    with pytest.raises(InvalidArgument, match=r"exported for batches of 2 \(input 'x'\): set max"):
        PyTorchBackend().load(replace(config, input=(X,), output=(Y,)), files)


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x]) + y + z.sum()


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((2, 4, 3), ""),
        ((2, 5, 3), "input 'y' has shape [5], where another input asks for 4 in place of 5"),
        ((2, 4, 2), "input 'z' has shape [2], where another input asks for 3 in place of 2"),
    ],
)
def test_sizes_that_follow_from_each_other_are_compared(
    tmp_path: Path,
    serve_module: Serve,
    make_batch: MakeBatch,
    sizes: tuple[int, ...],
    text: str,
) -> None:
    example = tuple(torch.ones(n) for n in (3, 6, 4))
    varying = ({0: BATCH}, {0: 2 * BATCH}, {0: BATCH + 1})
    files = save(export(Doubled(), example, sizes=varying), tmp_path / "1")
    request = {n: np.ones(s, np.float32) for n, s in zip("xyz", sizes, strict=True)}
    served = serve_module(CONFIG, files)
    if not text:
        assert len(served.execute(make_batch([request], batching=False))) == 1
        return
    with pytest.raises(InvalidArgument) as caught:
        served.execute(make_batch([request], batching=False))
    assert str(caught.value) == text
    with pytest.raises(InvalidArgument, match="does not support batching"):
        PyTorchBackend().complete(replace(CONFIG, max_batch_size=4), files)


def test_a_batch_larger_than_exported_cannot_be_completed(perceptron: Path) -> None:
    with pytest.raises(InvalidArgument, match="max_batch_size is 33, but the program was exported"):
        PyTorchBackend().complete(replace(CONFIG, max_batch_size=33), perceptron)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((2, 5), "input 'x' has shape [2, 5], the model takes [0 to 32, 4]"),
        ((33, 4), "input 'x' has shape [33, 4], the model takes [0 to 32, 4]"),
        ((4,), "input 'x' has shape [4], the model takes [0 to 32, 4]"),
    ],
)
def test_a_call_that_does_not_fit_fails_before_the_program_sees_it(
    perceptron: Path, serve_module: Serve, make_batch: MakeBatch, shape: tuple[int, ...], text: str
) -> None:
    open_ended = replace(X, dims=(-1, -1))
    served = serve_module(_listed(open_ended), perceptron)
    with pytest.raises(InvalidArgument) as caught:
        served.execute(make_batch([{"x": np.zeros(shape, np.float32)}], batching=False))
    assert str(caught.value) == text


def test_sizes_that_belong_together_are_compared(
    tmp_path: Path, serve_module: Serve, make_batch: MakeBatch
) -> None:
    class Difference(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a - b

    example = (torch.ones(3), torch.ones(3))
    files = save(export(Difference(), example, sizes=({0: BATCH}, {0: BATCH})), tmp_path)
    served = serve_module(CONFIG, files)
    request = {"a": np.ones(3, np.float32), "b": np.ones(5, np.float32)}
    with pytest.raises(InvalidArgument, match=r"input 'b' has shape \[5\], where another input"):
        served.execute(make_batch([request], batching=False))
