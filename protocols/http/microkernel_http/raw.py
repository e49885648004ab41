"""A request that is nothing but the data of a model's only input, with no JSON at all."""

import struct

from microkernel import (
    BY_CONFIG_NAME,
    DATA_TYPES,
    InferRequest,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    Shape,
    Tensor,
    element_count,
)
from microkernel_http.decode import Limits

_TAG = "[request id: <id_unknown>] "


def decode_raw(
    body: bytes, config: ModelConfig, model_name: str, version: int, limits: Limits
) -> InferRequest:
    """The request of a body without JSON: the shape is derived from the configuration and the
    size of the body, and a BYTES input gets its length prefix.

    Raises InvalidArgument where the model has several inputs, where more than one dimension is
    variable, and where the size fits no shape.
    """
    if len(body) > limits.json_size:
        raise InvalidArgument(
            f"Raw input has a byte_size of {len(body)} bytes, which exceeds the maximum allowed "
            f"input size of {limits.json_size} bytes. "
            "Use --http-max-input-size to increase the limit."
        )
    if len(config.input) != 1:
        raise InvalidArgument(
            f"{_TAG}Raw request must only have 1 input (found 1) to be deduced but got "
            f"{len(config.input)} inputs in '{model_name}' model configuration"
        )
    only = config.input[0]
    datatype = BY_CONFIG_NAME[only.data_type]
    batch = (1,) if config.max_batch_size else ()
    if datatype is DATA_TYPES["BYTES"]:
        shape, data = _text_shape(only, model_name), struct.pack("<I", len(body)) + body
    else:
        shape, data = _number_shape(only, datatype.size, len(body), model_name), body
    tensor = Tensor(only.name, datatype, (*batch, *shape), memoryview(data))
    _check_size(tensor, len(data), model_name)
    return InferRequest(model_name, (tensor,), version)


def _text_shape(only: ModelInput, model_name: str) -> Shape:
    shape = tuple(1 if dim == -1 else dim for dim in only.dims)
    if element_count(shape) != 1:
        raise InvalidArgument(
            f"{_TAG}For BYTE datatype raw input '{only.name}', the model '{model_name}' must have "
            f"input shape of one element, its dims are {list(only.dims)}"
        )
    return shape


def _number_shape(only: ModelInput, size: int, available: int, model_name: str) -> Shape:
    if only.dims.count(-1) > 1:
        raise InvalidArgument(
            f"{_TAG}The shape of the raw input '{only.name}' can not be deduced because there are "
            f"more than one variable-sized dimension in '{model_name}' model configuration"
        )
    fixed = element_count(dim for dim in only.dims if dim != -1)
    variable = available // (size * fixed) if fixed else 0
    return tuple(variable if dim == -1 else dim for dim in only.dims)


def _check_size(tensor: Tensor, found: int, model_name: str) -> None:
    wanted = element_count(tensor.shape) * tensor.datatype.size
    if tensor.datatype.size and wanted != found:
        raise InvalidArgument(
            f"{_TAG}input byte size mismatch for input 'raw_input' for model '{model_name}'. "
            f"Expected {wanted}, got {found}"
        )
