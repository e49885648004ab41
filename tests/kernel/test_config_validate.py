"""The rules of a configuration, and what this version does not offer or heed."""

import pytest

from microkernel.config.codec import config_from_json
from microkernel.config.model import ModelConfig
from microkernel.config.parse import parse_text
from microkernel.config.validate import ignored, problems, validate
from microkernel.errors import InvalidArgument

HEAD = 'name: "m" backend: "python" '
TENSORS = (
    'input { name: "A" data_type: TYPE_FP32 dims: [ -1 ] } '
    'output { name: "B" data_type: TYPE_FP32 dims: [ 2, 3 ] } '
)


def config_of(text: str, head: str = HEAD) -> ModelConfig:
    return parse_text(head + text, "here")


def reshaped(dims: str, shape: str, max_batch_size: int) -> str:
    return (
        f"max_batch_size: {max_batch_size} "
        'input { name: "A" data_type: TYPE_FP32 '
        f"dims: {dims} reshape {{ shape: {shape} }} }}"
    )


def controlled(control: str) -> str:
    return f'sequence_batching {{ control_input {{ name: "C" control {{ {control} }} }} }}'


def state(
    text: str, *, initial: str, output: str = "t", name: str = "first", times: int = 1
) -> str:
    """A state `s`, with an initial state of the state's first data type where one is given."""
    entry = f'initial_state {{ name: "{name}" data_type: TYPE_INT8 {initial} }} ' * times
    return (
        f'sequence_batching {{ state {{ input_name: "s" output_name: "{output}" {text} '
        f"{entry if initial else ''} }} }}"
    )


START = "kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ]"
CORRID = "kind: CONTROL_SEQUENCE_CORRID data_type: "


@pytest.mark.parametrize(
    "text",
    [
        "",
        TENSORS,
        "max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 1, 4 ] }",
        "dynamic_batching { }",
        "max_batch_size: 4 dynamic_batching { priority_levels: 2 default_priority_level: 2 "
        "priority_queue_policy { key: 1 } }",
        "dynamic_batching { preserve_ordering: true priority_levels: 1 default_priority_level: 1 "
        "default_queue_policy { timeout_action: DELAY } }",
        "dynamic_batching { preserve_ordering: true "
        "default_queue_policy { default_timeout_microseconds: 5 } }",
        controlled(START),
        controlled(CORRID + "TYPE_STRING"),
        controlled("kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ]"),
        "max_batch_size: 2 sequence_batching { oldest { preferred_batch_size: 2 } }",
        'sequence_batching { state { input_name: "s" output_name: "t" data_type: TYPE_INT8 '
        'dims: -1 initial_state { name: "s" zero_data: true data_type: TYPE_INT8 dims: 2 } } }',
        reshaped("[ 2, 4, -1, 6 ]", "[ 8, -1, 6 ]", 0),
        reshaped("[ -1, -1 ]", "[ -1, 1, -1 ]", 0),
        reshaped("[ 6 ]", "[ 2, 3 ]", 0),
        reshaped("[ 1 ]", "[ ]", 1),
        TENSORS + 'batch_input { target_name: "C" data_type: TYPE_FP32 source_input: "A" }',
        TENSORS + 'batch_output { target_name: "B" source_input: "A" }',
        "response_cache { enable: true }",
        "response_cache { } model_transaction_policy { decoupled: true }",
        "instance_group { kind: KIND_GPU gpus: [ 0 ] }",
        "instance_group { kind: KIND_CPU count: 2 }",
        "instance_group { count: 1000 } instance_group { count: 24 }",
        'model_metrics { metric_control { metric_identifier { family: "f" } '
        "histogram_options { buckets: [ 1 ] } } }",
        'platform: "anything"',
        'input { name: "A" data_type: TYPE_FP32 format: FORMAT_NHWC dims: [ 1, 2, 3 ] }',
    ],
)
def test_good_configurations_have_no_problem(text: str) -> None:
    assert problems(config_of(text)) == []
    validate(config_of(text), tensors_required=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: -1", "'max_batch_size' must be non-negative value for m"),
        (
            'platform: "ensemble" ensemble_scheduling { step { model_name: "n" '
            'input_map { key: "A" value: "A" } output_map { key: "B" value: "B" } } }',
            "Ensemble model 'm' must have platform type 'ensemble' and empty",
        ),
        ("ensemble_scheduling { }", "ensemble scheduling cannot be set for model 'm' whose"),
        (
            "dynamic_batching { preferred_batch_size: 0 }",
            "dynamic batching preferred size must be positive for m",
        ),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 4, 5 ] }",
            "dynamic batching preferred size must be <= max batch size for m",
        ),
        (
            "dynamic_batching { priority_levels: 2 }",
            "default priority level must be in range [1, 2] for m",
        ),
        (
            "dynamic_batching { priority_levels: 2 default_priority_level: 3 }",
            "default priority level must be in range [1, 2] for m",
        ),
        (
            "dynamic_batching { priority_levels: 1 default_priority_level: 1 "
            "priority_queue_policy { key: 2 } }",
            "priority queue policy must have priority level in range [1, 1] for m",
        ),
        (
            "dynamic_batching { preserve_ordering: true priority_levels: 2 "
            "default_priority_level: 1 }",
            "only one priority level is allowed when 'preserve_ordering' is true for m",
        ),
        (
            "dynamic_batching { preserve_ordering: true default_queue_policy { "
            "timeout_action: DELAY default_timeout_microseconds: 1 } }",
            "queue policy can not have a non-zero default timeout with timeout action DELAY",
        ),
        (
            "dynamic_batching { preserve_ordering: true priority_queue_policy { key: 1 value { "
            "timeout_action: DELAY default_timeout_microseconds: 1 } } }",
            "queue policy can not have a non-zero default timeout with timeout action DELAY",
        ),
        (
            "sequence_batching { control_input { } }",
            "control tensor must have a name for m",
        ),
        (
            'sequence_batching { control_input { name: "C" } control_input { name: "C" } }',
            "control tensor 'C' is specified for multiple control kinds for m",
        ),
        (
            f'sequence_batching {{ control_input {{ name: "C" control {{ {START} }} }} '
            f'control_input {{ name: "D" control {{ {START} }} }} }}',
            "sequence batching specifies multiple CONTROL_SEQUENCE_START tensors for m",
        ),
        (
            controlled("kind: CONTROL_SEQUENCE_END"),
            "must specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true'",
        ),
        (
            controlled(START + " fp32_false_true: [ 0, 1 ]"),
            "specifies more than one from 'int32_false_true', 'fp32_false_true' and",
        ),
        (controlled("fp32_false_true: [ 0 ]"), "'fp32_false_true' must have exactly 2 entries"),
        (
            controlled(CORRID + "TYPE_INT32 int32_false_true: [ 0, 1 ]"),
            "must not specify either 'int32_false_true', 'fp32_false_true' or",
        ),
        (
            controlled(CORRID + "TYPE_FP32"),
            "unexpected data type for control CONTROL_SEQUENCE_CORRID",
        ),
        (
            "max_batch_size: 1 sequence_batching { oldest { preferred_batch_size: 2 } }",
            "sequence batching preferred batch size must be <= max batch size for m",
        ),
        (
            "max_batch_size: 1 sequence_batching { oldest { preferred_batch_size: -2 } }",
            "sequence batching preferred batch size must be positive for m",
        ),
        (
            "sequence_batching { oldest { max_candidate_sequences: -4 } }",
            "sequence batching 'max_candidate_sequences' must not be negative for m",
        ),
        (
            TENSORS + controlled(START).replace('"C"', '"A"'),
            "control tensor 'A' has the name of another input for m",
        ),
        (
            TENSORS + state("data_type: TYPE_INT8 dims: 2", initial="").replace('"s"', '"A"'),
            "sequence batching state 'A' has the name of another input for m",
        ),
        (
            f'sequence_batching {{ control_input {{ name: "C" control {{ {START} }} }} '
            'state { input_name: "C" output_name: "D" data_type: TYPE_INT8 dims: 2 } }',
            "sequence batching state 'C' has the name of another input for m",
        ),
        (
            "sequence_batching { direct { minimum_slot_utilization: 1.5 } }",
            "minimum slot utilization must be in range [0.0, 1.0] for m",
        ),
        (
            state("data_type: TYPE_INT8 dims: 2", output="", initial=""),
            "sequence batching state must have an 'input_name' and an 'output_name' for m",
        ),
        (
            state("dims: 2", initial=""),
            "sequence batching state 's' must specify 'data_type' for m",
        ),
        (
            state("data_type: TYPE_INT8 dims: 0", initial=""),
            "sequence batching state 's' dimension must be integer >= 1, or -1 to indicate a "
            "variable-size dimension for m",
        ),
        (
            state("data_type: TYPE_INT8 dims: -1", initial="dims: -1 zero_data: true"),
            "'initial_state' field for state input name 's' contains variable dimensions. for m",
        ),
        (
            state("data_type: TYPE_INT8 dims: 2", initial="dims: 2 zero_data: true", name=""),
            "Field 'name' must be set when using initial_state in the state input field. State "
            "input name is 's' for m",
        ),
        (
            state("data_type: TYPE_INT16 dims: 2", initial="dims: 2 zero_data: true"),
            "The data type used for 'initial_state' field of state 's' does not match for m",
        ),
        (
            state("data_type: TYPE_INT8 dims: [ -1, 2 ]", initial="dims: [ 1, 3 ] zero_data: true"),
            "The dimensions used for 'initial_state' field of state 's' are [1, 3], which are none "
            "of [-1, 2] for m",
        ),
        (
            state("data_type: TYPE_INT8 dims: 2", initial="dims: [ 2, 1 ] zero_data: true"),
            "are [2, 1], which are none of [2] for m",
        ),
        (
            state("data_type: TYPE_INT8 dims: 2", initial="dims: 2"),
            "'initial_state' of state 's' must specify 'zero_data' or 'data_file' for m",
        ),
        (
            state("data_type: TYPE_INT8 dims: 2", initial="dims: 2 zero_data: true", times=2),
            "sequence batching state 's' can have only one initial state for m",
        ),
        (
            f'sequence_batching {{ control_input {{ name: "C" control {{ {START} }} '
            "control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } } }",
            "control tensor 'C' is specified for multiple control kinds for m",
        ),
        (
            "sequence_batching { } response_cache { enable: true }",
            "Response Cache does not currently support model m with sequence batching scheduler",
        ),
        (
            "model_transaction_policy { decoupled: true } response_cache { enable: true }",
            "Response Cache does not currently support model m with 'decoupled' transaction policy",
        ),
        (
            "instance_group { kind: KIND_CPU gpus: [ 0 ] }",
            "instance group m_0 of model m has kind KIND_CPU but specifies one or more GPUs",
        ),
        (
            'instance_group { } instance_group { name: "g" kind: KIND_MODEL gpus: [ 0 ] }',
            "instance group g of model m has kind KIND_MODEL but specifies one or more GPUs",
        ),
        (
            "instance_group { count: 1000 } instance_group { count: 24 } instance_group { }",
            "instance groups of model m have 1025 instances, more than the 1024 that a model may",
        ),
        (
            "instance_group { kind: KIND_GPU count: 513 gpus: [ 0, 1 ] }",
            "instance groups of model m have 1026 instances, more than the 1024 that a model may",
        ),
        ('instance_group { profile: "1" }', "only supported for TensorRT models"),
        (
            "model_metrics { metric_control { histogram_options { buckets: 1 } } }",
            "metric control must specify 'metric_identifier' for m",
        ),
        (
            "model_metrics { metric_control { metric_identifier { } "
            "histogram_options { buckets: 1 } } }",
            "metric identifier must specify non-empty 'family' for m",
        ),
        (
            'model_metrics { metric_control { metric_identifier { family: "f" } } }',
            "metric control must specify 'histogram_options' for m",
        ),
        (
            'model_metrics { metric_control { metric_identifier { family: "f" } '
            "histogram_options { } } }",
            "histogram options must specify non-empty 'buckets' for m",
        ),
    ],
)
def test_one_fault_one_message(text: str, message: str) -> None:
    (found,) = problems(config_of(text), tensors_required=False)
    assert message in found
    with pytest.raises(InvalidArgument) as caught:
        validate(config_of(text), tensors_required=False)
    assert str(caught.value) == found


def saying(**parameters: str) -> str:
    return TENSORS + "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }} '
        for key, value in parameters.items()
    )


BATCHED = "dynamic_batching { } "
ORDERED = "dynamic_batching { preserve_ordering: true } "
TIMED = "dynamic_batching { default_queue_policy { default_timeout_microseconds: 5 } } "
SEQUENCES = "sequence_batching { } "


@pytest.mark.parametrize(
    "text",
    [
        saying(FAIR_QUEUE_KEY="user"),
        saying(FAIR_QUEUE_KEY="header:x", FAIR_QUEUE_MAX_PER_KEY="3"),
        saying(FAIR_QUEUE_KEY="header:priority"),
        saying(FAIR_QUEUE_KEY="u", REJECT_HOPELESS="true") + TIMED,
        saying(REJECT_HOPELESS="false", ADAPTIVE_QUEUE_DELAY="false"),
        saying(ADAPTIVE_QUEUE_DELAY="true", BATCH_STRATEGY="x") + BATCHED,
        saying(TRITON_BATCH_STRATEGY_PATH="x.py") + BATCHED,
        saying(FAIR_QUEUE_KEY="priority", REJECT_HOPELESS="maybe") + SEQUENCES,
    ],
)
def test_good_parameters_of_a_queue(text: str) -> None:
    assert problems(config_of(text)) == []


@pytest.mark.parametrize(
    ("text", "name", "fault"),
    [
        (saying(FAIR_QUEUE_MAX_PER_KEY="3"), "FAIR_QUEUE_MAX_PER_KEY", "needs 'FAIR_QUEUE_KEY'"),
        *(
            (
                saying(FAIR_QUEUE_KEY="u", FAIR_QUEUE_MAX_PER_KEY=most),
                "FAIR_QUEUE_MAX_PER_KEY",
                f"must be a number of requests, 0 for no limit, got '{most}'",
            )
            for most in ("-3", "²", "")
        ),
        (
            saying(FAIR_QUEUE_KEY="u") + ORDERED,
            "FAIR_QUEUE_KEY",
            "cannot be set when 'preserve_ordering' is true",
        ),
        *(
            (saying(FAIR_QUEUE_KEY=key), "FAIR_QUEUE_KEY", f"names '{key}', which is reserved")
            for key in ("sequence_id", "priority", "timeout", "binary_data_output", "triton_x")
        ),
        (saying(FAIR_QUEUE_KEY="header:"), "FAIR_QUEUE_KEY", "must name a header after 'header:'"),
        (
            saying(REJECT_HOPELESS="maybe") + TIMED,
            "REJECT_HOPELESS",
            "must be 'true' or 'false', got 'maybe'",
        ),
        (saying(REJECT_HOPELESS="true") + BATCHED, "REJECT_HOPELESS", "needs a queue policy with"),
        (saying(REJECT_HOPELESS="true"), "REJECT_HOPELESS", "needs a queue policy with"),
        (
            saying(ADAPTIVE_QUEUE_DELAY="yes") + BATCHED,
            "ADAPTIVE_QUEUE_DELAY",
            "must be 'true' or 'false', got 'yes'",
        ),
        (
            saying(ADAPTIVE_QUEUE_DELAY="true"),
            "ADAPTIVE_QUEUE_DELAY",
            "needs 'dynamic_batching'",
        ),
        *(
            (saying(**{name: "x.py"}) + scheduler, name, "needs 'dynamic_batching'")
            for name in ("BATCH_STRATEGY", "TRITON_BATCH_STRATEGY_PATH")
            for scheduler in ("", SEQUENCES)
        ),
    ],
)
def test_parameters_of_a_queue_that_cannot_be(text: str, name: str, fault: str) -> None:
    (found,) = problems(config_of(text))
    assert found.startswith(f"parameter '{name}' of model 'm' {fault}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input { data_type: TYPE_FP32 dims: 1 }", "model input must specify 'name' for m"),
        ('input { name: "A" dims: 1 }', "model input 'A' must specify 'data_type' for m"),
        (
            'output { name: "B" data_type: TYPE_FP32 }',
            "model output 'B' must specify 'dims' for m",
        ),
        (
            'input { name: "A" data_type: TYPE_FP32 dims: 0 }',
            "model input 'A' dimension must be integer >= 1, or -1 to indicate a variable-size "
            "dimension for m",
        ),
        (
            'output { name: "B" data_type: TYPE_FP32 dims: -2 }',
            "model output 'B' dimension must be integer >= 1, or -1 to indicate a variable-size "
            "dimension for m",
        ),
        (
            TENSORS + 'input { name: "A" data_type: TYPE_FP32 dims: 1 }',
            "model input 'A' must not be specified twice for m",
        ),
        (
            'input { name: "A" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 1, 2 ] }',
            "model input 'A' NHWC/NCHW require 3 dims for m",
        ),
        (
            'input { name: "A" data_type: TYPE_FP32 dims: 1 is_shape_tensor: true }',
            "model input 'A' shape tensors are only supported for TensorRT platform for m",
        ),
        (
            'output { name: "B" data_type: TYPE_FP32 dims: 1 is_non_linear_format_io: true }',
            "model output 'B' Non-linear IO format is only supported for TensorRT platform for m",
        ),
        (
            reshaped("[ 2, 3 ]", "[ 5 ]", 0),
            "model input 'A' has different size for dims and reshape for m",
        ),
        (
            reshaped("[ 2, -1, 3 ]", "[ -1, 6 ]", 0),
            "model input 'A' has different size for dims and reshape for m",
        ),
        (
            reshaped("[ -1 ]", "[ 4 ]", 0),
            "model input 'A' has different size for dims and reshape for m",
        ),
        (
            reshaped("[ 2 ]", "[ ]", 1),
            "model input 'A' has different size for dims and reshape for m",
        ),
        (
            reshaped("[ -1, -1 ]", "[ -1 ]", 0),
            "model input 'A' has different number of variable-size dimensions for dims and reshape "
            "for m",
        ),
        (
            reshaped("[ 1 ]", "[ ]", 0),
            "model input 'A' cannot have empty reshape for non-batching model as scalar tensors "
            "are not supported for m",
        ),
        (reshaped("[ 1 ]", "[ 0 ]", 0), "reshape dimensions must be integer >= 1, or -1"),
        (
            TENSORS + 'batch_input { data_type: TYPE_FP32 source_input: [ "A", "A" ] }',
            "batch input kind 'BATCH_ELEMENT_COUNT' expects 1 source input, got 2 for m",
        ),
        (
            TENSORS + 'batch_input { data_type: TYPE_INT64 source_input: "A" }',
            "batch input data type must be TYPE_INT32 or TYPE_FP32 for m",
        ),
        (
            TENSORS
            + controlled(START)
            + 'batch_input { target_name: "C" data_type: TYPE_INT32 source_input: "A" }',
            "batch input 'C' has the name of another input for m",
        ),
        (
            TENSORS + 'batch_input { data_type: TYPE_INT32 source_input: "B" }',
            "unknown source input name 'B' for m",
        ),
        (
            TENSORS + 'batch_output { target_name: "B" }',
            "batch output kind 'BATCH_SCATTER_WITH_INPUT_SHAPE' expects 1 source input, got 0",
        ),
        (
            TENSORS + 'batch_output { target_name: "A" source_input: "A" }',
            "unknown target output name 'A' for m",
        ),
        (
            TENSORS + 'batch_output { target_name: "B" source_input: "A" } '
            'batch_output { target_name: "B" source_input: "A" }',
            "target output name 'B' can only be specified once for m",
        ),
    ],
)
def test_tensors_are_looked_at_only_when_required(text: str, message: str) -> None:
    (found,) = problems(config_of(text))
    assert message in found
    assert problems(config_of(text), tensors_required=False) == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('backend: "python"', ["model configuration must specify 'name'"]),
        ('name: "m"', ["unexpected platform type '' for m"]),
        ('name: "m" platform: "x"', ["unexpected platform type 'x' for m"]),
        ('name: "m" backend: "pytorch" platform: "torch_aoti"', []),
        (
            'name: "m" backend: "pytorch" platform: "onnxruntime_onnx"',
            ["unexpected 'platform' and 'backend' pair, got:onnxruntime_onnx, pytorch"],
        ),
        (
            'name: "m" platform: "ensemble" ensemble_scheduling { }',
            [
                "must specify 'step' for ensemble 'm'",
                "must specify 'output' for ensemble 'm'",
            ],
        ),
        (
            'name: "m" platform: "ensemble" instance_group { } optimization { } model_warmup { }',
            [
                "ensemble scheduling must be set for ensemble m whose platform is ensemble",
                "instance group should not be specified for ensemble 'm'",
                "optimization should not be specified for ensemble 'm'",
                "model_warmup can not be specified for ensemble 'm'",
            ],
        ),
    ],
)
def test_name_platform_and_backend(text: str, wanted: list[str]) -> None:
    assert problems(config_of(text, head="")) == wanted


def test_json_can_name_two_members_of_a_oneof_and_is_told() -> None:
    config = config_from_json(
        {
            "name": "m",
            "backend": "python",
            "dynamic_batching": {},
            "sequence_batching": {"direct": {}, "oldest": {}},
            "version_policy": {"all": {}, "latest": {}},
        }
    )
    assert problems(config) == [
        "only one of dynamic_batching, sequence_batching, ensemble_scheduling can be set for m",
        "only one of latest, all, specific can be set for m",
        "only one of direct, oldest can be set for m",
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("instance_group { count: 1 } optimization { input_pinned_memory { enable: true } }", []),
        ("response_cache { }", []),
        ("response_cache { enable: true }", []),
        ("model_warmup { }", []),
        ("model_repository_agents { }", ["model_repository_agents"]),
        (
            'sequence_batching { state { input_name: "s" output_name: "t" } '
            'state { input_name: "u" output_name: "v" } state { input_name: "s" output_name: "w" } '
            'state { input_name: "x" output_name: "v" } }',
            ["sequence_batching.state[2]", "sequence_batching.state[3]"],
        ),
        (
            'instance_group { rate_limiter { } host_policy: "cpu" secondary_devices { } '
            "passive: true }",
            [],
        ),
        (
            "optimization { priority: PRIORITY_MAX cuda { } gather_kernel_buffer_threshold: 1 "
            "eager_batching: true graph { level: 1 } execution_accelerators { } }",
            [
                "optimization.cuda",
                "optimization.gather_kernel_buffer_threshold",
                "optimization.eager_batching",
                "optimization.graph",
                "optimization.execution_accelerators",
            ],
        ),
    ],
)
def test_names_what_has_no_effect(text: str, wanted: list[str]) -> None:
    assert ignored(config_of(text)) == wanted


def test_graph_level_and_accelerators_have_an_effect_on_onnx_models() -> None:
    text = 'backend: "onnxruntime" optimization { graph { level: 1 } execution_accelerators { } }'
    assert ignored(config_of(text, head="")) == []
