"""Answers as bytes; nothing here knows aiohttp."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from microkernel import (
    InferResponse,
    ModelIndex,
    ModelMetadata,
    ServerMetadata,
    Tensor,
    TensorMetadata,
)
from microkernel_http.decode import HEADER_LENGTH, OutputForms
from microkernel_http.elements import to_json

Buffer: TypeAlias = bytes | bytearray | memoryview

JSON = "application/json"
TEXT = "text/plain"
BINARY = "application/octet-stream"
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


def encode(response: InferResponse, forms: OutputForms) -> Encoded:
    """The answer to an infer request. Binary outputs are views on the response's data.

    Raises InvalidArgument for an FP16 or BF16 output that is to be sent as JSON.
    """
    buffers: list[Buffer] = []
    outputs = [_output(output, forms, buffers) for output in response.outputs]
    document: dict[str, Any] = {"id": response.id} if response.id else {}
    document["model_name"] = response.model_name
    document["model_version"] = str(response.version)
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    document["outputs"] = outputs
    header = to_bytes(document)
    if not buffers:
        return Encoded(_JSON_ONLY, (header,))
    headers = {"Content-Type": BINARY, HEADER_LENGTH: str(len(header))}
    return Encoded(headers, (header, *buffers))


def _output(output: Tensor, forms: OutputForms, buffers: list[Buffer]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": output.name,
        "datatype": output.datatype.name,
        "shape": output.shape,
    }
    if not forms.is_binary(output.name):
        entry["data"] = to_json(output)
        return entry
    size = len(output.data)
    entry["parameters"] = {"binary_data_size": size}
    if size:
        buffers.append(output.data)
    return entry


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
