"""What must hold for every request that a decoder accepts, whatever the protocol."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from microkernel import (
    DATA_TYPES,
    InferRequest,
    InferResponse,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Tensor,
    encode_bytes,
)
from microkernel.models.checking import RequestChecker
from microkernel.workers import descriptors
from microkernel.workers.descriptors import Schema
from microkernel.workers.wire import HEADER_SIZE
from microkernel_grpc import encode as grpc_encode
from microkernel_grpc.schema import message
from microkernel_http.decode import ALL_BINARY, ALL_JSON, HEADER_LENGTH, OutputForms
from microkernel_http.encode import encode as http_encode

CONFIG = ModelConfig(
    name="m",
    backend="python",
    max_batch_size=0,
    input=tuple(
        ModelInput(name=kind, data_type=row.config_name, dims=(-1,), optional=True)
        for kind, row in DATA_TYPES.items()
    ),
    output=tuple(
        ModelOutput(name=kind, data_type=row.config_name, dims=(-1,))
        for kind, row in DATA_TYPES.items()
    ),
)
"""A model with an optional input and an output of each data type, named like it."""
_CHECKER, _SCHEMA = RequestChecker(CONFIG), Schema.of(CONFIG)


def check_request(request: InferRequest, forms: OutputForms = ALL_BINARY) -> None:
    """The request is what the kernel relies on; what passes its checks reaches a worker unchanged,
    and comes back to the client as it was."""
    check_fields(request)
    with contextlib.suppress(InvalidArgument):
        checked = _CHECKER.check(request)
        check_worker_sees(checked.request)
        answer = InferResponse("m", 1, request.id, checked.request.inputs)
        check_grpc_answer(answer)
        check_http_answer(answer, ALL_BINARY)
        for each in (forms, ALL_JSON):
            with contextlib.suppress(InvalidArgument):  # FP16 and BF16 are no JSON
                check_http_answer(answer, each)


def check_fields(request: InferRequest) -> None:
    """Types and ranges of what is not tensors."""
    request.id.encode()
    assert 0 <= request.priority < 2**64
    assert 0 <= request.timeout_us < 2**64
    assert -1 <= request.version < 2**63
    for key, value in request.parameters.items():
        key.encode()
        assert type(value) in (bool, int, float, str)
        assert type(value) is not int or -(2**63) <= value < 2**64
    for part in (*request.shared_inputs.values(), *request.shared_outputs.values()):
        part.region.encode()
        assert type(part.byte_size) is type(part.offset) is int
    for tensor in request.inputs:
        assert all(type(size) is int and 0 <= size < 2**63 for size in tensor.shape)


def plain(tensors: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    """Tensors to be compared."""
    return [(t.name, t.datatype.name, tuple(t.shape), bytes(t.data)) for t in tensors]


def check_worker_sees(request: InferRequest) -> None:
    """A worker gets the request that the server sends."""
    plan = descriptors.plan([request], _SCHEMA)
    block = memoryview(bytearray(plan.total))
    descriptors.gather(plan, block)
    sent = descriptors.execute_message(plan, [1], _SCHEMA, (1, 0, 0))
    batch = descriptors.read_execute(sent[HEADER_SIZE:], _SCHEMA, block, ("m", 1))
    assert plain(batch.requests[0].inputs) == plain(request.inputs)
    assert batch.requests[0].id == request.id
    assert repr(batch.requests[0].parameters) == repr(dict(request.parameters))


def check_grpc_answer(answer: InferResponse) -> None:
    """What protobuf reads of an answer is what was to be sent."""
    read: Any = message("ModelInferResponse")()
    read.ParseFromString(grpc_encode.encode(answer))
    found = [
        (o.name, o.datatype, tuple(o.shape), raw)
        for o, raw in zip(read.outputs, read.raw_output_contents, strict=True)
    ]
    assert found == plain(answer.outputs)
    assert read.id == answer.id


def check_http_answer(answer: InferResponse, forms: OutputForms) -> None:
    """What a JSON parser and a count of bytes read of an answer is what was to be sent."""
    encoded = http_encode(answer, forms)
    body = b"".join(encoded.buffers)
    length = int(encoded.headers.get(HEADER_LENGTH, len(body)))
    document, position, found = (
        json.loads(body[:length].decode("utf-8", "surrogateescape")),
        length,
        [],
    )
    assert document.get("id", "") == answer.id
    for entry, sent in zip(document["outputs"], answer.outputs, strict=True):
        if "data" in entry:
            assert _stands_for(entry["data"], sent)
            raw = sent.data
        else:
            end = position + entry["parameters"]["binary_data_size"]
            raw, position = body[position:end], end
        found.append((entry["name"], entry["datatype"], tuple(entry["shape"]), bytes(raw)))
    assert found == plain(answer.outputs)
    assert position == len(body)


def _stands_for(read: list[Any], sent: Tensor) -> bool:
    """Whether the elements that were read are those that were to be sent."""
    if sent.datatype.name == "BYTES":
        again = encode_bytes([text.encode("utf-8", "surrogateescape") for text in read])
        return again == bytes(sent.data)
    kind = sent.datatype.numpy
    floats = kind is not None and kind.kind == "f"
    with np.errstate(over="ignore"):
        return np.array_equal(np.array(read, kind), np.frombuffer(sent.data, kind), floats)
