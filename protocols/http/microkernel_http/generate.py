"""The mapping of generate requests and responses; nothing here knows aiohttp.

A member of the request, or of its member `parameters`, is an input where the model has one of that
name, else a parameter. A response is one flat object.
"""

from collections.abc import Mapping
from typing import Any

from microkernel import (
    BY_CONFIG_NAME,
    InferRequest,
    InferResponse,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    Parameter,
    Shape,
    Tensor,
)
from microkernel_http import document
from microkernel_http.decode import Limits, check_json_size
from microkernel_http.elements import to_json, to_raw
from microkernel_http.nesting import kinds_of
from microkernel_http.parameters import custom

_PARAMETERS = "parameters"


def to_request(body: bytes, config: ModelConfig, version: int, limits: Limits) -> InferRequest:
    """The request that a body means to a model.

    Raises Internal for what is no JSON object and for elements of the wrong kind, InvalidArgument
    for an input given twice, for values that fit no shape of their input or no parameter, and for
    more bytes than the limit allows.
    """
    check_json_size(len(body), limits)
    given = document.parse(body, pairs=True)
    if type(given) is not tuple:
        document.refuse("the request", "object")
    mapping = _Mapping(config, limits)
    identity = ""
    for key, value in given:
        if key == _PARAMETERS:
            mapping.take_parameters(value)
            continue
        if key == "id":
            identity = document.text(value, key)
        mapping.take(key, value)
    inputs = tuple(mapping.tensors.values())
    return InferRequest(config.name, inputs, version, identity, parameters=mapping.parameters)


class _Mapping:
    """What a request is turned into, member by member."""

    def __init__(self, config: ModelConfig, limits: Limits) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.parameters: dict[str, Parameter] = {}
        self._inputs: Mapping[str, ModelInput] = {entry.name: entry for entry in config.input}
        self._batch = (-1,) if config.max_batch_size else ()
        self._limit = limits.json_size
        self._size = 0

    def take(self, key: str, value: Any) -> None:
        """Turn a member into an input or a parameter."""
        entry = self._inputs.get(key)
        if entry is None:
            self.parameters[key] = custom(key, value)
            return
        if key in self.tensors:
            raise InvalidArgument(f"input '{key}' already exists in request")
        tensor = _tensor(entry, self._batch, value)
        self._size += tensor.nbytes
        if self._size > self._limit:
            raise InvalidArgument(
                f"JSON input '{key}' has a byte_size of {tensor.nbytes} bytes and makes the inputs "
                f"{self._size} bytes in all, which exceeds the maximum allowed input size of "
                f"{self._limit} bytes. Use --http-max-input-size to increase the limit."
            )
        self.tensors[key] = tensor

    def take_parameters(self, value: Any) -> None:
        """Turn the members of `parameters` into inputs and parameters."""
        if type(value) is not tuple:
            raise InvalidArgument(f"Expected JSON object for keyword: '{_PARAMETERS}'")
        try:
            for key, inner in value:
                self.take(key, inner)
        except MicrokernelError as error:
            raise type(error)(f"Converting keyword: '{_PARAMETERS}': {error}") from None


def _tensor(entry: ModelInput, batch: Shape, value: Any) -> Tensor:
    elements = value if type(value) is list else [value]
    shape = lay_out(len(elements), (*batch, *entry.dims))
    if shape is None or list in kinds_of(elements):
        raise InvalidArgument(
            f"can not convert input '{entry.name}' to tensor with proper shape: it must be a "
            f"scalar or a flat array whose length fits the dims {[*batch, *entry.dims]}"
        )
    datatype = BY_CONFIG_NAME[entry.data_type]
    raw = to_raw(entry.name, datatype, len(elements), elements)
    return Tensor(entry.name, datatype, shape, raw)


def lay_out(count: int, dims: Shape) -> Shape | None:
    """A shape of `count` elements that fits `dims`: the innermost variable dimension takes what the
    fixed ones leave, the other variable ones become 1. None where there is none."""
    fixed = 1
    for dim in dims:
        fixed *= dim if dim != -1 else 1
    if -1 not in dims:
        return dims if fixed == count else None
    if not fixed or count % fixed:
        return None
    innermost = len(dims) - 1 - dims[::-1].index(-1)
    ones = tuple(1 if dim == -1 else dim for dim in dims)
    return (*ones[:innermost], count // fixed, *ones[innermost + 1 :])


def from_response(response: InferResponse) -> dict[str, Any]:
    """The object that a response becomes. An output of one element is a scalar, any other a flat
    array. Raises InvalidArgument for FP16 and BF16 outputs."""
    flat: dict[str, Any] = {"id": response.id} if response.id else {}
    flat["model_name"] = response.model_name
    flat["model_version"] = str(response.version)
    flat.update(response.parameters)
    for output in response.outputs:
        elements = to_json(output)
        flat[output.name] = elements[0] if len(elements) == 1 else elements
    return flat
