"""The messages of gRPC."""

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

from fuzz_mutations import mutate_bytes, mutate_message
from fuzz_requests import CONFIG, check_request
from fuzz_targets import Target
from google.protobuf.message import DecodeError

from microkernel import (
    DATA_TYPES,
    InferRequest,
    InvalidArgument,
    MicrokernelError,
    encode_bytes,
)
from microkernel.testing import FakeModel, FakeServer
from microkernel_grpc import reflection
from microkernel_grpc.calls import Calls
from microkernel_grpc.decode import Buffer, decode, parse
from microkernel_grpc.schema import Method, message, methods
from microkernel_grpc.status import details_of, status_of
from microkernel_grpc.wire import split_raw

_CONTENTS: dict[str, dict[str, Any]] = {
    "BOOL": {"bool_contents": [True, False]},
    **{kind: {"int_contents": [1, -2]} for kind in ("INT8", "INT16", "INT32")},
    **{kind: {"uint_contents": [1, 300]} for kind in ("UINT8", "UINT16", "UINT32")},
    "INT64": {"int64_contents": [1, -2]},
    "UINT64": {"uint64_contents": [1, 2]},
    "FP32": {"fp32_contents": [1.5, 2]},
    "FP64": {"fp64_contents": [1.5, 2]},
    "BYTES": {"bytes_contents": [b"a", b"\xff"]},
}
_PARAMETERS = {
    "sequence_id": {"int64_param": 5},
    "sequence_start": {"bool_param": True},
    "priority": {"uint64_param": 1},
    "mine": {"double_param": 0.5},
    "triton_enable_empty_final_response": {"bool_param": True},
}
_SHARED = {
    "shared_memory_region": {"string_param": "r"},
    "shared_memory_byte_size": {"int64_param": 8},
}


def _entry(kind: str, **rest: Any) -> dict[str, Any]:
    return {"name": kind, "datatype": kind, "shape": [2], **rest}


def _request(*inputs: dict[str, Any], **rest: Any) -> bytes:
    made: bytes = message("ModelInferRequest")(
        model_name="m", id="7", inputs=inputs, **rest
    ).SerializeToString()
    return made


def _raw(elements: int) -> list[bytes]:
    return [
        encode_bytes(["ab"] * elements) if row.size == 0 else bytes(elements * row.size)
        for row in DATA_TYPES.values()
    ]


def _seeds() -> list[bytes]:
    typed = [_entry(kind, contents=contents) for kind, contents in _CONTENTS.items()]
    many = [_entry(kind) | {"shape": [600]} for kind in DATA_TYPES]
    outputs = [
        {"name": "FP32", "parameters": {"classification": {"int64_param": 2}}},
        {"name": "INT8", "parameters": _SHARED},
    ]
    return [
        _request(*typed, parameters=_PARAMETERS, outputs=outputs),
        *(_request(entry) for entry in typed),
        _request(*map(_entry, DATA_TYPES), raw_input_contents=_raw(2)),
        _request(*many, raw_input_contents=_raw(600), model_version="1"),
        _request(_entry("FP32", parameters=_SHARED)),
    ]


def _change_infer(data: bytes, rng: Random) -> bytes:
    return _changed("ModelInferRequest", data, rng)


def _changed(name: str, data: bytes, rng: Random) -> bytes:
    read = message(name)()
    try:
        read.ParseFromString(data)
        mutate_message(read, rng)
        changed: bytes = read.SerializeToString()
    except (DecodeError, ValueError):
        return mutate_bytes(data, rng)
    return changed


def _infer(data: bytes) -> tuple[bytes, InferRequest | None]:
    try:
        return data, decode(*parse(data))
    except InvalidArgument:
        return data, None


def _check_infer(decoded: tuple[bytes, InferRequest | None]) -> None:
    data, request = decoded
    check_split(data)
    if request is not None:
        check_request(request)


def check_split(data: bytes) -> None:
    """What is cut out by hand is what protobuf reads."""
    whole: Any = message("ModelInferRequest")()
    split = split_raw(data)
    if split is None:
        return
    head, raw = split
    try:
        whole.ParseFromString(data)
    except DecodeError:
        return
    found: Any = message("ModelInferRequest")()
    found.ParseFromString(head)
    assert not found.raw_input_contents
    contents: Sequence[Buffer] = whole.raw_input_contents
    assert [bytes(view) for view in raw] == list(contents)
    del whole.raw_input_contents[:]
    assert repr(found) == repr(whole)


GRPC_INFER = Target("grpc_infer", _infer, _check_infer, _seeds(), _change_infer)


_UNARY: Sequence[Method] = [
    method
    for _, method in sorted(methods().items())
    if not method.streams and method.name != "ModelInfer"
]
_ASKED: dict[str, dict[str, Any]] = {
    "RepositoryModelLoad": {
        "model_name": "m",
        "parameters": {
            "config": {"string_param": '{"max_batch_size": 4}'},
            "file:1/model.py": {"bytes_param": b"pass"},
        },
    },
    "RepositoryModelUnload": {
        "model_name": "m",
        "parameters": {"unload_dependents": {"bool_param": True}},
    },
    "SystemSharedMemoryRegister": {"name": "r", "key": "/k", "byte_size": 8},
    "CudaSharedMemoryRegister": {"name": "r", "raw_handle": bytes(64), "byte_size": 8},
    "TraceSetting": {
        "settings": {"trace_level": {"value": ["TIMESTAMPS"]}, "trace_rate": {"value": ["5"]}}
    },
    "LogSettings": {
        "settings": {"log_info": {"bool_param": True}, "log_verbose_level": {"uint32_param": 1}}
    },
}
_REFLECTION = len(_UNARY)
"""The number that stands for the reflection service, whose messages answer questions one by one."""


def _questions() -> list[bytes]:
    question = message("ServerReflectionRequest", "grpc.reflection.v1")
    return [
        question(list_services="").SerializeToString(),
        question(file_containing_symbol="inference.GRPCInferenceService").SerializeToString(),
        question(file_by_filename="grpc_service.proto").SerializeToString(),
        question(all_extension_numbers_of_type="inference.ModelConfig").SerializeToString(),
    ]


def _call_seeds() -> list[bytes]:
    asked = [
        bytes((i,)) + method.request(**_ASKED.get(method.name, {})).SerializeToString()
        for i, method in enumerate(_UNARY)
    ]
    return asked + [bytes((_REFLECTION,)) + question for question in _questions()]


def _request_class(number: int) -> Any:
    if number < _REFLECTION:
        return _UNARY[number].request
    return message("ServerReflectionRequest", "grpc.reflection.v1")


def _change_call(data: bytes, rng: Random) -> bytes:
    number = data[0] % (_REFLECTION + 1) if data else rng.randint(0, _REFLECTION)
    asked = _request_class(number)()
    try:
        asked.ParseFromString(data[1:])
        mutate_message(asked, rng)
        changed: bytes = asked.SerializeToString()
    except (DecodeError, ValueError):
        changed = mutate_bytes(data[1:], rng)
    return bytes((number,)) + changed


def _call(data: bytes) -> tuple[int, bytes | MicrokernelError]:
    number = data[0] % (_REFLECTION + 1) if data else 0
    try:
        if number == _REFLECTION:
            return number, reflection.answer(data[1:])
        server = FakeServer([FakeModel(CONFIG)])
        answering = Calls(server).call(_UNARY[number])(data[1:])
        return number, _loop().run_until_complete(answering)
    except MicrokernelError as error:
        return number, error


_LOOPS: list[asyncio.AbstractEventLoop] = []


def _loop() -> asyncio.AbstractEventLoop:
    """The loop of all runs, for to make one costs more than a call."""
    if not _LOOPS:
        _LOOPS.append(asyncio.new_event_loop())
    return _LOOPS[0]


def _check_call(found: tuple[int, bytes | MicrokernelError]) -> None:
    """An answer can be read as one, and an error be sent."""
    number, answer = found
    if isinstance(answer, MicrokernelError):
        assert status_of(answer) is not None
        details_of(answer).encode()
    elif number < _REFLECTION:
        _UNARY[number].response().ParseFromString(answer)
    else:
        message("ServerReflectionResponse", "grpc.reflection.v1")().ParseFromString(answer)


GRPC_CALLS = Target("grpc_calls", _call, _check_call, _call_seeds(), _change_call)
