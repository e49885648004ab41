import contextlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel import (
    DATA_TYPES,
    DynamicBatching,
    InferRequest,
    InferResponse,
    InstanceGroup,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    ModelParameter,
    Parameter,
    RegionPart,
    Sequence,
    Tensor,
)
from microkernel_grpc.decode import decode, parse, parse_short
from microkernel_grpc.encode import encode, encode_streamed, model_config
from microkernel_grpc.schema import message
from microkernel_grpc.wire import MOST_FIELDS, crowded, join_raw, split_raw


def build(**fields: Any) -> Any:
    return message("ModelInferRequest")(**{"model_name": "m", **fields})


def entry(**fields: Any) -> dict[str, Any]:
    return {"name": "X", "datatype": "FP32", "shape": [2], **fields}


def read(infer: Any) -> InferRequest:
    return decode(*parse(infer.SerializeToString()))


def region(name: str, size: int, offset: int | None = None) -> dict[str, Any]:
    """The parameters of a tensor in shared memory."""
    given = {"shared_memory_region": {"string_param": name}} | {
        "shared_memory_byte_size": {"int64_param": size}
    }
    return given if offset is None else {**given, "shared_memory_offset": {"int64_param": offset}}


def raw(values: Any, dtype: str = "<f4") -> bytes:
    return np.array(values, dtype).tobytes()


def test_a_whole_request() -> None:
    request = read(
        build(
            model_version="3",
            id="seven",
            inputs=[entry(), entry(name="Y", shape=[1])],
            outputs=[{"name": "B"}, {"name": "A"}],
            raw_input_contents=[raw([1, 2]), raw([3]), b"surplus"],
            parameters={
                "sequence_id": {"int64_param": -1},
                "sequence_start": {"bool_param": True},
                "priority": {"uint64_param": 2},
                "timeout": {"int64_param": 9},
                "text": {"string_param": "x"},
                "count": {"int64_param": -3},
                "on": {"bool_param": False},
                "half": {"double_param": 0.5},
                "triton_enable_empty_final_response": {"bool_param": True},
            },
        )
    )
    assert (request.model_name, request.version, request.id) == ("m", 3, "seven")
    assert request.outputs == ("B", "A")
    assert [tensor.as_numpy().tolist() for tensor in request.inputs] == [[1, 2], [3]]
    assert request.sequence == Sequence(2**64 - 1, start=True)
    assert (request.priority, request.timeout_us) == (2, 9)
    assert request.parameters == {"text": "x", "count": -3, "on": False, "half": 0.5}


@pytest.mark.parametrize(
    ("datatype", "contents", "values"),
    [
        ("BOOL", {"bool_contents": [True, False]}, [True, False]),
        ("INT8", {"int_contents": [-1, 257]}, [-1, 1]),
        ("INT16", {"int_contents": [1, 65536 + 7]}, [1, 7]),
        ("INT32", {"int_contents": [-(2**31), 5]}, [-(2**31), 5]),
        ("INT64", {"int64_contents": [-(2**63), 5]}, [-(2**63), 5]),
        ("UINT8", {"uint_contents": [255, 257]}, [255, 1]),
        ("UINT16", {"uint_contents": [1, 65537]}, [1, 1]),
        ("UINT32", {"uint_contents": [2**32 - 1, 0]}, [2**32 - 1, 0]),
        ("UINT64", {"uint64_contents": [2**64 - 1, 0]}, [2**64 - 1, 0]),
        ("FP32", {"fp32_contents": [0.5, 2]}, [0.5, 2]),
        ("FP64", {"fp64_contents": [0.1, 2]}, [0.1, 2]),
        ("BYTES", {"bytes_contents": [b"a\xff", b""]}, [b"a\xff", b""]),
    ],
)
def test_typed_contents(datatype: str, contents: dict[str, Any], values: list[Any]) -> None:
    request = read(build(inputs=[entry(datatype=datatype, contents=contents)]))
    assert request.inputs[0].datatype is DATA_TYPES[datatype]
    assert request.inputs[0].as_numpy().tolist() == values


def test_classes_asked_for() -> None:
    top = {"classification": {"int64_param": 3}}
    request = read(build(outputs=[{"name": "A", "parameters": top}, {"name": "B"}]))
    assert request.outputs == ("A", "B")
    assert request.classifications == {"A": 3}


def test_tensors_in_shared_memory() -> None:
    shared = entry(parameters=region("r", 8, 16))
    output = {"name": "A", "parameters": region("s", 4)}
    inputs = [shared, entry(name="Y", shape=[1])]
    request = read(
        build(inputs=inputs, raw_input_contents=[raw([7])], outputs=[output, {"name": "B"}])
    )
    assert request.shared_inputs == {"X": RegionPart("r", 8, 16)}
    assert request.shared_outputs == {"A": RegionPart("s", 4, 0)}
    assert request.inputs[0].nbytes == 0
    assert request.inputs[1].as_numpy().tolist() == [7]  # the only one that takes a raw entry


def test_forwarded_parameters_beat_those_of_the_message() -> None:
    infer = build(parameters={"a": {"string_param": "x"}, "b": {"int64_param": 1}})
    assert decode(infer, [], {"a": "y", "c": "z"}).parameters == {"a": "y", "b": 1, "c": "z"}


def test_typed_contents_of_no_elements() -> None:
    request = read(build(inputs=[entry(shape=[0], contents={})]))
    assert request.inputs[0].nbytes == 0


@pytest.mark.parametrize(
    ("fields", "error", "message_part"),
    [
        (
            {"inputs": [entry()]},
            InvalidArgument,
            "unable to find data for input tensor 'X'",
        ),
        (
            {"inputs": [entry(), entry(name="Y")], "raw_input_contents": [b""]},
            InvalidArgument,
            "unable to find data for input tensor 'Y'",
        ),
        (
            {"inputs": [entry(contents={"fp32_contents": [1, 2]})], "raw_input_contents": [b""]},
            InvalidArgument,
            "contents field must not be specified when using raw_input_contents",
        ),
        (
            {"inputs": [entry(contents={"fp64_contents": [1, 2]})]},
            InvalidArgument,
            "unexpected explicit tensor data for input tensor 'X' for model 'm' of type 'FP32', "
            "expected datatype 'FP64'",
        ),
        (
            {"inputs": [entry(datatype="FP16", contents={"fp32_contents": [1, 2]})]},
            InvalidArgument,
            "unexpected explicit tensor data for input tensor 'X' for model 'm' of type 'FP16'",
        ),
        (
            {"inputs": [entry(contents={"fp32_contents": [1], "int_contents": [1]})]},
            InvalidArgument,
            "binary data was already supplied",
        ),
        (
            {"inputs": [entry(datatype="FP9", contents={"fp32_contents": [1, 2]})]},
            InvalidArgument,
            "unexpected explicit tensor data for input tensor 'X' for model 'm' of type "
            "'<invalid>', expected datatype 'FP32'",
        ),
        (
            {"inputs": [entry(shape=[1, -1])], "id": "seven"},
            InvalidArgument,
            "[request id: seven] All input dimensions should be specified for input 'X' for model "
            "'m', got [1, -1]",
        ),
        (
            {"inputs": [entry(parameters={"shared_memory_region": {"string_param": "r"}})]},
            InvalidArgument,
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' "
            "parameter for input tensor 'X'",
        ),
        (
            {
                "inputs": [
                    entry(parameters=region("r", 8), contents={"fp32_contents": [1]}),
                ]
            },
            InvalidArgument,
            "unexpected 'content' provided when using shared memory",
        ),
        (
            {"inputs": [entry(parameters={"shared_memory_offset": {"int64_param": 1}})]},
            InvalidArgument,
            "'shared_memory_offset' can not be specified without 'shared_memory_region'",
        ),
        (
            {"outputs": [{"name": "A", "parameters": {"classification": {"int64_param": 0}}}]},
            InvalidArgument,
            "invalid value 0 for 'classification' parameter for output tensor 'A', expected 1 or "
            "more.",
        ),
        (
            {"outputs": [{"name": "A", "parameters": {"classification": {"uint64_param": 1}}}]},
            InvalidArgument,
            "invalid value type for 'classification' parameter for output tensor 'A', expected "
            "int64_param.",
        ),
        (
            {
                "outputs": [
                    {
                        "name": "A",
                        "parameters": {
                            "classification": {"int64_param": 1},
                            "shared_memory_region": {"string_param": "r"},
                        },
                    }
                ]
            },
            InvalidArgument,
            "output 'A' can't set both 'shared_memory_region' and 'classification'",
        ),
        (
            {
                "outputs": [
                    {"name": "A", "parameters": {**region("r", 8), "shared_memory_region": {}}}
                ]
            },
            InvalidArgument,
            "invalid value type for 'shared_memory_region' parameter for output tensor 'A', "
            "expected string_param.",
        ),
        (
            {"model_version": "x"},
            InvalidArgument,
            "failed to get model version from specified version string",
        ),
        (
            {"parameters": {"timeout": {"uint64_param": 1}}},
            InvalidArgument,
            "invalid value type for 'timeout' parameter, expected int64_param.",
        ),
        (
            {"parameters": {"priority": {"int64_param": -1}}},
            InvalidArgument,
            "invalid value -1 for 'priority' parameter",
        ),
        (
            {"parameters": {"sequence_id": {"bool_param": True}}},
            InvalidArgument,
            "invalid value type for 'sequence_id' parameter, expected int64_param or string_param.",
        ),
        (
            {"parameters": {"mine": {"uint64_param": 1}}},
            InvalidArgument,
            "invalid value type for 'mine' parameter, expected",
        ),
        (
            {"parameters": {"mine": {}}},
            InvalidArgument,
            "invalid value type for 'mine' parameter, expected",
        ),
        (
            {"parameters": {"triton_x": {"bool_param": True}}},
            InvalidArgument,
            "parameter keys starting with 'triton_' are reserved",
        ),
    ],
)
def test_bad_requests(
    fields: dict[str, Any], error: type[MicrokernelError], message_part: str
) -> None:
    with pytest.raises(error) as caught:
        read(build(**fields))
    assert type(caught.value) is error
    assert message_part in str(caught.value)


def test_large_raw_contents_are_views_on_the_message() -> None:
    values = np.arange(100_000, dtype="<f4")
    inputs = [entry(shape=[100_000]), entry(name="Y", shape=[1])]
    packed = build(
        inputs=inputs, raw_input_contents=[values.tobytes(), raw([7])]
    ).SerializeToString()
    large, small = decode(*parse(packed)).inputs
    assert isinstance(large.data, memoryview)
    assert large.data.obj is packed
    np.testing.assert_array_equal(large.as_numpy(), values)
    assert small.as_numpy().tolist() == [7]


@given(st.lists(st.binary(max_size=300), max_size=4), st.text(max_size=200), st.booleans())
@settings(deadline=None, max_examples=100)
def test_cutting_out_raw_contents_loses_nothing(
    contents: list[bytes], text: str, with_input: bool
) -> None:
    whole = build(id=text, inputs=[entry()] if with_input else [], raw_input_contents=contents)
    split = split_raw(whole.SerializeToString())
    assert split is not None
    head, found = split
    assert [bytes(view) for view in found] == contents
    rest = message("ModelInferRequest")()
    rest.ParseFromString(head)
    whole.ClearField("raw_input_contents")
    assert rest == whole


@given(st.binary(max_size=100))
@settings(deadline=None, max_examples=200)
def test_any_bytes_give_a_request_or_one_of_our_errors(packed: bytes) -> None:
    split = split_raw(packed)
    if split is not None:
        assert len(split[0]) + sum(map(len, split[1])) <= len(packed)
    with contextlib.suppress(MicrokernelError):
        decode(*parse(packed))


@pytest.mark.parametrize(
    "packed",
    [
        b"\x3a",  # no length
        b"\x3a\x05abc",  # too short
        b"\x38\x01",  # not length-delimited
        b"\xff" * 20,  # a tag without end
        b"\x0a\x00" * 3000,  # many tiny fields
        b"\x3a\x00" * 3000,  # many tiny raw contents
    ],
)
def test_what_is_unusual_is_left_to_protobuf(packed: bytes) -> None:
    assert split_raw(packed) is None


def wire(number: int, content: bytes) -> bytes:
    """A field of a message that is not a number."""
    prefix, length = bytearray([number << 3 | 2]), len(content)
    while length > 127:
        prefix.append(length & 127 | 128)
        length >>= 7
    return bytes([*prefix, length]) + content


MANY = MOST_FIELDS + 1
STRINGS = wire(5, wire(5, wire(8, b"") * MANY))
CROWDS = {
    "raw contents": wire(7, b"") * MANY,
    "surplus raw contents": wire(5, b"") + wire(7, b"abcd") + wire(7, b"") * MANY,
    "inputs": wire(5, b"") * MANY,
    "outputs": wire(6, b"") * MANY,
    "parameters": wire(4, b"") * MANY,
    "parameters of inputs": wire(5, wire(4, b"") * (MANY // 2)) * 10,
    "dims one by one": wire(5, b"\x18\x01" * MANY * 5),
    "unknown fields": b"\x48\x01\x51\0\0\0\0\0\0\0\0\x5d\0\0\0\0\x63\x64" * (MANY // 5 + 1),
}


@pytest.mark.parametrize("name", CROWDS)
def test_messages_of_too_many_parts_are_refused(name: str) -> None:
    packed = CROWDS[name]
    assert crowded(packed, (5, 6))
    assert parse_short(packed) is None
    with pytest.raises(InvalidArgument, match=f"more than {MOST_FIELDS} fields"):
        parse(packed)


@pytest.mark.parametrize(
    "packed",
    [wire(7, b"") * MOST_FIELDS, STRINGS, wire(7, bytes(1 << 20)), b"\x3a\xff", b"\xff" * 20, b""],
)
def test_others_are_not_crowded(packed: bytes) -> None:
    assert not crowded(packed, (5, 6))


def test_an_input_of_too_many_dims() -> None:
    packed = wire(5, wire(1, b"X") + wire(3, b"\1" * (300 << 10))) + wire(7, b"")
    assert parse_short(packed) is None
    with pytest.raises(InvalidArgument, match="unexpected shape for input 'X' for model ''"):
        parse(packed)


@pytest.mark.parametrize(
    ("packed", "long"),
    [
        (wire(7, b"abcd"), False),
        (wire(7, bytes(1 << 20)), False),
        (wire(7, b"") * 1000 + wire(7, bytes(1 << 20)), False),
        (wire(7, b"") * 8193, True),
        (STRINGS, False),
        (STRINGS * 8, True),
        (STRINGS * 8 + wire(7, b"abcd"), True),
    ],
)
def test_what_takes_long(packed: bytes, *, long: bool) -> None:
    assert (parse_short(packed) is None) is long
    assert parse(packed)[0].IsInitialized()


def test_typed_contents_of_several_turns() -> None:
    values = list(range(20_000))
    request = read(build(inputs=[entry(shape=[20_000], contents={"fp32_contents": values})]))
    assert request.inputs[0].as_numpy().tolist() == values


@given(st.lists(st.binary(max_size=300), max_size=4))
@settings(deadline=None, max_examples=100)
def test_raw_contents_added_by_hand_are_read_by_protobuf(contents: list[bytes]) -> None:
    head: Any = message("ModelInferResponse")(model_name="m")
    packed = join_raw(head.SerializeToString(), [memoryview(c) for c in contents])
    read_back: Any = message("ModelInferResponse")()
    read_back.ParseFromString(packed)
    assert read_back.model_name == "m"
    assert list(read_back.raw_output_contents) == contents


@given(st.lists(st.binary(max_size=300), max_size=4))
@settings(deadline=None, max_examples=100)
def test_a_streamed_answer_is_the_final_one_in_its_envelope(contents: list[bytes]) -> None:
    outputs = tuple(
        Tensor(f"O{i}", DATA_TYPES["UINT8"], (len(data),), data) for i, data in enumerate(contents)
    )
    response = InferResponse("m", 3, "seven", outputs)
    streamed: Any = message("ModelStreamInferResponse")()
    streamed.ParseFromString(encode_streamed(response))
    plain: Any = message("ModelInferResponse")()
    plain.ParseFromString(encode(response))
    plain.parameters["triton_final_response"].bool_param = True
    assert streamed == message("ModelStreamInferResponse")(infer_response=plain)


def test_every_output_has_a_raw_entry() -> None:
    large = memoryview(bytes(20_000))
    outputs = (
        Tensor("A", DATA_TYPES["INT8"], (20_000,), large),
        Tensor("B", DATA_TYPES["FP32"], (0, 2), b""),
        Tensor("C", DATA_TYPES["BYTES"], (1,), struct.pack("<I", 1) + b"x"),
    )
    parameters: dict[str, Parameter] = {"a": True, "b": 2, "c": "d", "e": 0.5}
    found: Any = message("ModelInferResponse")()
    found.ParseFromString(encode(InferResponse("m", 3, "seven", outputs, parameters)))
    assert (found.model_name, found.model_version, found.id) == ("m", "3", "seven")
    assert [(o.name, o.datatype, list(o.shape)) for o in found.outputs] == [
        ("A", "INT8", [20_000]),
        ("B", "FP32", [0, 2]),
        ("C", "BYTES", [1]),
    ]
    assert list(found.raw_output_contents) == [bytes(20_000), b"", b"\1\0\0\0x"]
    kinds = {key: value.WhichOneof("parameter_choice") for key, value in found.parameters.items()}
    assert kinds == {
        "a": "bool_param",
        "b": "int64_param",
        "c": "string_param",
        "e": "double_param",
    }


def test_a_response_beyond_what_grpc_carries() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 2**31

    output = Tensor("A", DATA_TYPES["INT8"], (2**31,), Huge())
    with pytest.raises(InvalidArgument, match="exceeds gRPC's byte size limit"):
        encode(InferResponse("m", 1, "", (output,)))


def test_a_configuration_as_a_message() -> None:
    config = ModelConfig(
        name="m",
        max_batch_size=4,
        input=(ModelInput("X", "TYPE_FP32", dims=(-1, 3)),),
        dynamic_batching=DynamicBatching(max_queue_delay_microseconds=100),
        instance_group=(InstanceGroup(kind="KIND_CPU", count=2),),
        parameters={"key": ModelParameter("value")},
    )
    answer: Any = model_config(config)
    found = answer.config
    assert (found.name, found.max_batch_size, list(found.input[0].dims)) == ("m", 4, [-1, 3])
    assert found.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert found.dynamic_batching.max_queue_delay_microseconds == 100
    assert found.instance_group[0].count == 2
    assert found.parameters["key"].string_value == "value"
