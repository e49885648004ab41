"""The classification extension: the largest values of an output as text, with labels. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from microkernel.errors import InvalidArgument
from microkernel.request import InferResponse
from microkernel.tensor import BYTES, DATA_TYPES, FP32, FP64, Array, Tensor, encode_bytes

Labels: TypeAlias = Mapping[str, Sequence[str]]
"""The labels of a model's outputs by the output's name: the k-th is that of class k."""

MAX_ELEMENTS = 1_000_000
_FLOATS = (FP32, FP64)
_INTEGERS = tuple(row for row in DATA_TYPES.values() if row.name.startswith(("INT", "UINT")))


def label_lines(text: str) -> tuple[str, ...]:
    """The labels in the text of a label file: one a line, blank lines included."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()  # what follows the last line break is no line
    return tuple(line.removesuffix("\r") for line in lines)


def classify_outputs(
    response: InferResponse, counts: Mapping[str, int], labels: Labels, *, batches: bool
) -> InferResponse:
    """The response with the outputs that `counts` names replaced by their classes.

    Raises InvalidArgument as `classify` does.
    """
    outputs = tuple(
        classify(tensor, counts[tensor.name], labels.get(tensor.name, ()), batches=batches)
        if tensor.name in counts
        else tensor
        for tensor in response.outputs
    )
    return replace(response, outputs=outputs)


def classify(tensor: Tensor, count: int, labels: Sequence[str], *, batches: bool) -> Tensor:
    """The `count` largest values of each entry of the batch, or of the whole tensor where the model
    does not batch, as a BYTES tensor of shape `[batch, classes]`, or `[classes]`.

    An element is `<value>:<index>`, and `:<label>` where the index has one that is not empty;
    the largest comes first, equal values in the order of their indexes, NaN last. Raises
    InvalidArgument for types other than integers, FP32 and FP64, and above MAX_ELEMENTS elements.
    """
    if tensor.datatype not in _FLOATS and tensor.datatype not in _INTEGERS:
        raise InvalidArgument(
            "class result not available for output due to unsupported type "
            f"'{tensor.datatype.name}' of output '{tensor.name}'"
        )
    values = tensor.as_numpy()
    if values.size > MAX_ELEMENTS:
        raise InvalidArgument(
            f"classification output tensor too large: output '{tensor.name}' has {values.size} "
            f"elements, the most is {MAX_ELEMENTS}"
        )
    rows = values.shape[0] if batches and values.ndim else 1
    width = values.size // rows if rows else int(np.prod(values.shape[1:]))
    kept = min(count, width)
    elements = [text for row in values.reshape(rows, width) for text in _classes(row, kept, labels)]
    shape = (rows, kept) if batches else (kept,)
    return Tensor(tensor.name, BYTES, shape, encode_bytes(elements))


def _classes(row: Array, kept: int, labels: Sequence[str]) -> Iterable[bytes]:
    # Inverting the bits of an integer turns its order round without overflow.
    keys = -row if row.dtype.kind == "f" else ~row
    form = "%.6f" if row.dtype.kind == "f" else "%d"
    for index in np.argsort(keys, kind="stable")[:kept].tolist():
        label = labels[index] if index < len(labels) else ""
        text = f"{form % row[index].item()}:{index}"
        yield (f"{text}:{label}" if label else text).encode("utf-8", "surrogateescape")
