"""What the ONNX backend decides without running anything: completing, checking, parsing."""

from typing import Any

import pytest

pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

from hypothesis import given
from hypothesis import strategies as st

from microkernel import (
    BY_CONFIG_NAME,
    DynamicBatching,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Reshape,
    Unsupported,
    config_from_json,
)
from microkernel_onnx.completion import complete
from microkernel_onnx.graph import Graph, Port, data_type_of
from microkernel_onnx.options import Options, parse_options
from microkernel_onnx.session import failure
from microkernel_onnx.validation import validate


def graph(
    inputs: dict[str, Any], outputs: dict[str, Any], initializers: dict[str, Any] | None = None
) -> Graph:
    def ports(entries: dict[str, Any]) -> dict[str, Port]:
        return {
            name: entry if isinstance(entry, Port) else Port(name, "TYPE_FP32", entry)
            for name, entry in entries.items()
        }

    return Graph(ports(inputs), ports(outputs), ports(initializers or {}))


BATCHING = graph({"x": (-1, 4)}, {"y": (-1,)})
FIXED = graph({"x": (2, -1)}, {"y": ()})


def fp32(name: str, *dims: int, **rest: Any) -> ModelInput:
    return ModelInput(name, "TYPE_FP32", dims=dims, **rest)


def out(name: str, *dims: int) -> ModelOutput:
    return ModelOutput(name, "TYPE_FP32", dims=dims)


@pytest.mark.parametrize(
    ("given_size", "default", "size", "dynamic"),
    [
        (0, 4, 4, DynamicBatching()),
        (0, 1, 1, None),
        (0, 0, 0, None),
        (0, -3, 0, None),
        (7, 4, 7, DynamicBatching()),
        (1, 4, 1, None),
    ],
)
def test_a_graph_that_batches_gets_a_batch_size(
    given_size: int, default: int, size: int, dynamic: DynamicBatching | None
) -> None:
    config = complete(ModelConfig(name="m", max_batch_size=given_size), BATCHING, default)
    assert config.max_batch_size == size
    assert config.dynamic_batching == dynamic


def test_completed_tensors_of_a_batching_model_leave_the_batch_dimension_out() -> None:
    config = complete(ModelConfig(name="m"), BATCHING, 4)
    assert config.input == (fp32("x", 4),)
    assert config.output == (ModelOutput("y", "TYPE_FP32", dims=(1,), reshape=Reshape(())),)


def test_completed_tensors_of_another_model_are_the_graphs() -> None:
    config = complete(ModelConfig(name="m"), FIXED, 4)
    assert config.max_batch_size == 0
    assert config.dynamic_batching is None
    assert config.input == (fp32("x", 2, -1),)
    assert config.output == (ModelOutput("y", "TYPE_FP32", dims=(1,)),)


def test_a_listed_side_is_left_alone_and_the_other_filled() -> None:
    listed = ModelConfig(name="m", input=(fp32("other", 9),))
    config = complete(listed, BATCHING, 4)
    assert config.input == listed.input
    assert [entry.name for entry in config.output] == ["y"]
    reverse = complete(ModelConfig(name="m", output=(out("z", 1),)), BATCHING, 4)
    assert [entry.name for entry in reverse.input] == ["x"]
    assert reverse.output == (out("z", 1),)


def test_a_complete_configuration_is_not_touched() -> None:
    config = ModelConfig(name="m", input=(fp32("x", -1, 4),), output=(out("y", -1),))
    assert complete(config, BATCHING, 4) is config


def test_sequence_batching_is_not_given_a_dynamic_batcher() -> None:
    config = config_from_json({"name": "m", "sequence_batching": {}})
    assert complete(config, BATCHING, 4).dynamic_batching is None


def test_batching_that_the_graph_forbids_is_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        complete(ModelConfig(name="m", max_batch_size=2), FIXED, 4)
    assert str(caught.value) == (
        "autofill failed for model 'm': model does not support batching while non-zero "
        "max_batch_size is specified"
    )


def test_completing_and_validating_agree() -> None:
    for model in (BATCHING, FIXED, graph({"s": ()}, {"y": (3,), "z": (-1, -1)})):
        validate(complete(ModelConfig(name="m"), model, 4), model)


@pytest.mark.parametrize(
    ("config", "model", "error", "text"),
    [
        (
            ModelConfig(name="m", input=(fp32("x", 4), fp32("z", 1))),
            BATCHING,
            InvalidArgument,
            "unable to load model 'm', configuration expects 2 inputs, model provides 1",
        ),
        (
            ModelConfig(name="m", input=(fp32("q", 4),)),
            graph({"b": (4,)}, {}),
            InvalidArgument,
            "unexpected inference input 'q', allowed inputs are: b",
        ),
        (
            ModelConfig(name="m", input=(fp32("b", 4),), output=(out("q", 1),)),
            graph({"b": (4,)}, {"z": (1,), "a": (1,)}),
            InvalidArgument,
            "unexpected inference output 'q', allowed outputs are: a, z",
        ),
        (
            ModelConfig(name="m", input=(ModelInput("x", "TYPE_INT32", dims=(4,)),)),
            graph({"x": (4,)}, {}),
            InvalidArgument,
            "configuration expects datatype TYPE_INT32 for input 'x', model provides TYPE_FP32",
        ),
        (
            ModelConfig(name="m", input=(fp32("x", -1),)),
            graph({"x": (4,)}, {}),
            InvalidArgument,
            "model 'm', tensor 'x': the model expects 1 dimensions (shape [4]) but the model "
            "configuration specifies 1 dimensions (shape [-1])",
        ),
        (
            ModelConfig(name="m", max_batch_size=2, input=(fp32("x", 16, 1),)),
            graph({"x": (-1, 16)}, {}),
            InvalidArgument,
            "the model expects 2 dimensions (shape [-1,16]) but the model configuration specifies "
            "3 dimensions (an initial batch dimension because max_batch_size > 0 followed by the "
            "explicit tensor shape, making complete shape [-1,16,1])",
        ),
        (
            ModelConfig(name="m", max_batch_size=2, input=(fp32("x", 4),)),
            graph({"x": (1, 4)}, {}),
            InvalidArgument,
            "the first dimension must be -1; but shape expected by the model is [1,4]",
        ),
        (
            ModelConfig(name="m", input=(fp32("x", 4),), output=(out("y", 4),)),
            graph({"x": (-1,)}, {"y": (-1,)}),
            InvalidArgument,
            "tensor 'y': the model expects 1 dimensions (shape [-1])",
        ),
        (
            ModelConfig(name="m", input=(fp32("x", 2),)),
            graph({"x": ()}, {}),
            InvalidArgument,
            "tensor 'x': the model expects 0 dimensions",
        ),
        (
            ModelConfig(name="m", input=(ModelInput("x", "TYPE_BF16", dims=(4,)),)),
            graph({"x": Port("x", "TYPE_BF16", (4,))}, {}),
            Unsupported,
            "input 'x' is TYPE_BF16",
        ),
        (
            ModelConfig(name="m", input=(ModelInput("x", "TYPE_INVALID", dims=(4,)),)),
            graph({"x": Port("x", "TYPE_INVALID", (4,))}, {}),
            InvalidArgument,
            "model provides TYPE_INVALID",
        ),
        (
            ModelConfig(name="m", max_batch_size=1, input=(fp32("i", 4, optional=True),)),
            graph({}, {}, {"i": (-1, 4)}),
            InvalidArgument,
            "input 'i' is optional, which needs max_batch_size: 0",
        ),
        (
            ModelConfig(name="m", input=(fp32("i", 4),)),
            graph({}, {}, {"i": (4,)}),
            InvalidArgument,
            "configuration expects 1 inputs, model provides 0",
        ),
        (
            config_from_json(
                {
                    "name": "m",
                    "max_batch_size": 2,
                    "input": [
                        {
                            "name": "x",
                            "data_type": "TYPE_FP32",
                            "dims": [-1],
                            "allow_ragged_batch": True,
                            "optional": True,
                        }
                    ],
                    "batch_input": [{"target_name": ["n"], "data_type": "TYPE_FP32"}],
                }
            ),
            graph({"x": (-1,), "n": (-1,)}, {}),
            InvalidArgument,
            "configuration expects 1 inputs, model provides 2; input 'x' is optional, but the "
            "model needs it",
        ),
        (
            ModelConfig(
                name="m", max_batch_size=2, input=(fp32("x", -1, allow_ragged_batch=True),)
            ),
            graph({"x": (-1, -1)}, {}),
            InvalidArgument,
            "its shape in the model must be [-1], not [-1,-1]",
        ),
        (
            config_from_json(
                {
                    "name": "m",
                    "sequence_batching": {
                        "control_input": [
                            {"name": "START", "control": [{"bool_false_true": [False, True]}]}
                        ]
                    },
                }
            ),
            graph({"x": (-1,)}, {}),
            Internal,
            "sequence tensor 'START'",
        ),
    ],
)
def test_a_configuration_that_contradicts_the_graph_is_refused(
    config: ModelConfig, model: Graph, error: type[MicrokernelError], text: str
) -> None:
    with pytest.raises(error) as caught:
        validate(config, model)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (ModelConfig(input=(fp32("x", 7),)), graph({"x": (-1,)}, {})),
        (ModelConfig(input=(fp32("x", 1, 1),)), graph({"x": ()}, {})),
        (ModelConfig(input=(fp32("i", 4, optional=True),)), graph({}, {}, {"i": (4,)})),
        (
            ModelConfig(max_batch_size=2, input=(fp32("x", 8, reshape=Reshape((2, 4))),)),
            graph({"x": (-1, 2, 4)}, {}),
        ),
        (
            config_from_json(
                {
                    "max_batch_size": 2,
                    "input": [
                        {
                            "name": "x",
                            "data_type": "TYPE_FP32",
                            "dims": [-1],
                            "allow_ragged_batch": True,
                        }
                    ],
                    "batch_input": [{"target_name": ["n"], "data_type": "TYPE_FP32"}],
                    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [9]}],
                    "batch_output": [{"target_name": ["y"]}],
                }
            ),
            graph({"x": (-1,), "n": (-1,)}, {"y": (-1, -1)}),
        ),
    ],
)
def test_a_configuration_that_fits_passes(config: ModelConfig, model: Graph) -> None:
    validate(config, model)


@pytest.mark.parametrize(
    ("onnx", "config"),
    [
        ("tensor(float)", "TYPE_FP32"),
        ("tensor(double)", "TYPE_FP64"),
        ("tensor(float16)", "TYPE_FP16"),
        ("tensor(bfloat16)", "TYPE_BF16"),
        ("tensor(string)", "TYPE_STRING"),
        ("tensor(bool)", "TYPE_BOOL"),
        ("tensor(uint64)", "TYPE_UINT64"),
        ("tensor(int8)", "TYPE_INT8"),
        ("tensor(float8e4m3fn)", "TYPE_INVALID"),
        ("tensor(complex64)", "TYPE_INVALID"),
        ("tensor(bytes)", "TYPE_INVALID"),
    ],
)
def test_types_have_the_configurations_names(onnx: str, config: str) -> None:
    assert data_type_of(onnx) == config


@given(st.text())
def test_no_type_name_is_taken_for_another(text: str) -> None:
    try:
        name = data_type_of(f"tensor({text})")
    except ValueError:
        return
    assert name == "TYPE_INVALID" or name in BY_CONFIG_NAME


def parameters(**values: str) -> ModelConfig:
    return ModelConfig(
        name="m",
        parameters={k.replace("__", "."): ModelParameter(v) for k, v in values.items()},
    )


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (ModelConfig(), Options()),
        (parameters(execution_mode="1"), Options(parallel=True)),
        (parameters(intra_op_thread_count="3 threads"), Options(intra_op_threads=3)),
        (parameters(intra_op_thread_count="-3"), Options()),
        (parameters(inter_op_thread_count="2"), Options(inter_op_threads=2)),
        (parameters(enable_mem_arena="OFF"), Options(memory_arena=False)),
        (parameters(enable_mem_pattern="0"), Options(memory_pattern=False)),
        (parameters(unknown="x"), Options()),
        (
            parameters(session__use_device_allocator_for_initializers="1"),
            Options(session_entries={"session.use_device_allocator_for_initializers": "1"}),
        ),
        (
            parameters(memory__enable_memory_arena_shrinkage="cpu:0"),
            Options(run_entries={"memory.enable_memory_arena_shrinkage": "cpu:0"}),
        ),
        (config_from_json({"optimization": {"graph": {"level": -1}}}), Options(graph_level=-1)),
        (
            config_from_json({"model_operations": {"op_library_filename": ["a.so"]}}),
            Options(libraries=("a.so",)),
        ),
    ],
)
def test_parameters_become_options(config: ModelConfig, options: Options) -> None:
    assert parse_options(config) == options


def accelerator(kind: str, name: str) -> ModelConfig:
    return config_from_json({"optimization": {"execution_accelerators": {kind: [{"name": name}]}}})


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        (parameters(execution_mode="2"), InvalidArgument, "must be 0 (sequential) or 1"),
        (
            parameters(intra_op_thread_count="many"),
            InvalidArgument,
            "failed to convert 'many' to integral number",
        ),
        (
            parameters(enable_mem_arena="yes"),
            InvalidArgument,
            "failed to convert 'yes' to boolean",
        ),
        (
            accelerator("cpu_execution_accelerator", "x"),
            InvalidArgument,
            "unknown Execution Accelerator 'x' is requested",
        ),
        (accelerator("cpu_execution_accelerator", "openvino"), Unsupported, "'openvino'"),
    ],
)
def test_bad_parameters_are_refused(
    config: ModelConfig, error: type[MicrokernelError], text: str
) -> None:
    with pytest.raises(error) as caught:
        parse_options(config)
    assert text in str(caught.value)


def test_gpu_accelerators_are_not_looked_at_on_a_cpu() -> None:
    assert parse_options(accelerator("gpu_execution_accelerator", "x")) == Options()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : a : b\nc", "onnx runtime error 2: a : b\nc"),
        ("Required inputs are missing", "onnx runtime error 1: Required inputs are missing"),
        ("", "onnx runtime error 1: RuntimeError"),
    ],
)
def test_errors_carry_the_code_and_message_of_onnxruntime(text: str, message: str) -> None:
    assert str(failure(RuntimeError(text))) == message
