"""The body of an infer request as an `InferRequest`; nothing here knows aiohttp.

A body is a JSON text followed by the raw bytes of each input that announces `binary_data_size`, in
the order of the inputs. Those inputs become views on the body. An input in shared memory has no
data of its own.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from microkernel import (
    DATA_TYPES,
    DataType,
    InferRequest,
    InvalidArgument,
    RegionPart,
    Shape,
    Tensor,
    unknown_type,
)
from microkernel_http import document as json_document
from microkernel_http import parameters, places
from microkernel_http.document import (
    MISSING,
    array,
    array_member,
    boolean,
    text_member,
    unsigned,
)
from microkernel_http.elements import to_raw

MAX_COUNT = (1 << 63) - 1
HEADER_LENGTH = "Inference-Header-Content-Length"
_WHOLE_NUMBER = re.compile("[+-]?[0-9]+")


@dataclass(frozen=True, slots=True)
class Limits:
    """`json_size` bounds, in bytes, the JSON part of a request, each tensor made from JSON, and a
    body once it is decompressed."""

    json_size: int = 64 << 20


@dataclass(frozen=True, slots=True)
class OutputForms:
    """Which outputs go back as raw bytes: those in `binary`, or all of them where `everything`."""

    everything: bool = False
    binary: Collection[str] = ()

    def is_binary(self, name: str) -> bool:
        """Whether the output of that name goes back as raw bytes."""
        return self.everything or name in self.binary


ALL_JSON = OutputForms()
ALL_BINARY = OutputForms(everything=True)


def header_length(value: str | None, body_length: int, source: str = HEADER_LENGTH) -> int:
    """The length of the JSON part by the value of the length header, None for a request without
    it. 0 means that the body is the data of the only input.

    Raises InvalidArgument, naming the `source` of the value, for what is no number or does not fit
    the body.
    """
    if value is None:
        return body_length
    try:
        length = int(value if _WHOLE_NUMBER.fullmatch(value) else "")
    except ValueError:
        raise InvalidArgument(
            f"Unable to parse {source}, got: {value}; it must be a number of bytes"
        ) from None
    if not 0 <= length <= body_length:
        raise InvalidArgument(
            f"inference header size should be in range (0, {body_length}), got: {length}"
        )
    return length


def decode(
    body: bytes, length: int, model_name: str, version: int, limits: Limits
) -> tuple[InferRequest, OutputForms]:
    """The request of a body whose first `length` bytes are JSON, and how to send its outputs.

    Raises errors of this server's classes only, with Triton's messages: Internal for JSON of the
    wrong form, InvalidArgument for contents that cannot be right.
    """
    check_json_size(length, limits)
    view = memoryview(body)
    if length > json_document.LARGE:
        with json_document.parsed(view[:length]) as document:
            return _decoded(_members(document), view, length, model_name, version, limits)
    document = json_document.parse(view[:length])
    return _decoded(_members(document), view, length, model_name, version, limits)


def _decoded(
    document: dict[str, Any],
    view: memoryview,
    length: int,
    model_name: str,
    version: int,
    limits: Limits,
) -> tuple[InferRequest, OutputForms]:
    identity = parameters.identifier(document)
    given = parameters.parameters_of(document)
    custom = parameters.custom_parameters(given)
    entries = array_member(document, "inputs")
    inputs, shared_inputs = _read_inputs(entries, view, length, model_name, limits)
    wanted, shared_outputs, forms = _outputs(document, given)
    request = InferRequest(
        model_name,
        inputs,
        version,
        identity,
        tuple(wanted),
        custom,
        *parameters.queueing(given),
        {name: count for name, count in wanted.items() if count} if wanted else wanted,
        shared_inputs,
        shared_outputs,
    )
    return request, forms


def check_json_size(length: int, limits: Limits) -> None:
    """Raise InvalidArgument for a JSON text of more bytes than the limit allows."""
    if length > limits.json_size:
        raise InvalidArgument(
            f"request JSON size of {length} bytes exceeds the maximum allowed input size of "
            f"{limits.json_size} bytes. Use --http-max-input-size to increase the limit."
        )


def _read_inputs(
    entries: list[Any], body: memoryview, position: int, model_name: str, limits: Limits
) -> tuple[tuple[Tensor, ...], Mapping[str, RegionPart]]:
    """The inputs, and where those lie that are in shared memory; the raw data of the others starts
    at `position`."""
    tensors, shared, end = [], {}, len(body)
    for entry in entries:
        fields = _members(entry)
        elements, size, part = _source(fields)
        name = text_member(fields, "name")
        type_name = text_member(fields, "datatype")
        shape, count = _shape(name, array_member(fields, "shape"))
        datatype = DATA_TYPES.get(type_name)
        if datatype is None:
            datatype = unknown_type(type_name)
        data: bytes | memoryview = b""
        if size is not MISSING:
            start, position = position, position + unsigned(size, "binary_data_size")
            if position > end:
                raise InvalidArgument(
                    f"unexpected size for input '{name}', expecting {position - end} "
                    f"additional bytes for model '{model_name}'"
                )
            data = body[start:position]
        elif part is not None:
            shared[name] = part
        elif shape and count:
            data = _from_json(name, datatype, count, elements, limits)
        tensors.append(Tensor(name, datatype, shape, data))
    if position != end:
        raise InvalidArgument(f"unexpected additional input data for model '{model_name}'")
    return tuple(tensors), shared


def _from_json(
    name: str, datatype: DataType, count: int, elements: Any, limits: Limits
) -> bytes | memoryview:
    if not datatype.number:
        raise InvalidArgument(f"invalid datatype for input {name}")
    listed = array(elements, "data")
    _check_size(name, count * datatype.size, limits)
    raw = to_raw(name, datatype, count, listed)
    _check_size(name, len(raw), limits)
    return raw


def _check_size(name: str, size: int, limits: Limits) -> None:
    if size > MAX_COUNT:
        raise InvalidArgument(f"byte size overflow for input '{name}'")
    if size > limits.json_size:
        raise InvalidArgument(
            f"JSON input '{name}' has a byte_size of {size} bytes, which exceeds the maximum "
            f"allowed input size of {limits.json_size} bytes. "
            "Use --http-max-input-size to increase the limit."
        )


def _members(value: Any) -> dict[str, Any]:
    """The members of an object; none where it is something else."""
    return value if type(value) is dict else {}


def _source(fields: dict[str, Any]) -> tuple[Any, Any, RegionPart | None]:
    """Where an input's data is: `data` and `binary_data_size`, either of them or both MISSING, and
    the part of shared memory; there is one of the three."""
    given = _members(fields.get("parameters"))
    data = fields.get("data", MISSING)
    size = given.get("binary_data_size", MISSING)
    shared = places.REGION in given
    if (data is MISSING) + (size is MISSING) + (not shared) != 2:
        raise _not_one_source(data is not MISSING, size is not MISSING, shared)
    return data, size, places.part(given) if shared else None


def _not_one_source(*given: bool) -> InvalidArgument:
    names = ("data", "binary_data_size", places.REGION)
    found = [f"'{name}'" for name, there in zip(names, given, strict=True) if there]
    return InvalidArgument(
        "Input must set only one of the following fields: 'data', 'binary_data_size' in "
        "'parameters', 'shared_memory_region' in 'parameters'. But "
        + (f"set {' '.join(found)}" if found else "no field is set")
    )


def _shape(name: str, dims: list[Any]) -> tuple[Shape, int]:
    """The shape and its number of elements."""
    count = 1
    for dim in dims:
        if type(dim) is not int or dim < 0 or dim > MAX_COUNT:
            unsigned(dim, "shape")
        if count <= MAX_COUNT or dim == 0:  # a product of any size would take its time
            count *= dim
    if count > MAX_COUNT or (count == 0 and max(dims) > MAX_COUNT):
        raise InvalidArgument(
            f"shape for input '{name}' causes total element count to exceed maximum size of "
            f"{MAX_COUNT}"
        )
    return tuple(dims), count


def _outputs(
    document: Any, given: dict[str, Any]
) -> tuple[Mapping[str, int], Mapping[str, RegionPart], OutputForms]:
    """The outputs asked for, each with how many classes are wanted of it, 0 for the tensor itself;
    those that go to shared memory; and how to send the others."""
    all_binary = parameters.flag(given, "binary_data_output")
    entries = array(document["outputs"], "outputs") if "outputs" in document else []
    if not entries:
        return {}, {}, ALL_BINARY if all_binary else ALL_JSON
    wanted: dict[str, int] = {}
    shared: dict[str, RegionPart] = {}
    binary = []
    for entry in entries:
        fields = _members(entry)
        name = text_member(fields, "name")
        if name in wanted:
            raise InvalidArgument(f"output '{name}' already exists in request")
        form = parameters.parameters_of(fields)
        wanted[name] = unsigned(form.get("classification", 0), "classification")
        if (part := places.output_part(name, form)) is not None:
            shared[name] = part
        if boolean(form.get("binary_data", False), "binary_data"):
            binary.append(name)
    return wanted, shared, OutputForms(binary=binary)
