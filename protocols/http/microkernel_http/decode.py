"""The body of an infer request as an `InferRequest`; nothing here knows aiohttp.

A body is a JSON text followed by the raw bytes of each input that announces `binary_data_size`, in
the order of the inputs. Those inputs become views on the body.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from microkernel import (
    DATA_TYPES,
    InferRequest,
    InvalidArgument,
    NotFound,
    Shape,
    Tensor,
    element_count,
)
from microkernel_http import document as json_document
from microkernel_http import parameters
from microkernel_http.document import MISSING, array, boolean, member, required, text, unsigned
from microkernel_http.elements import to_raw

MAX_COUNT = (1 << 63) - 1
HEADER_LENGTH = "Inference-Header-Content-Length"


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


def header_length(value: str | None, body_length: int) -> int:
    """The length of the JSON part by the value of the length header, None for a request without
    it. 0 means that the body is the data of the only input.

    Raises InvalidArgument for what is no number or does not fit the body.
    """
    if value is None:
        return body_length
    try:
        length = int(value)
    except ValueError:
        raise InvalidArgument(
            f"Unable to parse {HEADER_LENGTH}, got: {value}; it must be a number of bytes"
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
    document = json_document.parse(body if length == len(body) else memoryview(body)[:length])
    if type(document) is not dict:
        document = {}
    identity = parameters.identifier(document)
    given = parameters.parameters_of(document)
    custom = parameters.custom_parameters(given)
    entries = array(required(document, "inputs"), "inputs")
    inputs = _Inputs(body, length, model_name, limits).read(entries)
    wanted, forms = _outputs(document, given)
    request = InferRequest(
        model_name,
        inputs,
        version,
        identity,
        tuple(wanted),
        custom,
        parameters.number(given, "priority"),
        parameters.number(given, "timeout"),
        parameters.sequence_of(given),
        classifications={name: count for name, count in wanted.items() if count},
    )
    return request, forms


def check_json_size(length: int, limits: Limits) -> None:
    """Raise InvalidArgument for a JSON text of more bytes than the limit allows."""
    if length > limits.json_size:
        raise InvalidArgument(
            f"request JSON size of {length} bytes exceeds the maximum allowed input size of "
            f"{limits.json_size} bytes. Use --http-max-input-size to increase the limit."
        )


class _Inputs:
    """Reads the inputs of one request; `_position` is where the next raw data starts."""

    __slots__ = ("_body", "_limits", "_model_name", "_position")

    def __init__(self, body: bytes, start: int, model_name: str, limits: Limits) -> None:
        self._body = memoryview(body)
        self._position = start
        self._model_name = model_name
        self._limits = limits

    def read(self, entries: list[Any]) -> tuple[Tensor, ...]:
        inputs = tuple([self._input(entry) for entry in entries])
        if self._position != len(self._body):
            raise InvalidArgument(
                f"unexpected additional input data for model '{self._model_name}'"
            )
        return inputs

    def _input(self, entry: Any) -> Tensor:
        data, size, region = _source(entry)
        name = text(required(entry, "name"), "name")
        type_name = text(required(entry, "datatype"), "datatype")
        shape, count = _shape(name, array(required(entry, "shape"), "shape"))
        if region is not MISSING:
            raise no_region(text(region, "shared_memory_region"))
        datatype = DATA_TYPES.get(type_name)
        if datatype is None:
            raise InvalidArgument(f"invalid datatype for input {name}")
        if size is not MISSING:
            return Tensor(name, datatype, shape, self._take(name, size))
        if not shape or count == 0:
            return Tensor(name, datatype, shape, b"")
        elements = array(data, "data")
        self._check_size(name, count * datatype.size)
        raw = to_raw(name, datatype, count, elements)
        self._check_size(name, len(raw))
        return Tensor(name, datatype, shape, raw)

    def _take(self, name: str, value: Any) -> memoryview:
        start, size = self._position, unsigned(value, "binary_data_size")
        end = start + size
        if end > len(self._body):
            raise InvalidArgument(
                f"unexpected size for input '{name}', expecting {end - len(self._body)} "
                f"additional bytes for model '{self._model_name}'"
            )
        self._position = end
        return self._body[start:end]

    def _check_size(self, name: str, size: int) -> None:
        if size > MAX_COUNT:
            raise InvalidArgument(f"byte size overflow for input '{name}'")
        if size > self._limits.json_size:
            raise InvalidArgument(
                f"JSON input '{name}' has a byte_size of {size} bytes, which exceeds the maximum "
                f"allowed input size of {self._limits.json_size} bytes. "
                "Use --http-max-input-size to increase the limit."
            )


def _source(entry: Any) -> tuple[Any, Any, Any]:
    """Where an input's data is: `data`, `binary_data_size` and `shared_memory_region`, of which
    one only is not MISSING."""
    given = member(entry, "parameters")
    found = {
        "data": member(entry, "data"),
        "binary_data_size": member(given, "binary_data_size"),
        "shared_memory_region": member(given, "shared_memory_region"),
    }
    data, size, region = found.values()
    if (data is MISSING) + (size is MISSING) + (region is MISSING) == 2:
        return data, size, region
    fields = [f"'{field}'" for field, value in found.items() if value is not MISSING]
    raise InvalidArgument(
        "Input must set only one of the following fields: 'data', 'binary_data_size' in "
        "'parameters', 'shared_memory_region' in 'parameters'. But "
        + (f"set {' '.join(fields)}" if fields else "no field is set")
    )


def _shape(name: str, dims: list[Any]) -> tuple[Shape, int]:
    """The shape and its number of elements."""
    shape = tuple([unsigned(dim, "shape") for dim in dims])
    count = element_count(shape)
    if count > MAX_COUNT or (shape and max(shape) > MAX_COUNT):
        raise InvalidArgument(
            f"shape for input '{name}' causes total element count to exceed maximum size of "
            f"{MAX_COUNT}"
        )
    return shape, count


def no_region(name: str) -> NotFound:
    """The error for a shared-memory region; none can be registered."""
    return NotFound(f"Unable to find shared memory region: '{name}'")


def _outputs(document: Any, given: dict[str, Any]) -> tuple[Mapping[str, int], OutputForms]:
    """The outputs asked for, each with how many classes are wanted of it, 0 for the tensor
    itself; and how to send them."""
    all_binary = parameters.flag(given, "binary_data_output")
    listed = document.get("outputs", MISSING)
    entries = [] if listed is MISSING else array(listed, "outputs")
    if not entries:
        return {}, ALL_BINARY if all_binary else ALL_JSON
    wanted: dict[str, int] = {}
    binary = []
    for entry in entries:
        name = text(required(entry, "name"), "name")
        if name in wanted:
            raise InvalidArgument(f"output '{name}' already exists in request")
        wanted[name], is_binary = _form(parameters.parameters_of(entry))
        if is_binary:
            binary.append(name)
    return wanted, OutputForms(binary=binary)


def _form(given: dict[str, Any]) -> tuple[int, bool]:
    """Of the parameters of an output: the number of classes, and whether it goes back as raw
    bytes."""
    region = given.get("shared_memory_region", MISSING)
    if region is not MISSING:
        raise no_region(text(region, "shared_memory_region"))
    return (
        unsigned(given.get("classification", 0), "classification"),
        boolean(given.get("binary_data", False), "binary_data"),
    )
