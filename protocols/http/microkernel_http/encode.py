"""Answers as bytes; nothing here knows aiohttp."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from microkernel import (
    CudaRegion,
    DataType,
    InferResponse,
    ModelIndex,
    ModelMetadata,
    ServerMetadata,
    Shape,
    SystemRegion,
    Tensor,
    TensorMetadata,
)
from microkernel_http.decode import OutputForms
from microkernel_http.elements import parts_to_json, to_json
from microkernel_http.framing import LENGTH_HEADER, Framing
from microkernel_http.nesting import STEP

Buffer: TypeAlias = bytes | bytearray | memoryview

JSON = "application/json"
TEXT = "text/plain"
_JSON_ONLY: Mapping[str, str] = {"Content-Type": JSON}
_dumps = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


@dataclass(slots=True)
class Encoded:
    """An answer: its headers, and its body as buffers to be sent one after the other."""

    headers: Mapping[str, str]
    buffers: Sequence[Buffer]


def to_bytes(document: Any) -> bytes:
    """A value as compact JSON. Surrogate escapes go back to the bytes they stand for."""
    return _dumps(document).encode("utf-8", "surrogateescape")


def _joined(parts: Iterable[list[Any]]) -> str:
    """Lists as one in JSON. What is encoded at once keeps every other thread waiting."""
    return f"[{','.join([_dumps(part)[1:-1] for part in parts])}]"


def flat_to_bytes(document: Mapping[str, Any]) -> bytes:
    """As `to_bytes`, of an object with members that may be long lists."""
    members = [f"{_dumps(key)}:{_text(value)}" for key, value in document.items()]
    return f"{{{','.join(members)}}}".encode("utf-8", "surrogateescape")


def _text(value: Any) -> str:
    if type(value) is not list or len(value) <= STEP:
        return _dumps(value)
    return _joined(value[start : start + STEP] for start in range(0, len(value), STEP))


def encode(
    response: InferResponse, forms: OutputForms, framing: Framing = LENGTH_HEADER
) -> Encoded:
    """The answer to an infer request. Binary outputs are views on the response's data; of outputs
    in shared memory only type and shape are told.

    Raises InvalidArgument for an FP16 or BF16 output that is to be sent as JSON.
    """
    buffers: list[Buffer] = []
    outputs = ",".join([_output(output, response, forms, buffers) for output in response.outputs])
    identity = f'"id":{_dumps(response.id)},' if response.id else ""
    given = f',"parameters":{_dumps(dict(response.parameters))}' if response.parameters else ""
    header = (
        f'{{{identity}"model_name":{_quoted(response.model_name)},'
        f'"model_version":"{response.version}"{given},"outputs":[{outputs}]}}'
    ).encode("utf-8", "surrogateescape")
    if not buffers:
        return Encoded(_JSON_ONLY, (header,))
    return Encoded(framing.headers(len(header)), (header, *buffers))


def json_size(response: InferResponse, forms: OutputForms) -> int:
    """The bytes of the outputs whose elements `encode` turns into JSON."""
    if forms.everything:
        return 0
    size = 0
    for output in response.outputs:
        if output.name not in forms.binary:
            size += len(output.data)
    return size


@lru_cache(1024)
def _quoted(name: str) -> str:
    """A name as JSON. Those of models and tensors are few and recur."""
    return _dumps(name)


@lru_cache(1024)
def _about(name: str, datatype: DataType, shape: Shape) -> str:
    """What an output is, as JSON. There are not many that differ."""
    dims = ",".join(map(str, shape))
    return f'"name":{_quoted(name)},"datatype":"{datatype.name}","shape":[{dims}]'


def _output(
    output: Tensor, response: InferResponse, forms: OutputForms, buffers: list[Buffer]
) -> str:
    """An output as JSON, with its data or the size of what is added to `buffers`."""
    name, data = output.name, output.data
    about = _about(name, output.datatype, tuple(output.shape))
    if name in response.shared_outputs:
        return f"{{{about}}}"
    if not forms.is_binary(name):
        if len(data) <= STEP:
            return f'{{{about},"data":{_dumps(to_json(output))}}}'
        return f'{{{about},"data":{_joined(parts_to_json(output))}}}'
    if data:
        buffers.append(data)
    return f'{{{about},"parameters":{{"binary_data_size":{len(data)}}}}}'


def server_metadata(about: ServerMetadata) -> dict[str, Any]:
    """The answer of `/v2`."""
    return {"name": about.name, "version": about.version, "extensions": list(about.extensions)}


def model_metadata(about: ModelMetadata) -> dict[str, Any]:
    """The answer of a model's metadata route."""
    return {
        "name": about.name,
        "versions": list(about.versions),
        "platform": about.platform,
        "inputs": [_tensor(tensor) for tensor in about.inputs],
        "outputs": [_tensor(tensor) for tensor in about.outputs],
    }


def _tensor(about: TensorMetadata) -> dict[str, Any]:
    return {"name": about.name, "datatype": about.datatype, "shape": about.shape}


def repository_index(lines: Sequence[ModelIndex]) -> list[dict[str, str]]:
    """The answer of the repository index; what is empty is left out."""
    return [
        {
            key: value
            for key, value in (
                ("name", line.name),
                ("version", line.version),
                ("state", line.state),
                ("reason", line.reason),
            )
            if value
        }
        for line in lines
    ]


def system_regions(regions: Sequence[SystemRegion]) -> list[dict[str, Any]]:
    """The answer of the status of shared memory."""
    return [
        {
            "name": region.name,
            "key": region.key,
            "offset": region.offset,
            "byte_size": region.byte_size,
        }
        for region in regions
    ]


def cuda_regions(regions: Sequence[CudaRegion]) -> list[dict[str, Any]]:
    """The answer of the status of GPUs' shared memory."""
    return [
        {"name": region.name, "device_id": region.device_id, "byte_size": region.byte_size}
        for region in regions
    ]
