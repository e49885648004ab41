"""A trace as the records of a trace file. Pure."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from microkernel.errors import InvalidArgument
from microkernel.tensor import BF16, BYTES, FP16, Array, Tensor, decode_bytes
from microkernel.trace import Trace, TracedTensor

_AT_ONCE = 4096
"""How many elements are turned into text in one go: others get a turn in between."""


def text(trace: Trace) -> str:
    """The records of a trace and of its children, apart by commas."""
    return ",".join(json.dumps(record, separators=(",", ":")) for record in records(trace))


def records(trace: Trace) -> Iterator[dict[str, Any]]:
    """The header of a trace, then its timestamps, tensors and children."""
    header: dict[str, Any] = {
        "id": trace.id,
        "model_name": trace.model_name,
        "model_version": trace.version,
    }
    if trace.request_id:
        header["request_id"] = trace.request_id
    if trace.parent:
        header["parent_id"] = trace.parent
    yield header
    for name, ns in sorted(trace.timestamps, key=lambda mark: mark[1]):
        yield {"id": trace.id, "timestamps": [{"name": name, "ns": ns}]}
    for traced in trace.tensors:
        yield _tensor(trace.id, traced)
    for child in trace.children:
        yield from records(child)


def _tensor(number: int, traced: TracedTensor) -> dict[str, Any]:
    tensor = traced.tensor
    return {
        "id": number,
        "activity": traced.activity,
        "tensor": {
            "name": tensor.name,
            "data": _data(tensor),
            "shape": ",".join(map(str, tensor.shape)),
            "dtype": tensor.datatype.name,
        },
    }


def _data(tensor: Tensor) -> str:
    """The elements, flat; "" for the types of which Triton shows none, and for data that is not of
    its type."""
    if tensor.datatype in (FP16, BF16):
        return ""
    try:
        if tensor.datatype is BYTES:
            return ",".join(_quoted(decode_bytes(tensor.data, tensor.name)))
        return ",".join(_numbers(np.frombuffer(tensor.data, tensor.datatype.numpy)))
    except (InvalidArgument, ValueError):
        return ""


def _quoted(elements: Iterable[bytes]) -> Iterator[str]:
    for element in elements:
        yield f'"{element.decode(errors="backslashreplace")}"'


def _numbers(flat: Array) -> Iterator[str]:
    """Numbers as Triton writes them: without a trailing `.0`, and 1 and 0 for booleans."""
    if flat.dtype == np.bool_:
        flat = flat.view(np.uint8)
    for start in range(0, len(flat), _AT_ONCE):
        for word in flat[start : start + _AT_ONCE].astype(np.str_).tolist():
            yield word.removesuffix(".0")
