"""The JSON form of a configuration."""

import json
from typing import Any

import pytest

from microkernel.config.codec import config_from_json, config_to_json, config_to_text
from microkernel.config.model import (
    Cuda,
    DynamicBatching,
    GraphShape,
    GraphSpec,
    InitialState,
    InstanceGroup,
    ModelConfig,
    ModelInput,
    ModelParameter,
    Optimization,
    QueuePolicy,
    RateLimiter,
    Resource,
    SecondaryDevice,
    SequenceBatching,
    State,
    StrategyDirect,
)
from microkernel.errors import InvalidArgument


def test_scalars_lists_and_maps_are_always_present_and_messages_only_when_set() -> None:
    document = config_to_json(ModelConfig(name="m", dynamic_batching=DynamicBatching()))
    assert document["max_batch_size"] == 0
    assert document["platform"] == ""
    assert document["input"] == []
    assert document["cc_model_filenames"] == {}
    assert document["dynamic_batching"]["preferred_batch_size"] == []
    assert "default_queue_policy" not in document["dynamic_batching"]
    assert "sequence_batching" not in document
    assert "optimization" not in document


def test_64_bit_integers_are_numbers_but_for_triton_s_omissions() -> None:
    state = State(dims=(7,), initial_state=(InitialState(dims=(8,)),))
    spec = GraphSpec(input={"A": GraphShape((3,))})
    document = config_to_json(
        ModelConfig(
            input=(ModelInput(dims=(-1, 2**40)),),
            sequence_batching=SequenceBatching(state=(state,)),
            optimization=Optimization(cuda=Cuda(graph_spec=(spec,))),
            instance_group=(InstanceGroup(secondary_devices=(SecondaryDevice(device_id=5),)),),
        )
    )
    assert document["input"][0]["dims"] == [-1, 2**40]
    assert document["sequence_batching"]["state"][0]["dims"] == [7]
    assert document["sequence_batching"]["state"][0]["initial_state"][0]["dims"] == ["8"]
    assert document["optimization"]["cuda"]["graph_spec"][0]["input"] == {"A": {"dim": ["3"]}}
    assert document["instance_group"][0]["secondary_devices"][0]["device_id"] == "5"


def test_keyword_fields_and_integer_keys_have_their_wire_form() -> None:
    group = InstanceGroup(rate_limiter=RateLimiter((Resource("R", True, 2),), 1))
    batching = DynamicBatching(priority_queue_policy={1: QueuePolicy(max_queue_size=3)})
    document = config_to_json(ModelConfig(instance_group=(group,), dynamic_batching=batching))
    resources = document["instance_group"][0]["rate_limiter"]["resources"]
    assert resources == [{"name": "R", "global": True, "count": 2}]
    assert document["dynamic_batching"]["priority_queue_policy"]["1"]["max_queue_size"] == 3
    assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ("{}", ModelConfig()),
        ('{"max_batch_size": "8"}', ModelConfig(max_batch_size=8)),
        (
            {"input": [{"data_type": "type_fp32", "dims": ["-1", 2]}]},
            ModelConfig(input=(ModelInput(data_type="TYPE_FP32", dims=(-1, 2)),)),
        ),
        ({"input": [{"data_type": 11}]}, ModelConfig(input=(ModelInput(data_type="TYPE_FP32"),))),
        ({"dynamic_batching": None}, ModelConfig()),
        (
            {"sequence_batching": {"direct": {"minimum_slot_utilization": 1}}},
            ModelConfig(
                sequence_batching=SequenceBatching(
                    direct=StrategyDirect(minimum_slot_utilization=1.0)
                )
            ),
        ),
        (
            {"parameters": {"k": {"string_value": "v"}}},
            ModelConfig(parameters={"k": ModelParameter("v")}),
        ),
        (
            {"dynamic_batching": {"priority_queue_policy": {"2": {}}}},
            ModelConfig(dynamic_batching=DynamicBatching(priority_queue_policy={2: QueuePolicy()})),
        ),
    ],
)
def test_reads_json(document: Any, wanted: ModelConfig) -> None:
    assert config_from_json(document) == wanted


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('{"a"', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "'model configuration' must be an object"),
        ({"foo": 1}, "unknown field 'foo'"),
        ({"input": [{"foo": 1}]}, r"unknown field 'input\[0\].foo'"),
        ({"input": {}}, "'input' must be an array"),
        ({"input": [3]}, r"'input\[0\]' must be an object"),
        ({"parameters": []}, "'parameters' must be an object"),
        ({"parameters": {"k": "v"}}, r"'parameters\[k\]' must be an object"),
        ({"max_batch_size": True}, "'max_batch_size' must be of type int"),
        ({"max_batch_size": 1.0}, "'max_batch_size' must be of type int"),
        ({"max_batch_size": "--1"}, "'max_batch_size' must be of type int"),
        ({"max_batch_size": "²"}, "'max_batch_size' must be of type int"),
        ({"max_batch_size": "9" * 5000}, "'max_batch_size' must be of type int"),
        ({"max_batch_size": 2**31}, "'max_batch_size' must be from -2147483648 to 2147483647"),
        ({"max_batch_size": "99999999999999999999"}, "'max_batch_size' must be from -2147483648"),
        ({"name": 1}, "'name' must be of type str"),
        ({"name": "\ud800"}, "'name' is not valid Unicode"),
        ({"input": [{"data_type": "FP32"}]}, r"'input\[0\].data_type' must be one of TYPE_INVALID"),
        ({"input": [{"data_type": 99}]}, r"'input\[0\].data_type' must be one of TYPE_INVALID"),
        ({"input": [{"data_type": True}]}, r"'input\[0\].data_type' must be one of TYPE_INVALID"),
    ],
)
def test_bad_json_names_the_field(document: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        config_from_json(document)


def test_text_leaves_defaults_out_and_escapes_strings() -> None:
    config = ModelConfig(
        name='a"\\\n\x01é',
        input=(ModelInput(name="A", data_type="TYPE_FP32", dims=(-1, 2)),),
        dynamic_batching=DynamicBatching(),
    )
    assert config_to_text(config).splitlines() == [
        r'name: "a\042\134\012\001é"',
        "input {",
        '  name: "A"',
        "  data_type: TYPE_FP32",
        "  dims: [ -1, 2 ]",
        "}",
        "dynamic_batching { }",
    ]


def test_a_parameter_that_is_absent_gives_the_default() -> None:
    config = config_from_json({"parameters": {"k": {"string_value": "v"}}})
    assert config.parameter("k") == "v"
    assert config.parameter("n") == ""
    assert config.parameter("n", "d") == "d"
