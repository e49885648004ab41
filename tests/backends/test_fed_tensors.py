"""What TorchScript and ONNX models are fed besides their inputs: controls and states of sequences,
and tensors that say what a batch is made of."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microkernel import (
    BackendType,
    Batch,
    InferRequest,
    Internal,
    InvalidArgument,
    MicrokernelError,
    Model,
    ModelConfig,
    Placement,
    Tensor,
)
from microkernel.config.parse import parse_text
from microkernel.models.checking import RequestChecker
from microkernel.plugins import discover
from microkernel.testing import check_backend
from microkernel.workers import descriptors
from microkernel.workers.descriptors import Schema

pytest.importorskip("torch", reason="needs the extra 'torchscript'")
pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
pytest.importorskip("onnx", reason="needs the package 'onnx' to make models")

import onnx
import torch

from microkernel_onnx import Settings
from microkernel_onnx.backend import OnnxBackend
from microkernel_torchscript.backend import PyTorchBackend

MakeBatch = Callable[..., Batch]
OutputOf = Callable[..., Any]
Save = Callable[..., Path]
CPU = Placement("m_0", "KIND_CPU")
FLOAT, INT64, INT32 = 1, 7, 6  # as ONNX numbers them


class Counter(torch.nn.Module):
    """Adds its input to a state, which START sets to zero."""

    def forward(self, x: torch.Tensor, start: torch.Tensor, state: torch.Tensor) -> Any:
        total = x + state * (1 - start)
        return total * 10, total


SEQUENCE = """
sequence_batching {{
  control_input {{
    name: "{start}" control {{ kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] }}
  }}
  state {{ input_name: "{state}" output_name: "{result}" data_type: TYPE_FP32 dims: [ 2 ] }}
}}
"""
LISTED = """
name: "m" max_batch_size: 4
input {{ name: "{x}" data_type: TYPE_FP32 dims: [ 2 ] }}
output {{ name: "{y}" data_type: TYPE_FP32 dims: [ 2 ] }}
"""
TRACED = (torch.zeros(1, 2), torch.zeros(1, 1), torch.zeros(1, 2))


def floats(rows: list[list[float]]) -> Any:
    return np.array(rows, np.float32)


def config_of(text: str, **names: str) -> ModelConfig:
    return parse_text(text.format(**names), "m")


@pytest.mark.parametrize(
    "names",
    [
        {"x": "X__0", "y": "Y__0", "start": "S__1", "state": "I__2", "result": "O__1"},
        {"x": "x", "y": "Y__0", "start": "start", "state": "state", "result": "O__1"},
        {"x": "x", "y": "Y__0", "start": "S__1", "state": "I__2", "result": "O__1"},
    ],
)
def test_a_torchscript_model_gets_controls_and_states_and_gives_states(
    names: Mapping[str, str],
    tmp_path: Path,
    save_module: Save,
    serve_module: Callable[..., Any],
    make_batch: MakeBatch,
    output_of: OutputOf,
) -> None:
    config = config_of(LISTED + SEQUENCE, **names)
    served = serve_module(config, save_module(Counter(), tmp_path, *TRACED))
    outcomes = served.execute(
        make_batch(
            [
                {names["x"]: x, names["start"]: start, names["state"]: state}
                for x, start, state in (
                    (floats([[1, 2]]), floats([[0]]), floats([[5, 6]])),
                    (floats([[3, 4]]), floats([[1]]), floats([[9, 9]])),
                )
            ]
        )
    )
    assert output_of(outcomes[0], names["y"]).tolist() == [[60, 80]]
    assert output_of(outcomes[0], names["result"]).tolist() == [[6, 8]]
    assert output_of(outcomes[1], names["result"]).tolist() == [[3, 4]]


RIGHT = {"x": "X__0", "y": "Y__0", "start": "S__1", "state": "I__2", "result": "O__1"}
STATE = "PyTorch model 'm' is using sequence batching with state but "


@pytest.mark.parametrize(
    ("names", "error", "text"),
    [
        (
            {"start": "GO"},
            Internal,
            "input 'GO' does not follow <name>__<index> naming convention.",
        ),
        (
            {"x": "IN"},
            InvalidArgument,
            f"{STATE}not all inputs and outputs follow the <name>__<index> naming convention. ",
        ),
        (
            {"y": "OUT"},
            InvalidArgument,
            f"{STATE}not all inputs and outputs follow the <name>__<index> naming convention. ",
        ),
        (
            {"state": "I"},
            InvalidArgument,
            f"{STATE}state 'I' does not follow the <name>__<index> naming convention. ",
        ),
        (
            {"result": "O"},
            InvalidArgument,
            f"{STATE}state 'O' does not follow the <name>__<index> naming convention. ",
        ),
    ],
)
def test_tensors_of_sequences_whose_place_cannot_be_told_fail_the_load(
    names: dict[str, str],
    error: type[MicrokernelError],
    text: str,
    tmp_path: Path,
    save_module: Save,
) -> None:
    files = save_module(Counter(), tmp_path, *TRACED)
    with pytest.raises(error) as caught:
        PyTorchBackend().load(config_of(LISTED + SEQUENCE, **{**RIGHT, **names}), files)
    assert str(caught.value) == text


@pytest.mark.parametrize("listed", ["nothing", "inputs"])
def test_completion_lists_neither_controls_nor_states(
    listed: str, tmp_path: Path, save_module: Save
) -> None:
    config = config_of(LISTED + SEQUENCE, **{**RIGHT, "x": "x"})
    given = replace(config, output=(), input=config.input if listed == "inputs" else ())
    files = save_module(Counter(), tmp_path, *TRACED)
    completed = PyTorchBackend().complete(given, files)
    assert [(i.name, i.data_type) for i in completed.input] == [("x", "TYPE_FP32")]
    assert [(o.name, o.data_type) for o in completed.output] == [("OUTPUT__0", "TYPE_FP32")]


def write_onnx(files: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> Path:
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, files / "model.onnx")
    return files


def port(name: str, kind: int, *dims: int | str) -> Any:
    return onnx.helper.make_tensor_value_info(name, kind, dims)


def onnx_counter(files: Path) -> Path:
    node = onnx.helper.make_node
    nodes = [
        node("Mul", ["state", "start"], ["lost"]),
        node("Sub", ["state", "lost"], ["kept"]),
        node("Add", ["x", "kept"], ["total"]),
        node("Add", ["total", "total"], ["y"]),
    ]
    inputs = [port("x", FLOAT, "N", 2), port("start", FLOAT, "N", 1), port("state", FLOAT, "N", 2)]
    return write_onnx(
        files, nodes, inputs, [port("y", FLOAT, "N", 2), port("total", FLOAT, "N", 2)]
    )


ONNX_NAMES = {"x": "x", "y": "y", "start": "start", "state": "state", "result": "total"}


def test_an_onnx_model_gets_controls_and_states_and_gives_states(
    tmp_path: Path, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    files = onnx_counter(tmp_path)
    config = config_of(LISTED + SEQUENCE, **ONNX_NAMES)
    instance = OnnxBackend(Settings()).load(config, files).instance(CPU)
    rows = [
        {"x": floats([[1, 2]]), "start": floats([[0]]), "state": floats([[5, 6]])},
        {"x": floats([[3, 4]]), "start": floats([[1]]), "state": floats([[9, 9]])},
    ]
    first, second = instance.execute(make_batch(rows))
    assert output_of(first, "y").tolist() == [[12, 16]]
    assert output_of(first, "total").tolist() == [[6, 8]]
    assert output_of(second, "total").tolist() == [[3, 4]]


def test_completion_of_an_onnx_model_lists_neither_controls_nor_states(tmp_path: Path) -> None:
    config = config_of(LISTED + SEQUENCE, **ONNX_NAMES)
    bare = replace(config, input=(), output=())
    completed = OnnxBackend(Settings()).complete(bare, onnx_counter(tmp_path))
    assert (completed.input, completed.output) == (config.input, config.output)


@pytest.mark.parametrize(
    ("control", "error", "text"),
    [
        ("int32_false_true", InvalidArgument, "configuration expects datatype TYPE_INT32 for"),
        ("bool_false_true", InvalidArgument, "configuration expects datatype TYPE_BOOL for"),
    ],
)
def test_controls_of_another_type_than_the_graphs_fail_the_load(
    control: str, error: type[MicrokernelError], text: str, tmp_path: Path
) -> None:
    batching = SEQUENCE.replace("fp32_false_true", control)
    config = config_of(LISTED + batching, **ONNX_NAMES)
    with pytest.raises(error, match=text):
        OnnxBackend(Settings()).load(config, onnx_counter(tmp_path))


def kind_of(name: str) -> BackendType:
    """A backend as its plug-in announces it."""
    return next(b for plugin in discover().all for b in plugin.backends if b.name == name)


# Ragged batches: the sums of the rows of unequal lengths, and each element doubled

RAGGED = """
name: "m" max_batch_size: 8
input {{ name: "{x}" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }}
output {{ name: "{sums}" data_type: TYPE_FP32 dims: [ 1 ] }}
output {{ name: "{twice}" data_type: TYPE_FP32 dims: [ -1 ] }}
batch_input {{
  kind: BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO target_name: "{ends}" data_type: TYPE_INT32
  source_input: "{x}"
}}
batch_output {{ target_name: "{twice}" source_input: "{x}" }}
"""


class Sums(torch.nn.Module):
    def forward(self, x: torch.Tensor, ends: torch.Tensor) -> Any:
        running = torch.nn.functional.pad(torch.cumsum(x, 0), (1, 0))
        at = running[ends.to(torch.int64)]
        return (at[1:] - at[:-1]).unsqueeze(1), x * 2


def onnx_sums(files: Path) -> Path:
    node, constant = onnx.helper.make_node, onnx.numpy_helper.from_array
    graph = onnx.helper.make_graph(
        [
            node("CumSum", ["x", "axis"], ["tail"]),
            node("Concat", ["zero", "tail"], ["running"], axis=0),
            node("Gather", ["running", "ends"], ["at"]),
            node("Slice", ["at", "one", "most"], ["upper"]),
            node("Slice", ["at", "nought", "last"], ["lower"]),
            node("Sub", ["upper", "lower"], ["flat"]),
            node("Unsqueeze", ["flat", "one"], ["sums"]),
            node("Add", ["x", "x"], ["twice"]),
        ],
        "sums",
        [port("x", FLOAT, "T"), port("ends", INT32, "E")],
        [port("sums", FLOAT, "R", 1), port("twice", FLOAT, "T")],
        initializer=[
            constant(np.array(0, np.int32), "axis"),
            constant(np.zeros(1, np.float32), "zero"),
            constant(np.array([1]), "one"),
            constant(np.array([0]), "nought"),
            constant(np.array([2**31 - 1]), "most"),
            constant(np.array([-1]), "last"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, files / "model.onnx")
    return files


TORCH_NAMES = {"x": "X__0", "ends": "E__1", "sums": "S__0", "twice": "T__1"}
SUMS_NAMES = {"x": "x", "ends": "ends", "sums": "sums", "twice": "twice"}


def ragged_batch(config: ModelConfig, rows: list[list[float]]) -> Batch:
    """The requests as the kernel lays them out."""
    checker, name = RequestChecker(config), config.input[0].name
    requests = [
        InferRequest("m", (Tensor.from_numpy(name, np.array([row], np.float32)),), id=str(i))
        for i, row in enumerate(rows)
    ]
    checked = [checker.check(request) for request in requests]
    assert len({each.key for each in checked}) == 1
    plan = descriptors.plan([each.request for each in checked], Schema.of(config))
    block = memoryview(bytearray(plan.total))
    descriptors.gather(plan, block)
    return descriptors.lay_out(plan, [1] * len(rows), Schema.of(config), block)


@pytest.mark.parametrize("rows", [[[1, 2, 3], [4], [], [5, 6]], [[1, 2]], [[]]])
@pytest.mark.parametrize("backend", ["pytorch", "onnxruntime"])
def test_requests_of_different_lengths_share_a_batch(
    backend: str,
    rows: list[list[float]],
    tmp_path: Path,
    save_module: Save,
    host: Callable[..., Any],
    output_of: OutputOf,
) -> None:
    if backend == "pytorch":
        names, files = TORCH_NAMES, save_module(Sums(), tmp_path)
        config = config_of(RAGGED, **names)
        model: Model = PyTorchBackend().load(config, files)
    else:
        names, files = SUMS_NAMES, onnx_sums(tmp_path)
        config = config_of(RAGGED, **names)
        model = OnnxBackend(Settings()).load(config, files)
    outcomes = host(model).execute(ragged_batch(config, rows))
    for row, outcome in zip(rows, outcomes, strict=True):
        assert output_of(outcome, names["sums"]).tolist() == [[sum(row)]]
        assert output_of(outcome, names["twice"]).shape == (1, len(row))
        assert output_of(outcome, names["twice"]).tolist() == [[2 * x for x in row]]


def test_the_type_of_a_batch_input_is_held_against_the_graph(tmp_path: Path) -> None:
    text = RAGGED.replace("data_type: TYPE_INT32\n", "data_type: TYPE_FP32\n")
    with pytest.raises(InvalidArgument, match="expects datatype TYPE_FP32 for input 'ends'"):
        OnnxBackend(Settings()).load(config_of(text, **SUMS_NAMES), onnx_sums(tmp_path))


def test_a_ragged_model_is_not_made_up(
    tmp_path: Path, save_module: Save, caplog: pytest.LogCaptureFixture
) -> None:
    """A trial run would have to know what a batch of it looks like."""
    config = replace(config_of(RAGGED, **TORCH_NAMES), output=(), batch_output=())
    caplog.set_level(logging.INFO)
    with pytest.raises(InvalidArgument, match="because a ragged batch cannot be made up"):
        PyTorchBackend().complete(config, save_module(Sums(), tmp_path))


@pytest.mark.parametrize("backend", ["pytorch", "onnxruntime"])
def test_a_ragged_model_keeps_the_contract_of_backends(
    backend: str, tmp_path: Path, save_module: Save
) -> None:
    names = TORCH_NAMES if backend == "pytorch" else SUMS_NAMES
    files = save_module(Sums(), tmp_path) if backend == "pytorch" else onnx_sums(tmp_path)
    kind = kind_of(backend)
    requests = [
        InferRequest("m", (Tensor.from_numpy(names["x"], floats([row])),), version=1, id=str(i))
        for i, row in enumerate([[1.0, 2.0, 3.0], [4.0], [], [5.0, 6.0]])
    ]
    check_backend(kind, config_of(RAGGED, **names), files, requests)


def test_a_padded_model_keeps_the_contract_of_backends(tmp_path: Path, save_module: Save) -> None:
    class Shifted(torch.nn.Module):
        """Adds to each real element the sum of all of them."""

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:
            return x * mask + (x * mask).sum(1, keepdim=True)

    text = """
    name: "m" max_batch_size: 8 dynamic_batching { }
    input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }
    input { name: "mask" data_type: TYPE_FP32 dims: [ -1 ] }
    output { name: "y__0" data_type: TYPE_FP32 dims: [ -1 ] }
    parameters { key: "PAD_TO_LONGEST" value { string_value: "x" } }
    parameters { key: "PAD_VALUE" value { string_value: "7" } }
    parameters { key: "PAD_MASK" value { string_value: "mask" } }
    parameters { key: "PAD_CUT" value { string_value: "y__0" } }
    """
    files = save_module(Shifted(), tmp_path, torch.zeros(1, 2), torch.zeros(1, 2))
    kind = kind_of("pytorch")
    requests = [
        InferRequest("m", (Tensor.from_numpy("x", floats([row])),), version=1, id=str(i))
        for i, row in enumerate([[1.0, 2.0, 3.0], [4.0], [5.0, 6.0]])
    ]
    check_backend(kind, parse_text(text, "m"), files, requests)
