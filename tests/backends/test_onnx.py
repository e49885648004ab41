"""The ONNX backend on real models: made here, and one that people use."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
pytest.importorskip("onnx", reason="needs the package 'onnx' to make models")

import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from packaged import packaged

from microkernel import (
    Batch,
    InferResponse,
    Instance,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Placement,
    Unavailable,
    Unsupported,
    config_from_json,
)
from microkernel_onnx import Settings
from microkernel_onnx.backend import OnnxBackend

MakeBatch = Callable[..., Batch]
OutputOf = Callable[..., Any]
CPU = Placement("m_0", "KIND_CPU")


def tensor(name: str, kind: int, *dims: int | str | None) -> Any:
    return helper.make_tensor_value_info(name, kind, dims)


def write(
    path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], **rest: Any
) -> Path:
    """A model at `path`; the version directory comes back."""
    made = helper.make_graph(nodes, "g", inputs, outputs, **rest)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path.parent


def linear(files: Path) -> Path:
    """y = x @ w + b for x of [-1, 4], with b an initializer that a request may override."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((4, 3), dtype=np.float32)
    return write(
        files / "model.onnx",
        [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("Add", ["p", "b"], ["y"]),
        ],
        [tensor("x", TensorProto.FLOAT, "N", 4), tensor("b", TensorProto.FLOAT, 3)],
        [tensor("y", TensorProto.FLOAT, "N", 3)],
        initializer=[
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.ones(3, np.float32), "b"),
        ],
    )


def identity(files: Path, kind: int, *dims: int | str | None) -> Path:
    node = helper.make_node("Identity", ["x"], ["y"])
    return write(
        files / "model.onnx", [node], [tensor("x", kind, *dims)], [tensor("y", kind, *dims)]
    )


def serve(files: Path, config: ModelConfig | None = None) -> tuple[ModelConfig, Instance]:
    backend = OnnxBackend(Settings())
    config = backend.complete(config or ModelConfig(name="m"), files)
    return config, backend.load(config, files).instance(CPU)


def test_a_model_without_configuration_is_completed_and_served(
    tmp_path: Path, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    files = linear(tmp_path)
    config, instance = serve(files)
    assert config.max_batch_size == 4
    assert config.dynamic_batching is not None
    assert config.input == (ModelInput("x", "TYPE_FP32", dims=(4,)),)
    rows = np.random.default_rng(1).standard_normal((3, 4), dtype=np.float32)
    outcomes = instance.execute(make_batch([{"x": rows[:1]}, {"x": rows[1:]}]))
    session = onnxruntime.InferenceSession(files / "model.onnx", providers=["CPUExecutionProvider"])
    (whole,) = session.run(None, {"x": rows})
    assert output_of(outcomes[0], "y").tobytes() == whole[:1].tobytes()
    assert output_of(outcomes[1], "y").tobytes() == whole[1:].tobytes()


def test_the_default_batch_size_is_a_setting(tmp_path: Path) -> None:
    backend = OnnxBackend(Settings(default_max_batch_size=16))
    assert backend.complete(ModelConfig(name="m"), linear(tmp_path)).max_batch_size == 16


def test_instances_share_one_session(
    tmp_path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, made = linear(tmp_path), []
    real = onnxruntime.InferenceSession

    def counted(*arguments: Any, **rest: Any) -> Any:
        made.append(arguments[0])
        return real(*arguments, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    config = ModelConfig(
        name="m",
        input=(ModelInput("x", "TYPE_FP32", dims=(-1, 4)),),
        output=(ModelOutput("y", "TYPE_FP32", dims=(-1, 3)),),
    )
    model = OnnxBackend().load(config, files)
    rows = np.ones((1, 4), np.float32)
    answers = [
        model.instance(Placement(f"m_{i}", "KIND_CPU")).execute(
            make_batch([{"x": rows}], batching=False)
        )
        for i in range(2)
    ]
    assert len(made) == 1
    assert answers[0] == answers[1]


def test_a_configuration_may_list_some_of_the_outputs(
    tmp_path: Path, make_batch: MakeBatch
) -> None:
    nodes = [helper.make_node("Identity", ["x"], [name]) for name in ("a", "b", "c")]
    kinds = [tensor(name, TensorProto.FLOAT, "N") for name in ("x", "a", "b", "c")]
    files = write(tmp_path / "model.onnx", nodes, kinds[:1], kinds[1:])
    listed = tuple(ModelOutput(name, "TYPE_FP32", dims=(-1,)) for name in ("c", "a"))
    source = (ModelInput("x", "TYPE_FP32", dims=(-1,)),)
    _, instance = serve(files, ModelConfig(name="m", input=source, output=listed))
    (response,) = instance.execute(make_batch([{"x": np.ones(1, np.float32)}], batching=False))
    assert isinstance(response, InferResponse)
    assert [output.name for output in response.outputs] == ["c", "a"]


def test_an_optional_input_may_be_left_out(
    tmp_path: Path, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    config = ModelConfig(
        name="m",
        input=(
            ModelInput("x", "TYPE_FP32", dims=(-1, 4)),
            ModelInput("b", "TYPE_FP32", dims=(3,), optional=True),
        ),
        output=(ModelOutput("y", "TYPE_FP32", dims=(-1, 3)),),
    )
    _, instance = serve(linear(tmp_path), config)
    zeros, five = np.zeros((1, 4), np.float32), np.full(3, 5, np.float32)
    without = instance.execute(make_batch([{"x": zeros}], batching=False))
    given = instance.execute(make_batch([{"x": zeros, "b": five}], batching=False))
    assert output_of(without[0], "y").tolist() == [[1, 1, 1]]
    assert output_of(given[0], "y").tolist() == [[5, 5, 5]]


def test_a_scalar_goes_in_and_comes_out_with_the_configured_dims(
    tmp_path: Path, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    config, instance = serve(identity(tmp_path, TensorProto.DOUBLE))
    assert config.input[0].dims == (1,)
    (response,) = instance.execute(make_batch([{"x": np.array([2.5])}], batching=False))
    assert output_of(response, "y").tolist() == [2.5]


@pytest.mark.parametrize(
    ("kind", "array"),
    [
        (TensorProto.BOOL, np.array([[True, False]])),
        (TensorProto.UINT8, np.array([[0, 255]], np.uint8)),
        (TensorProto.UINT16, np.array([[0, 65535]], np.uint16)),
        (TensorProto.UINT64, np.array([[0, 2**64 - 1]], np.uint64)),
        (TensorProto.INT64, np.array([[-1, 2**62]], np.int64)),
        (TensorProto.FLOAT16, np.array([[0.5, np.inf]], np.float16)),
        (TensorProto.FLOAT, np.zeros((0, 2), np.float32)),
        (TensorProto.STRING, np.array([["", "naïve\0 ☃"]], np.object_)),
    ],
)
def test_every_type_passes_unchanged(
    tmp_path: Path, make_batch: MakeBatch, output_of: OutputOf, kind: int, array: Any
) -> None:
    _, instance = serve(identity(tmp_path, kind, "N", 2))
    (response,) = instance.execute(make_batch([{"x": array}]))
    given = output_of(response, "y")
    if kind == TensorProto.STRING:
        assert [[text.decode() for text in row] for row in given] == array.tolist()
    else:
        assert given.dtype == array.dtype
        assert given.shape == array.shape
        assert given.tobytes() == array.tobytes()


def test_strings_that_are_no_text_fail_their_own_request_only(
    tmp_path: Path, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    _, instance = serve(identity(tmp_path, TensorProto.STRING, "N", 1))
    good, bad = np.array([[b"good"]], np.object_), np.array([[b"\xff"]], np.object_)
    first, second, third = instance.execute(make_batch([{"x": good}, {"x": bad}, {"x": good}]))
    assert output_of(first, "y").tolist() == [[b"good"]]
    assert output_of(third, "y").tolist() == [[b"good"]]
    assert isinstance(second, InvalidArgument)
    assert "input 'x' holds bytes that are not valid UTF-8" in str(second)
    (alone,) = instance.execute(make_batch([{"x": bad}]))
    assert isinstance(alone, InvalidArgument)


def test_a_failing_run_fails_with_onnxruntimes_code_and_words(
    tmp_path: Path, make_batch: MakeBatch
) -> None:
    _, instance = serve(linear(tmp_path))
    with pytest.raises(Internal, match=r"^onnx runtime error 2: Got invalid dimensions") as caught:
        instance.execute(make_batch([{"x": np.zeros((1, 5), np.float32)}]))
    assert "ONNXRuntimeError" not in str(caught.value)


def test_an_output_with_too_few_rows_fails_the_batch(tmp_path: Path, make_batch: MakeBatch) -> None:
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)
    files = write(
        tmp_path / "model.onnx",
        [node],
        [tensor("x", TensorProto.FLOAT, "N", 2)],
        [tensor("y", TensorProto.FLOAT, "M", 1)],
    )
    _, instance = serve(files)
    row = {"x": np.ones((1, 2), np.float32)}
    with pytest.raises(MicrokernelError, match="failed to split the output tensor 'y'"):
        instance.execute(make_batch([row, row]))


def test_options_reach_the_session(
    tmp_path: Path, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    texts = {
        "execution_mode": "1",
        "intra_op_thread_count": "1",
        "enable_mem_arena": "false",
        "memory.enable_memory_arena_shrinkage": "nowhere:0",
    }
    config = ModelConfig(
        name="m", parameters={key: ModelParameter(text) for key, text in texts.items()}
    )
    files = linear(tmp_path)
    _, instance = serve(files, config)
    batch = make_batch([{"x": np.zeros((1, 4), np.float32)}])
    with pytest.raises(Internal, match="memory arena shrink list: nowhere"):
        instance.execute(batch)
    sound = {**config.parameters, "memory.enable_memory_arena_shrinkage": ModelParameter("")}
    del sound["memory.enable_memory_arena_shrinkage"]
    _, instance = serve(files, ModelConfig(name="m", parameters=sound))
    assert output_of(instance.execute(batch)[0], "y").tolist() == [[1, 1, 1]]


def test_a_missing_operator_library_fails_the_load(tmp_path: Path) -> None:
    config = config_from_json(
        {"name": "m", "model_operations": {"op_library_filename": ["/nowhere/ops.so"]}}
    )
    with pytest.raises(Internal, match=r"onnx runtime error 1: .*/nowhere/ops\.so"):
        serve(linear(tmp_path), config)


def test_the_folder_form_finds_weights_beside_the_model(
    tmp_path: Path, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    linear(tmp_path / "plain")
    folder = tmp_path / "1" / "model.onnx"
    folder.mkdir(parents=True)
    onnx.save(
        onnx.load(tmp_path / "plain" / "model.onnx"),
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert (folder / "weights.bin").is_file()
    _, instance = serve(tmp_path / "1")
    (response,) = instance.execute(make_batch([{"x": np.zeros((1, 4), np.float32)}]))
    assert output_of(response, "y").tolist() == [[1, 1, 1]]


def test_the_file_may_have_another_name(tmp_path: Path) -> None:
    linear(tmp_path)
    (tmp_path / "model.onnx").rename(tmp_path / "other.onnx")
    config, _ = serve(tmp_path, ModelConfig(name="m", default_model_filename="other.onnx"))
    assert [entry.name for entry in config.output] == ["y"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        serve(tmp_path)
    path = tmp_path / "model.onnx"
    assert str(caught.value) == f"unable to find '{path}' for model instance 'm'"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"junk!", "onnx runtime error 7: Load model from .*Protobuf parsing failed"),
        (b"", "onnx runtime error 2: Load model from .*No graph was found"),
    ],
)
def test_a_damaged_file_fails_the_load(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(Internal, match=text):
        serve(tmp_path)


def test_a_sequence_output_cannot_be_served(tmp_path: Path) -> None:
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    output = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    files = write(tmp_path / "model.onnx", [node], [tensor("x", TensorProto.FLOAT, "N")], [output])
    with pytest.raises(Unsupported, match=r"output 'y' of the model is of type seq"):
        serve(files)


def test_types_that_cannot_be_passed_fail_the_load(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="input 'x' is TYPE_BF16"):
        serve(identity(tmp_path, TensorProto.BFLOAT16, "N"))


def test_a_gpu_instance_is_refused(tmp_path: Path) -> None:
    files = linear(tmp_path)
    backend = OnnxBackend()
    model = backend.load(backend.complete(ModelConfig(name="m"), files), files)
    with pytest.raises(Unsupported, match="KIND_GPU"):
        model.instance(Placement("m_0", "KIND_GPU"))


def test_a_fork_after_the_import_can_run_a_model(tmp_path: Path) -> None:
    """The fork server imports onnxruntime and nothing else; its children load and run."""
    files = linear(tmp_path)
    script = f"""
import onnxruntime, os, sys
child = os.fork()
if child == 0:
    import pathlib
    import numpy as np
    from microkernel import Batch, InferRequest, ModelConfig, Placement, Tensor
    from microkernel_onnx.backend import OnnxBackend
    files = pathlib.Path({str(files)!r})
    backend = OnnxBackend()
    config = backend.complete(ModelConfig(name="m"), files)
    instance = backend.load(config, files).instance(Placement("m_0", "KIND_CPU"))
    x = Tensor.from_numpy("x", np.zeros((64, 4), np.float32))
    (response,) = instance.execute(Batch([InferRequest("m", (x,))], {{"x": x}}, [64]))
    sums = response.outputs[0].as_numpy().sum()
    sys.stdout.write(str(sums))
    sys.stdout.flush()
    os._exit(0)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "192.0"), ended.stderr


def magika() -> Path:
    return packaged("magika", "models/*/model.onnx")


def test_magika_is_served_with_no_configuration(
    tmp_path: Path, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    (tmp_path / "model.onnx").symlink_to(magika())
    config, instance = serve(tmp_path)
    assert config.max_batch_size == 4
    assert [(e.name, e.data_type, e.dims) for e in config.input] == [
        ("bytes", "TYPE_INT32", (2048,))
    ]
    rows = np.random.default_rng(0).integers(0, 257, (4, 2048), dtype=np.int32)
    outcomes = instance.execute(
        make_batch([{"bytes": rows[:1]}, {"bytes": rows[1:3]}, {"bytes": rows[3:]}])
    )
    session = onnxruntime.InferenceSession(magika(), providers=["CPUExecutionProvider"])
    (whole,) = session.run(["target_label"], {"bytes": rows})
    served = np.concatenate([output_of(outcome, "target_label") for outcome in outcomes])
    assert served.tobytes() == whole.tobytes()


def test_the_plug_in_is_light_and_registers_one_backend() -> None:
    script = (
        "import sys, microkernel_onnx as plugin\n"
        "found = []\n"
        "plugin.register_backends(found.append)\n"
        "plugin.register_options(found.append)\n"
        "module, _, name = found[0].factory.partition(':')\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "assert found[0].requires == ('onnxruntime',)\n"
        "assert found[0].extra == 'onnx'\n"
        "__import__(module)\n"
        "getattr(sys.modules[module], name)(found[1]())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stderr
