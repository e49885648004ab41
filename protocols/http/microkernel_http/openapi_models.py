"""The JSON schemas of what a certain model receives and sends; nothing here knows aiohttp."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from microkernel import ModelMetadata, TensorMetadata, element_count
from microkernel_http.openapi_schemas import (
    COUNT,
    FLAG,
    OUTPUT,
    OUTPUT_PARAMETERS,
    PLACE,
    REQUEST_PARAMETERS,
    SCHEMAS,
    TEXT,
    Schema,
    array,
    members,
    one_of,
)

MOST_ELEMENTS = 64
"""An example is given only of requests whose tensors have at most so many elements each."""
_NOT_AS_JSON = frozenset({"FP16", "BF16"})
_OWN = frozenset({"id", "parameters"})


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """What the document tells of a model: its metadata, the names of its optional inputs, and
    whether it answers with any number of responses."""

    about: ModelMetadata
    optional: Collection[str] = frozenset()
    decoupled: bool = False


def scalar(datatype: str) -> Schema:
    """What an element of a tensor is in JSON. A type that JSON cannot carry is nothing."""
    if datatype == "BOOL":
        return FLAG
    if datatype == "BYTES":
        return TEXT
    if datatype in _NOT_AS_JSON:
        return {"not": {}}
    if datatype.startswith("FP"):
        return {"type": "number"}
    bits = int(datatype.removeprefix("U").removeprefix("INT"))
    lowest, values = 0 if datatype[0] == "U" else -(2 ** (bits - 1)), 2**bits
    return {"type": "integer", "minimum": lowest, "maximum": lowest + values - 1}


def infer_request(entry: ModelEntry) -> Schema:
    """An infer request to a model."""
    inputs, outputs = entry.about.inputs, [output.name for output in entry.about.outputs]
    wanted = [tensor for tensor in inputs if tensor.name not in entry.optional]
    name = one_of(*outputs) if outputs else TEXT
    return members(
        "inputs",
        id=TEXT,
        parameters=REQUEST_PARAMETERS,
        inputs={
            **array({"anyOf": [_input(tensor) for tensor in inputs]} if inputs else {}),
            "minItems": len(wanted),
            "maxItems": len(inputs),
        },
        outputs=array(members("name", name=name, parameters=OUTPUT_PARAMETERS)),
    )


def _input(tensor: TensorMetadata) -> Schema:
    element = scalar(tensor.datatype)
    return {
        "description": describe(tensor),
        **members(
            "name datatype shape",
            name={"const": tensor.name},
            datatype={"const": tensor.datatype},
            shape=_fixed(tensor.shape),
            data=array({"anyOf": [element, {"type": "array"}]}),
            parameters=members(binary_data_size=COUNT, **PLACE),
        ),
    }


def _fixed(shape: Sequence[int]) -> Schema:
    sizes = [COUNT if size < 0 else {"const": size} for size in shape]
    exact: Schema = {"type": "array", "minItems": len(sizes), "maxItems": len(sizes)}
    return {**exact, "prefixItems": sizes} if sizes else exact


def infer_response(entry: ModelEntry) -> Schema:
    """A response to an infer request. Classes take the place of a tensor that they are asked for
    of, with another type and shape."""
    answer = SCHEMAS["InferResponse"]
    outputs = [
        {
            "description": describe(tensor),
            "properties": {
                "name": {"const": tensor.name},
                "datatype": {"enum": sorted({tensor.datatype, "BYTES"})},
            },
        }
        for tensor in entry.about.outputs
    ]
    if not outputs:
        return answer
    items = {"allOf": [OUTPUT, {"anyOf": outputs}]}
    return {**answer, "properties": {**answer["properties"], "outputs": array(items)}}


def generate_request(entry: ModelEntry) -> Schema:
    """A generate request to a model: a member for each input, a scalar or a flat array."""
    inputs = {tensor.name: _flat(tensor) for tensor in entry.about.inputs}
    return {
        "type": "object",
        "properties": {"id": TEXT, **inputs, "parameters": {"type": "object"}},
    }


def generate_response(entry: ModelEntry) -> Schema:
    """A response of a generate endpoint: a member for each output."""
    answer = SCHEMAS["GenerateResponse"]
    outputs = {tensor.name: _flat(tensor) for tensor in entry.about.outputs}
    return {**answer, "properties": {**answer["properties"], **outputs}}


def _flat(tensor: TensorMetadata) -> Schema:
    element = scalar(tensor.datatype)
    return {"description": describe(tensor), "anyOf": [element, array(element)]}


def describe(tensor: TensorMetadata) -> str:
    """The type and the shape of a tensor: `FP32 [-1,4]`."""
    return f"{tensor.datatype} [{','.join(map(str, tensor.shape))}]"


def infer_example(entry: ModelEntry) -> Schema | None:
    """A small request that fits, None where one would be large or cannot be JSON."""
    inputs = [tensor for tensor in entry.about.inputs if tensor.name not in entry.optional]
    if not all(map(_is_small, inputs)):
        return None
    return {
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": _smallest(tensor),
                "data": _zeros(tensor),
            }
            for tensor in inputs
        ]
    }


def generate_example(entry: ModelEntry) -> Schema | None:
    """As `infer_example`, for the generate endpoints, which have members of their own."""
    inputs = [tensor for tensor in entry.about.inputs if tensor.name not in entry.optional]
    if not all(tensor.name not in _OWN and _is_small(tensor) for tensor in inputs):
        return None
    values = {tensor.name: _zeros(tensor) for tensor in inputs}
    return {name: data[0] if len(data) == 1 else data for name, data in values.items()}


def _is_small(tensor: TensorMetadata) -> bool:
    return tensor.datatype not in _NOT_AS_JSON and element_count(_smallest(tensor)) <= MOST_ELEMENTS


def _smallest(tensor: TensorMetadata) -> list[int]:
    return [1 if size < 0 else size for size in tensor.shape]


def _zeros(tensor: TensorMetadata) -> list[Any]:
    zero = {"BOOL": False, "BYTES": "text"}.get(tensor.datatype, 0)
    return [zero] * element_count(_smallest(tensor))
