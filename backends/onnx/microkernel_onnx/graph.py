"""What an ONNX graph takes and gives, as plain data."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from microkernel import BY_CONFIG_NAME, Unsupported

_TENSOR = re.compile(r"tensor\((\w+)\)")
_SPELLED_OTHERWISE = {"float": "FP32", "double": "FP64", "float16": "FP16", "bfloat16": "BF16"}
UNKNOWN = "TYPE_INVALID"


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of the graph: its type as the configuration names it, and its shape with
    -1 for every dimension that is not fixed."""

    name: str
    data_type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph's required inputs, its outputs, and the initializers that a request may override, by
    name in the graph's order."""

    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]
    initializers: Mapping[str, Port]


def graph_of(session: Any) -> Graph:
    """The graph of an `InferenceSession`. Raises Unsupported where an input or output is no dense
    tensor."""
    return Graph(
        inputs=_ports(session.get_inputs(), "input"),
        outputs=_ports(session.get_outputs(), "output"),
        initializers=_ports(session.get_overridable_initializers(), "input"),
    )


def data_type_of(onnx_type: str) -> str:
    """The configuration's name for onnxruntime's `tensor(float)`; TYPE_INVALID where it has none.

    Raises ValueError for what is no tensor.
    """
    match = _TENSOR.fullmatch(onnx_type)
    if match is None:
        raise ValueError(onnx_type)
    element = match.group(1)
    name = f"TYPE_{_SPELLED_OTHERWISE.get(element, element.upper())}"
    return name if name in BY_CONFIG_NAME else UNKNOWN


def _ports(arguments: Iterable[Any], direction: str) -> dict[str, Port]:
    ports = {}
    for argument in arguments:
        try:
            data_type = data_type_of(argument.type)
        except ValueError:
            raise Unsupported(
                f"{direction} '{argument.name}' of the model is of type {argument.type}, only "
                "tensors can be served"
            ) from None
        shape = tuple(dim if isinstance(dim, int) else -1 for dim in argument.shape)
        ports[argument.name] = Port(argument.name, data_type, shape)
    return ports
