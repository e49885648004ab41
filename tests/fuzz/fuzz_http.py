"""The bodies and the heads of HTTP requests."""

import base64
import contextlib
import gzip
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from fuzz_mutations import json_bytes, mutate_bytes, mutate_json
from fuzz_requests import CONFIG, check_fields, check_request
from fuzz_targets import Target

from microkernel import (
    DATA_TYPES,
    InferRequest,
    Internal,
    InvalidArgument,
    ModelInput,
    Unsupported,
    encode_bytes,
)
from microkernel.tracing import context
from microkernel_http import control_bodies, decode, generate, raw, routes, trace_bodies
from microkernel_http.compression import CODINGS, IDENTITY, PIECE, choose, deflate, inflate
from microkernel_http.decode import Limits, OutputForms
from microkernel_http.events import wants_events

LIMITS = Limits(json_size=48 << 10)
"""Small, so that inputs of the fuzzer reach it."""
_REFUSED = (Internal, InvalidArgument)
_SHARED = {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 4}
_ALL = {
    "id": "7",
    "parameters": {
        "sequence_id": 5,
        "sequence_start": True,
        "priority": 1,
        "timeout": 9,
        "mine": 0.5,
        "binary_data_output": True,
    },
    "outputs": [
        {"name": "FP32", "parameters": {"classification": 2}},
        {"name": "BYTES", "parameters": {"binary_data": False}},
        {"name": "INT8", "parameters": _SHARED},
    ],
}
_ELEMENTS: dict[str, Any] = {"BOOL": [True, False], "BYTES": ["a", "\u00e9"], "FP32": [[1.5], [2]]}


def _entry(kind: str, **rest: Any) -> dict[str, Any]:
    return {"name": kind, "datatype": kind, "shape": [2], **rest}


def _body(document: Any, tail: bytes = b"", length: str = "") -> bytes:
    """An input of the fuzzer: the length header or `-` for none, a line break, the body."""
    text = json.dumps(document).encode()
    told = length or (str(len(text)) if tail else "-")
    return told.encode() + b"\n" + text + tail


def _seeds() -> list[bytes]:
    kinds = [kind for kind in DATA_TYPES if kind not in ("FP16", "BF16")]
    listed = [_entry(kind, data=_ELEMENTS.get(kind, [1, 2])) for kind in kinds]
    tails = [
        encode_bytes(["a", "bcd"]) if row.size == 0 else bytes(2 * row.size)
        for row in DATA_TYPES.values()
    ]
    sized = [
        _entry(kind, parameters={"binary_data_size": len(tail)})
        for kind, tail in zip(DATA_TYPES, tails, strict=True)
    ]
    placed = [_entry("FP32", parameters=_SHARED), listed[0]]
    return [
        _body({**_ALL, "inputs": listed}),
        *(_body({"inputs": [entry]}) for entry in listed),
        _body({**_ALL, "inputs": sized}, b"".join(tails)),
        _body({"inputs": [sized[0], listed[-1]]}, tails[0]),
        _body({**_ALL, "inputs": placed}),
        b"0\n" + bytes(8),
        b"0\nsome text",
    ]


def _parts(data: bytes) -> tuple[str, bytes]:
    text, _, body = data.partition(b"\n")
    return text[:5000].decode("latin-1"), body


def _change(data: bytes, rng: Random) -> bytes:
    """Change the JSON part, the binary part or the length, and keep the rest right."""
    told, body = _parts(data)
    length = int(told) if told.isascii() and told.isdecimal() and len(told) < 9 else len(body)
    text, tail = body[:length], body[length:]
    match rng.randrange(4):
        case 0:
            tail = mutate_bytes(tail, rng)
        case 1:
            wrong = rng.choice(
                (str(len(body)), str(length - 1), "0", "-", "-1", "1e3", "\xb2", "9" * 20)
            )
            return wrong.encode("latin-1") + b"\n" + body
        case _:
            with contextlib.suppress(ValueError, RecursionError):
                text = json_bytes(mutate_json(json.loads(text), rng), rng)
    whole = told == "-" and not tail
    return (b"-" if whole else str(len(text)).encode()) + b"\n" + text + tail


def _infer(data: bytes) -> tuple[InferRequest, OutputForms] | None:
    told, body = _parts(data)
    try:
        length = decode.header_length(None if told == "-" else told, len(body))
        if length:
            return decode.decode(body, length, "m", -1, LIMITS)
        only = CONFIG.input[len(body) % len(CONFIG.input)]
        config = replace(CONFIG, input=(only,), max_batch_size=len(body) % 2)
        return raw.decode_raw(body, config, "m", -1, LIMITS), decode.ALL_JSON
    except _REFUSED:
        return None


def _check_infer(decoded: tuple[InferRequest, OutputForms]) -> None:
    check_request(*decoded)


HTTP_INFER = Target(
    "http_infer", _infer, _check_infer, _seeds(), _change, limit=3 * LIMITS.json_size
)


_SMALL = tuple(
    ModelInput(name=kind, data_type=row.config_name, dims=dims)
    for kind, row, dims in (
        ("FP32", DATA_TYPES["FP32"], (-1,)),
        ("BYTES", DATA_TYPES["BYTES"], (1,)),
        ("INT8", DATA_TYPES["INT8"], (2, -1, 3)),
        ("FP16", DATA_TYPES["FP16"], (0, -1)),
    )
)
_GENERATING = replace(CONFIG, input=_SMALL)
_PROMPTS = (
    {"BYTES": "text", "FP32": [1.5, 2], "id": "7", "parameters": {"INT8": [1] * 6, "top_k": 3}},
    {"FP32": 1, "stream": True, "temperature": 0.5, "id": ""},
)


def _generate(data: bytes) -> InferRequest | None:
    try:
        return generate.to_request(data, _GENERATING, 1, LIMITS)
    except _REFUSED:
        return None


def _check_generated(request: InferRequest) -> None:
    check_fields(request)
    assert sum(tensor.nbytes for tensor in request.inputs) <= LIMITS.json_size
    for tensor in request.inputs:
        assert tensor.as_numpy().shape == tensor.shape


def _change_json(data: bytes, rng: Random) -> bytes:
    try:
        return json_bytes(mutate_json(json.loads(data), rng), rng)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)


HTTP_GENERATE = Target(
    "http_generate",
    _generate,
    _check_generated,
    [json.dumps(document).encode() for document in _PROMPTS],
    _change_json,
    limit=3 * LIMITS.json_size,
)


_HANDLE = base64.b64encode(bytes(64)).decode()
_READERS: tuple[tuple[Callable[[bytes], Any], Any], ...] = (
    (control_bodies.only_ready, {"ready": True}),
    (
        control_bodies.load_request,
        {"parameters": {"config": "{}", "file:1/model.onnx": _HANDLE}},
    ),
    (control_bodies.unload_dependents, {"parameters": {"unload_dependents": True}}),
    (
        lambda body: control_bodies.system_region("r", body),
        {"key": "/k", "offset": 0, "byte_size": 8},
    ),
    (
        lambda body: control_bodies.cuda_region("r", body),
        {"raw_handle": {"b64": _HANDLE}, "device_id": 0, "byte_size": 8},
    ),
    (
        control_bodies.log_changes,
        {"log_info": True, "log_verbose_level": 1, "log_format": "ISO8601", "log_file": None},
    ),
    (
        trace_bodies.trace_changes,
        {"trace_level": ["TIMESTAMPS"], "trace_rate": "5", "trace_count": None},
    ),
)


def _control(data: bytes) -> Any:
    reader, _ = _READERS[data[0] % len(_READERS) if data else 0]
    try:
        return reader(data[1:])
    except (*_REFUSED, Unsupported):
        return None


def _check_control(read: Any) -> None:
    repr(read).encode()


def _change_control(data: bytes, rng: Random) -> bytes:
    return data[:1] + _change_json(data[1:], rng)


HTTP_CONTROL = Target(
    "http_control",
    _control,
    _check_control,
    [bytes((i,)) + json.dumps(document).encode() for i, (_, document) in enumerate(_READERS)],
    _change_control,
)


INFLATED = 300 << 10
_HEADS = (
    (b"GET", b"/v2/models/a%20b/versions/3/ready?x=1", b"gzip;q=0.5, deflate, *", b"*/*", b""),
    (b"POST", b"/v2/repository/r/models/m/load", b"identity;q=0", b"text/event-stream;q=1.0", b""),
    (
        *(b"GET", b"/v2/systemsharedmemory/region/r/status", b"", b"text/event-stream, */*;q=0.1"),
        b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01",
    ),
)
_BODIES = (b"", b"[]" * 100, bytes(2 * INFLATED))


def _transfer(data: bytes) -> Any:
    """A compressed body, or lines of a head."""
    if data[:1] == b"z":
        try:
            return b"".join(inflate(data[1:], INFLATED))
        except _REFUSED:
            return None
    lines = [line.decode("utf-8", "surrogateescape") for line in data[1:].split(b"\n", 4)]
    method, target, encoding, accept, parent = (lines + [""] * 5)[:5]
    route = routes.find(method, target)
    with contextlib.suppress(InvalidArgument):
        if route is not None:
            route.version()
    return choose(encoding), wants_events(accept), context.parse(parent)


def _check_transfer(found: Any) -> None:
    if isinstance(found, bytes):
        assert len(found) <= INFLATED
        for coding in CODINGS:
            assert b"".join(inflate(deflate([found], coding), INFLATED)) == found
    else:
        assert found[0] in {*CODINGS, IDENTITY}
        assert found[2] is None or 0 < found[2].trace < 2**128


def _change_transfer(data: bytes, rng: Random) -> bytes:
    if data[:1] != b"z" or rng.random() < 0.5:
        return data[:1] + mutate_bytes(data[1:], rng)
    coding = rng.choice(sorted(CODINGS))
    size = rng.choice((0, 1, PIECE, INFLATED, INFLATED + 1, 50 * INFLATED))
    return b"z" + deflate([bytes(size)], coding) + rng.choice((b"", b"", data[1:9]))


HTTP_TRANSFER = Target(
    "http_transfer",
    _transfer,
    _check_transfer,
    [
        *(b"h" + b"\n".join(head) for head in _HEADS),
        *(b"z" + gzip.compress(body) for body in _BODIES),
        *(b"z" + zlib.compress(body) for body in _BODIES),
        b"z" + struct.pack("<I", 7),
    ],
    _change_transfer,
    limit=2 * INFLATED + 2 * PIECE,
)
