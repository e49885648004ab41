"""What fuzzing has found, as tests of its own."""

import struct
import tracemalloc
from typing import Any

import pytest

from microkernel import (
    DATA_TYPES,
    InferResponse,
    Internal,
    InvalidArgument,
    ModelConfig,
    ModelOutput,
    NotFound,
    Tensor,
)
from microkernel.config.codec import config_from_json
from microkernel.config.parse import parse_text
from microkernel.repository.override import Unpacked
from microkernel.request import Answer
from microkernel.stats import Execution
from microkernel.workers import descriptors
from microkernel.workers.descriptors import Schema
from microkernel.workers.wire import HEADER_SIZE
from microkernel_http import document

SCHEMA = Schema.of(
    ModelConfig(output=(ModelOutput("A", "TYPE_FP32"), ModelOutput("B", "TYPE_FP32")))
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("end", [b"", b"\\", b"\n"])
def test_a_string_without_end_takes_time_in_proportion_to_its_length(end: bytes) -> None:
    body = b'{"a": "' + 500_000 * b'\\"' + end
    with pytest.raises(Internal, match="failed to parse the request JSON buffer"):
        document.parse(body)


@pytest.mark.timeout(20)
def test_the_message_of_an_error_is_cut_before_it_is_encoded() -> None:
    pytest.importorskip("grpc", reason="the extra 'grpc' is missing")
    from microkernel_grpc.status import details_of

    details = details_of(NotFound("no model " + 20_000_000 * "\u00e9"))
    assert details.startswith("no model \u00e9")
    assert 100 < len(details) < 8000


def test_infinity_is_told_from_a_string_that_spells_it() -> None:
    body = b'{"Inf": [Inf, -Inf, "Inf", "\\"Inf", "\\\\"], "b": Inf}'
    infinity = float("inf")
    wanted = {"Inf": [infinity, -infinity, "Inf", '"Inf', "\\"], "b": infinity}
    assert document.parse(body) == wanted


@pytest.mark.parametrize("path", ["a\0b", "\0", "1/\0"])
def test_a_file_of_a_load_request_has_no_null_byte_in_its_path(path: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot be written: it holds a null byte"):
        Unpacked("m", {path: b""})


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("a" * 2_000_000, "its path has 2000000 characters in 1 parts"),
        ("a/" * 1_000_000, "its path has 2000000 characters in 1000001 parts"),
        ("a/" * 32 + "b", "its path has 65 characters in 33 parts, the most are 1024 in 32"),
    ],
)
def test_a_file_of_a_load_request_has_no_endless_path(path: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        Unpacked("m", {path: b""})


def test_a_file_of_a_load_request_may_lie_deep_and_have_a_long_path() -> None:
    path = "/".join(("b" * 30,) * 32)
    unpacked = Unpacked("m", {path: b"x"})
    try:
        assert (unpacked.directory / path).read_bytes() == b"x"
    finally:
        unpacked.close()


def test_a_number_beyond_those_of_any_enumeration_is_a_fault_of_the_configuration() -> None:
    text = "instance_group { kind: 99999999999 }"
    with pytest.raises(InvalidArgument, match=r"failed to read text proto from here: .*9999"):
        parse_text(text, "here")


@pytest.mark.parametrize(
    "document",
    [
        {"max_batch_size": 2**31},
        {"optimization": {"gather_kernel_buffer_threshold": -1}},
        {"dynamic_batching": {"max_queue_delay_microseconds": -1}},
        {"sequence_batching": {"direct": {"minimum_slot_utilization": 1e300}}},
    ],
)
def test_what_no_client_could_be_told_is_no_configuration(document: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"must be (from|a number of 32 bits)"):
        config_from_json(document)


def test_a_fault_behind_a_long_string_is_found_with_little_memory() -> None:
    text = 'platform: "' + "n" * 100_000 + '" !'
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument, match="line 1, column 100014"):
            parse_text(text, "here")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * len(text)


FORGED: dict[str, tuple[int, int]] = {
    "a place before the block": (9, -8),
    "a place beyond the block": (9, 128),
    "more bytes than the block has": (10, 4096),
    "fewer bytes than the shape wants": (10, 4),
    "a shape below zero": (12, -2),
    "another data type": (8, 12),
}


@pytest.mark.parametrize(("place", "value"), FORGED.values(), ids=FORGED.keys())
def test_a_worker_cannot_make_up_an_output(place: int, value: int) -> None:
    body, block = _result()
    struct.pack_into("<q", body, 4 + 8 * place, value)
    with pytest.raises(ValueError, match="not as long as it says"):
        descriptors.read_result(bytes(body), SCHEMA, block, 1)


@pytest.mark.parametrize("parameters", [b"[1]", b"7", b'{"a":[]}', b'{"a":null}'])
def test_the_parameters_of_a_response_are_a_mapping_of_scalars(parameters: bytes) -> None:
    with pytest.raises(ValueError, match="parameters"):
        descriptors.read_parameters(parameters)


def _result() -> tuple[bytearray, memoryview]:
    """The descriptor of a response with one output of two numbers, and its block."""
    output = Tensor("A", DATA_TYPES["FP32"], (2,), bytes(8))
    outcomes = [InferResponse("m", 1, "", (output,))]
    offsets, total = descriptors.place(outcomes)
    message = descriptors.result_message(outcomes, offsets, SCHEMA, Execution(1, 2, 3, 4))
    block = memoryview(bytes(total))
    body = message[HEADER_SIZE:]
    ((answer,),) = (descriptors.read_result(body, SCHEMA, block, 1)[1],)
    assert isinstance(answer, Answer)
    return bytearray(body), block
