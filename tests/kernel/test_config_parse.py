"""Reading and writing `config.pbtxt`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.config.codec import config_from_json, config_to_json, config_to_text
from microkernel.config.model import (
    All,
    DynamicBatching,
    InitialState,
    ModelConfig,
    ModelInput,
    ModelParameter,
    PinnedMemory,
    QueuePolicy,
    Reshape,
    VersionPolicy,
    WarmupInput,
)
from microkernel.config.parse import parse_text, read_config
from microkernel.config.proto import config_message
from microkernel.errors import InvalidArgument

TWO = (ModelInput(name="A"), ModelInput(name="B"))
DIMS = (ModelInput(dims=(1, -1)),)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ModelConfig()),
        ('name: "m"', ModelConfig(name="m")),
        ("name: 'm'", ModelConfig(name="m")),
        ('name: "a" "b"', ModelConfig(name="ab")),
        ('# first\nname: "m" # last', ModelConfig(name="m")),
        ('name: "#"', ModelConfig(name="#")),
        ('name: "m", max_batch_size: 4;', ModelConfig(name="m", max_batch_size=4)),
        ("input { dims: [1, -1] }", ModelConfig(input=DIMS)),
        ("input { dims: 1 dims: -1 }", ModelConfig(input=DIMS)),
        ("input { dims: [1] dims: [-1] }", ModelConfig(input=DIMS)),
        ('input { name: "A" } input { name: "B" }', ModelConfig(input=TWO)),
        ('input: { name: "A" } input: { name: "B" }', ModelConfig(input=TWO)),
        ('input [ { name: "A" }, { name: "B" } ]', ModelConfig(input=TWO)),
        ('input: [ { name: "A" }, { name: "B" } ]', ModelConfig(input=TWO)),
        ("input [ ]", ModelConfig()),
        ("dynamic_batching { }", ModelConfig(dynamic_batching=DynamicBatching())),
        ("dynamic_batching: { }", ModelConfig(dynamic_batching=DynamicBatching())),
        ("input { reshape { shape: [ ] } }", ModelConfig(input=(ModelInput(reshape=Reshape()),))),
        ("version_policy: { all { } }", ModelConfig(version_policy=VersionPolicy(all=All()))),
        ("input { data_type: TYPE_FP32 }", ModelConfig(input=(ModelInput(data_type="TYPE_FP32"),))),
        ("input { data_type: 11 }", ModelConfig(input=(ModelInput(data_type="TYPE_FP32"),))),
        ("input { optional: true }", ModelConfig(input=(ModelInput(optional=True),))),
        (r'name: "\141\x62\n\"\\"', ModelConfig(name='ab\n"\\')),
        (r'name: "\303\xa9"', ModelConfig(name="é")),
        ('name: "é"', ModelConfig(name="é")),
        (
            'parameters { key: "k" value: { string_value: "v" } }',
            ModelConfig(parameters={"k": ModelParameter("v")}),
        ),
        (
            'parameters: { key: "k" value { string_value: "v" } } parameters { key: "n" }',
            ModelConfig(parameters={"k": ModelParameter("v"), "n": ModelParameter()}),
        ),
        (
            'parameters [ { key: "k" value { string_value: "v" } }, { key: "n" } ]',
            ModelConfig(parameters={"k": ModelParameter("v"), "n": ModelParameter()}),
        ),
        ('metric_tags { key: "k" value: "v" }', ModelConfig(metric_tags={"k": "v"})),
        (
            "dynamic_batching { priority_queue_policy { key: 2 value { timeout_action: DELAY } } }",
            ModelConfig(
                dynamic_batching=DynamicBatching(
                    priority_queue_policy={2: QueuePolicy(timeout_action="DELAY")}
                )
            ),
        ),
    ],
)
def test_accepts_every_form_of_the_text_format(text: str, wanted: ModelConfig) -> None:
    assert parse_text(text, "here") == wanted


def test_set_members_of_a_oneof_are_kept_at_their_default() -> None:
    config = parse_text(
        "sequence_batching { state { initial_state { zero_data: false } } }"
        'model_warmup { inputs { key: "A" value { zero_data: false } } }',
        "here",
    )
    assert config.sequence_batching is not None
    assert config.sequence_batching.state[0].initial_state == (InitialState(zero_data=False),)
    assert config.model_warmup[0].inputs == {"A": WarmupInput(zero_data=False)}


def test_a_message_given_empty_is_not_an_absent_one() -> None:
    config = parse_text("optimization { input_pinned_memory { } }", "here")
    assert config.optimization is not None
    assert config.optimization.input_pinned_memory == PinnedMemory(enable=False)
    assert config.optimization.output_pinned_memory is None


def test_a_float_keeps_the_digits_that_were_written() -> None:
    config = parse_text("sequence_batching { direct { minimum_slot_utilization: 0.1 } }", "here")
    assert config.sequence_batching is not None
    assert config.sequence_batching.direct is not None
    assert config.sequence_batching.direct.minimum_slot_utilization == 0.1


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ('name: "m"\n  foo: 1', ["line 2, column 3: ", '"foo"']),
        ("input {\n  data_type: TYPE_FOO }", ["line 2, column 14: ", "TYPE_FOO", "'data_type'"]),
        ('max_batch_size: "x"', ["line 1, column 17: ", '"x"', "'max_batch_size'"]),
        ("max_batch_size: 1.5", ["1.5", "'max_batch_size'"]),
        ("max_batch_size: 99999999999", ["99999999999", "'max_batch_size'"]),
        ("input { dims: [1, a] }", ["line 1, column 19: ", "'dims'"]),
        ('input { name: "dims: 1" optional: maybe }', ["'optional'"]),
        ("input { # dims: 1\n optional: maybe }", ["line 2", "'optional'"]),
        ("max_batch_size: 1 max_batch_size: 2", ["max_batch_size"]),
        ("dynamic_batching { } sequence_batching { }", ["dynamic_batching", "sequence_batching"]),
        ("input: 3", ["'input'"]),
        ('name: "m', ["line 1, column 7: ", "'name'"]),
        ("input {", ["'input'"]),
        (r'name: "\xff"', ["utf-8", "'name'"]),
        ("input { data_type: 99 }", ["'input[0].data_type'", "99", "TYPE_FP32"]),
        ("optimization { priority: 7 }", ["'optimization.priority'", "PRIORITY_MAX"]),
        ("[ex.tension]: 1", ["line 1", "extension"]),
    ],
)
def test_says_where_and_what_is_wrong(text: str, fragments: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_text(text, "the/config.pbtxt")
    message = str(caught.value)
    assert message.startswith("failed to read text proto from the/config.pbtxt: ")
    assert [fragment for fragment in fragments if fragment not in message] == []


def test_a_reason_that_names_its_field_gets_no_second_name() -> None:
    with pytest.raises(InvalidArgument, match=r'no field named "foo"\.$'):
        parse_text("input { name: 'A' foo: 1 }", "here")


def test_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_bytes('name: "é"\r\nmax_batch_size: 2\r\n'.encode())
    assert read_config(path) == ModelConfig(name="é", max_batch_size=2)


@pytest.mark.parametrize(
    ("content", "reason"), [(b'name: "\xff"', "byte 7 is not UTF-8 text"), (b"foo: 1", "line 1")]
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"failed to read text proto from {path}: {reason}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    with pytest.raises(InvalidArgument) as caught:
        read_config(path)
    assert str(caught.value) == (
        f"failed to read text proto from {path}: No such file or directory"
    )


RANGES = {
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: st.text(st.characters(codec="utf-8"), max_size=6),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_FLOAT: st.floats(-(2.0**127), 2.0**127, width=32).map(
        lambda value: float(str(np.float32(value)))
    ),
}


def of_field(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        key, value = message.fields_by_name["key"], message.fields_by_name["value"]
        return st.dictionaries(of_field(key), of_field(value), max_size=2)
    one: st.SearchStrategy[Any]
    if message is not None:
        one = documents(message)
    elif field.enum_type is not None:
        one = st.sampled_from([value.name for value in field.enum_type.values])
    else:
        one = RANGES[field.type]
    return st.lists(one, max_size=2) if field.is_repeated else one


def documents(message: Descriptor) -> st.SearchStrategy[dict[str, Any]]:
    """JSON forms of a message, at most one member of each oneof and few fields at a time."""
    groups: dict[str, list[FieldDescriptor]] = {}
    for field in message.fields:
        oneof = field.containing_oneof
        groups.setdefault(oneof.name if oneof else field.name, []).append(field)
    if not groups:
        return st.just({})

    @st.composite
    def one(draw: st.DrawFn) -> dict[str, Any]:
        chosen = draw(st.lists(st.sampled_from(sorted(groups)), unique=True, max_size=4))
        picked = [draw(st.sampled_from(groups[name])) for name in chosen]
        return {field.name: draw(of_field(field)) for field in picked}

    return one()


TOP: Any = config_message().DESCRIPTOR  # typed as one of two classes by its stubs
CONFIGS = documents(TOP).map(config_from_json)


@settings(deadline=None)
@given(CONFIGS)
def test_what_is_written_as_text_reads_back(config: ModelConfig) -> None:
    assert parse_text(config_to_text(config), "here") == config


@settings(deadline=None)
@given(CONFIGS)
def test_what_is_written_as_json_reads_back(config: ModelConfig) -> None:
    assert config_from_json(config_to_json(config)) == config


TOKENS = [
    "name",
    "input",
    "dims",
    "data_type",
    ":",
    "{",
    "}",
    "[",
    "]",
    '"',
    "1",
    "-1",
    "TYPE_INT8",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from([*TOKENS, "\n", "#", ",", "é", "\x00", "<", ">", "\\"])))
def test_any_text_is_a_configuration_or_our_error(tokens: list[str]) -> None:
    try:
        config = parse_text(" ".join(tokens), "here")
    except InvalidArgument as error:
        assert str(error).startswith("failed to read text proto from here: ")  # noqa: PT017
    else:
        assert parse_text(config_to_text(config), "here") == config
