"""What Triton's users know of the inputs of a TorchScript model, and what goes beyond it."""

import logging
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
    BY_CONFIG_NAME,
    Batch,
    InferRequest,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    Reshape,
    Tensor,
    parse_text,
)
from microkernel_torchscript.backend import PyTorchBackend

MakeBatch = Callable[..., Batch]
OutputOf = Callable[..., Any]
Run = Callable[..., Any]
Save = Callable[..., Path]
Serve = Callable[..., Any]

Y = {"y": ("FP32", -1)}
ONE, TWO, THREE = (np.full(1, n, np.float32) for n in (1, 2, 3))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a", "b", 1),  # the names of arguments
        ("b", "a", -1),
        ("INPUT__0", "INPUT__1", 1),  # indices
        ("INPUT__1", "INPUT__0", -1),
        ("a", "INPUT__0", 1),  # mixtures of the two: the order of the configuration
        ("INPUT__1", "a", 1),
        ("b", "x", 1),
        ("left", "right", 1),  # neither
        ("INPUT1", "INPUT__0", 1),
        ("a__b__1", "a__b__0", 1),  # not indices: the first `__` counts
    ],
)
def test_one_convention_of_names_holds_for_all_inputs(
    run_module: Run, output_of: OutputOf, first: str, second: str, expected: float
) -> None:
    config = config_of({first: ("FP32", 1), second: ("FP32", 1)}, Y)
    (response,) = run_module(models.Difference(), config, {first: THREE, second: TWO})
    assert output_of(response, "y").tolist() == [expected]


def test_a_dictionary_takes_any_names_and_any_number_of_them(
    run_module: Run, output_of: OutputOf
) -> None:
    config = config_of(dict.fromkeys(("b", "a", "more__7"), ("FP32", 1)), {"sum": ("FP32", 1)})
    (response,) = run_module(models.Keyed(), config, {"b": ONE, "a": TWO, "more__7": THREE})
    assert output_of(response, "sum").tolist() == [3]


@pytest.mark.parametrize(
    ("module", "inputs", "error", "text"),
    [
        (
            models.LateDictionary(),
            "xd",
            Internal,
            "Multiple inputs of kind DictType were detected. Only a single input of type "
            "Dict(str, Tensor) is supported.",
        ),
        (
            models.EarlyDictionary(),
            "dx",
            Internal,
            "An input of type 'Dict(str, Tensor)' was detected in the model. Only a single input "
            "of type Dict(str, Tensor) or input(s) of type Tensor are supported.",
        ),
        (
            models.Grouped(),
            "x",
            Internal,
            "An input of type '(Tensor, Tensor)' was detected in the model. Only a single input "
            "of type Dict(str, Tensor) or input(s) of type Tensor are supported.",
        ),
        (
            models.Difference(),
            "a",
            InvalidArgument,
            "unable to load model 'm', configuration expects 1 inputs, model provides 2",
        ),
        (
            models.Difference(),
            "abc",
            InvalidArgument,
            "unable to load model 'm', configuration expects 3 inputs, model provides 2",
        ),
        (
            models.Difference(),
            "",
            InvalidArgument,
            "unable to load model 'm', configuration expects 0 inputs, model provides 2",
        ),
        (
            models.Keyed(),
            "",
            Internal,
            "model configuration must contain at least one input, none were specified.",
        ),
    ],
)
def test_signatures_that_do_not_fit_fail_the_load(
    tmp_path: Path,
    save_module: Save,
    module: torch.nn.Module,
    inputs: str,
    error: type[MicrokernelError],
    text: str,
) -> None:
    config = config_of(dict.fromkeys(inputs, ("FP32", 1)), Y)
    with pytest.raises(error) as caught:
        PyTorchBackend().load(config, save_module(module, tmp_path))
    assert str(caught.value) == text


def test_a_list_of_tensors_loads_and_fails_when_it_is_run(run_module: Run) -> None:
    with pytest.raises(Internal, match=r"^PyTorch execute failure: .*List\[Tensor\].*'xs'"):
        run_module(models.TensorList(), config_of({"xs": ("FP32", 1)}, Y), {"xs": ONE})


def test_a_name_with_an_underscore_pair_and_no_number_is_warned_about(
    run_module: Run, output_of: OutputOf, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of({"q__x": ("FP32", 1), "p": ("FP32", 1)}, Y)
    with caplog.at_level(logging.WARNING):
        (response,) = run_module(models.Difference(), config, {"q__x": THREE, "p": ONE})
    assert output_of(response, "y").tolist() == [2]
    assert ["'q__x'" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("names", "expected"), [(("x",), 2), (("x", "mask"), 6), (("mask", "x", "n"), 11)]
)
def test_optional_arguments_may_be_left_out_of_the_configuration(
    run_module: Run, output_of: OutputOf, names: tuple[str, ...], expected: float
) -> None:
    values = {"x": TWO, "mask": THREE, "n": np.array([5])}
    types: dict[str, tuple[Any, ...]] = {"x": ("FP32", 1), "mask": ("FP32", 1), "n": ("INT64", 1)}
    config = config_of({name: types[name] for name in names}, Y)
    (response,) = run_module(models.Masked(), config, {name: values[name] for name in names})
    assert output_of(response, "y").tolist() == [expected]


@pytest.mark.parametrize("module", [models.Masked(), models.MaskedFirst()])
def test_a_request_may_leave_out_an_optional_input(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
    module: torch.nn.Module,
) -> None:
    config = config_of({"x": ("FP32", 1), "mask": ("FP32", 1)}, {"y": ("FP32", 1)}, 4)
    inputs = tuple(replace(entry, optional=entry.name == "mask") for entry in config.input)
    served = serve_module(replace(config, input=inputs), save_module(module, tmp_path))
    row = TWO.reshape(1, 1)
    (bare,) = served.execute(make_batch([{"x": row}]))
    first, second = served.execute(make_batch([{"x": row, "mask": row}, {"x": row, "mask": -row}]))
    assert output_of(bare, "y").tolist() == [[2]]
    assert [output_of(o, "y").tolist() for o in (first, second)] == [[[4]], [[-4]]]


def test_an_optional_input_that_the_model_needs_is_asked_for(
    tmp_path: Path, save_module: Save, serve_module: Serve, make_batch: MakeBatch
) -> None:
    config = config_of({"a": ("FP32", 1), "b": ("FP32", 1)}, Y)
    inputs = tuple(replace(entry, optional=True) for entry in config.input)
    served = serve_module(replace(config, input=inputs), save_module(models.Difference(), tmp_path))
    with pytest.raises(InvalidArgument) as caught:
        served.execute(make_batch([{"a": ONE}], batching=False))
    assert str(caught.value) == (
        "input 'b' must be given: the configuration calls it optional, but argument 1 of the model "
        "has no default"
    )


UNSIGNED = [("UINT16", np.uint16), ("UINT32", np.uint32), ("UINT64", np.uint64)]


@pytest.mark.parametrize(("name", "dtype"), UNSIGNED)
@pytest.mark.parametrize("rows", [2, 0])
def test_the_larger_unsigned_types_pass_unchanged(
    run_module: Run, output_of: OutputOf, name: str, dtype: type[np.unsignedinteger[Any]], rows: int
) -> None:
    array = np.array([[0, np.iinfo(dtype).max], [1, 2]], dtype)[:rows]
    config = config_of({"x": (name, -1, 2)}, {"y": (name, -1, 2)})
    (response,) = run_module(torch.nn.Identity(), config, {"x": array})
    assert output_of(response, "y").dtype == dtype
    assert output_of(response, "y").tolist() == array.tolist()


@pytest.mark.parametrize(("data", "shape"), [(b"\x80\x3f\x00\xc0\xc0\x7f", (3, 1)), (b"", (0, 2))])
def test_bfloat16_passes_unchanged(
    tmp_path: Path, save_module: Save, serve_module: Serve, data: bytes, shape: tuple[int, int]
) -> None:
    config = config_of({"x": ("BF16", -1, -1)}, {"y": ("BF16", -1, -1)})
    served = serve_module(config, save_module(models.Flipped(), tmp_path))
    tensor = Tensor("x", BY_CONFIG_NAME["TYPE_BF16"], shape, memoryview(bytearray(data)))
    (response,) = served.execute(Batch([InferRequest("m", (tensor,))], {"x": tensor}, [1]))
    (output,) = response.outputs
    assert (output.datatype.name, output.shape) == ("BF16", shape[::-1])
    assert bytes(output.data) == data


def test_an_unsigned_correlation_id_is_fed(tmp_path: Path, save_module: Save) -> None:
    text = """
    input { name: "X__0" data_type: TYPE_FP32 dims: [ 1 ] }
    output { name: "Y__0" data_type: TYPE_FP32 dims: [ 1 ] }
    sequence_batching { control_input {
      name: "CORRID__1"
      control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }
    } }
    """
    model = PyTorchBackend().load(parse_text(text, "m"), save_module(models.Difference(), tmp_path))
    model.unload()


@pytest.mark.parametrize(
    ("type_name", "value", "expected"),
    [("UINT8", 7, 7), ("UINT16", 7, 7), ("UINT64", 7, 7), ("INT8", -7, -7)],
)
def test_an_integer_argument_is_fed_from_every_integer_type(
    run_module: Run, output_of: OutputOf, type_name: str, value: int, expected: int
) -> None:
    config = config_of({"x": ("FP32", 1), "n": (type_name, 1)}, Y)
    number = np.array([value], BY_CONFIG_NAME[f"TYPE_{type_name}"].numpy)
    (response,) = run_module(models.Masked(), config, {"x": ONE, "n": number})
    assert output_of(response, "y").tolist() == [expected + 1]


def test_an_input_without_elements_reaches_the_model_in_its_shape(
    run_module: Run, output_of: OutputOf
) -> None:
    config = config_of({"x": ("FP32", -1, 3)}, {"y": ("FP32", 3, -1)})
    (response,) = run_module(models.Flipped(), config, {"x": np.zeros((0, 3), np.float32)})
    assert output_of(response, "y").shape == (3, 0)


def test_an_empty_list_of_strings_reaches_the_model(run_module: Run, output_of: OutputOf) -> None:
    config = config_of({"words": ("STRING", -1)}, {"out": ("STRING", -1)})
    (response,) = run_module(models.Shout(), config, {"words": np.empty(0, np.object_)})
    assert output_of(response, "out").tolist() == []


@pytest.mark.parametrize(
    ("dims", "reshape", "max_batch_size", "good"),
    [
        ((-1,), None, 0, True),
        ((2, 2), None, 0, False),
        ((2, 2), Reshape((4,)), 0, True),
        ((1,), None, 4, False),
        ((1,), Reshape(()), 4, True),
    ],
)
def test_strings_have_one_dimension(
    tmp_path: Path,
    save_module: Save,
    dims: tuple[int, ...],
    reshape: Reshape | None,
    max_batch_size: int,
    good: bool,
) -> None:
    config = config_of({"words": ("STRING", *dims)}, {"out": ("STRING", -1)}, max_batch_size)
    (entry,), (out,) = config.input, config.output
    given = replace(
        config,
        input=(replace(entry, reshape=reshape),),
        output=(replace(out, reshape=Reshape(()) if max_batch_size else None),),
    )
    files = save_module(models.Shout(), tmp_path)
    if good:
        PyTorchBackend().load(given, files).unload()
        return
    with pytest.raises(Internal) as caught:
        PyTorchBackend().load(given, files)
    assert str(caught.value) == (
        "Triton only supports 1 dimensional List of String as input for 'words' for model 'm'"
    )


def reshaped(config: ModelConfig, *names: str) -> ModelConfig:
    """The tensors of those names as lists of strings of a batching model."""
    return replace(
        config,
        input=tuple(
            replace(e, reshape=Reshape(())) if e.name in names else e for e in config.input
        ),
        output=tuple(
            replace(e, reshape=Reshape(())) if e.name in names else e for e in config.output
        ),
    )


def test_strings_beside_tensors_are_right_for_each_request(
    run_module: Run, output_of: OutputOf
) -> None:
    config = reshaped(
        config_of(
            {"words": ("STRING", 1), "x": ("FP32", 1)}, {"w": ("STRING", 1), "y": ("FP32", 1)}, 8
        ),
        *("words", "w"),
    )
    requests = [
        {"words": np.array([b"a", b"b"], np.object_), "x": np.array([[1], [2]], np.float32)},
        {"words": np.array([b"c"], np.object_), "x": np.array([[3]], np.float32)},
        {"words": np.array([b"", b"d"], np.object_), "x": np.array([[4], [5]], np.float32)},
    ]
    outcomes = run_module(models.Counted(), config, *requests)
    assert [output_of(o, "w").tolist() for o in outcomes] == [
        [b"a1", b"b2"],
        [b"c3"],
        [b"4", b"d5"],
    ]
    assert [output_of(o, "y").ravel().tolist() for o in outcomes] == [[2, 3], [4], [5, 6]]
