"""The pure-Python part of `triton_python_backend_utils`: data types, BYTES elements, look-ups."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from microkernel import BY_NUMBER, DATA_TYPES, InvalidArgument, decode_bytes, encode_bytes
from microkernel_python.errors import TritonModelException

Array: TypeAlias = npt.NDArray[Any]
Entry: TypeAlias = dict[str, Any]

TRITON_STRING_TO_NUMPY: dict[str, type[Any]] = {
    row.config_name: row.numpy.type for row in DATA_TYPES.values() if row.numpy is not None
} | {"TYPE_BOOL": bool}
"""numpy's type for each of the configuration's; TYPE_BF16 has none."""

_TO_NUMBER: Mapping[np.dtype[Any], int] = {
    row.numpy: row.number for row in DATA_TYPES.values() if row.numpy is not None
}


class Named(Protocol):
    """A tensor, as far as look-ups go."""

    def name(self) -> str:
        """The tensor's name."""
        ...


T = TypeVar("T", bound=Named)


class HasInputs(Protocol[T]):
    """A request, as far as look-ups go."""

    def inputs(self) -> list[T]:
        """The tensors of the request."""
        ...


class HasOutputs(Protocol[T]):
    """A response, as far as look-ups go."""

    def output_tensors(self) -> list[T]:
        """The tensors of the response."""
        ...


def get_input_tensor_by_name(inference_request: HasInputs[T], name: str) -> T | None:
    """The request's input of that name; None where the client left it out."""
    return next((t for t in inference_request.inputs() if t.name() == name), None)


def get_output_tensor_by_name(inference_response: HasOutputs[T], name: str) -> T | None:
    """The response's output of that name, or None."""
    return next((t for t in inference_response.output_tensors() if t.name() == name), None)


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> Entry | None:
    """The entry of an input in the parsed configuration, or None."""
    return _entry(model_config, "input", name)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> Entry | None:
    """The entry of an output in the parsed configuration, or None."""
    return _entry(model_config, "output", name)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether the parsed configuration says that a request may have any number of responses."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def triton_string_to_numpy(triton_type_string: str) -> type[Any]:
    """numpy's type for a name such as `TYPE_FP32`. Raises KeyError for a name it does not know."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def triton_to_numpy_type(data_type: int) -> type[Any] | None:
    """numpy's type for the number of a data type, or None."""
    row = BY_NUMBER.get(data_type)
    return None if row is None or row.numpy is None else row.numpy.type


def numpy_to_triton_type(data_type: npt.DTypeLike) -> int | None:
    """The number of the data type for a numpy type, or None."""
    dtype = np.dtype(data_type)
    return DATA_TYPES["BYTES"].number if dtype.kind == "S" else _TO_NUMBER.get(dtype)


def serialize_byte_tensor(input_tensor: Array) -> bytes | tuple[()] | None:
    """The elements in row-major order, each as a 4-byte little-endian length and its bytes.

    As in Triton an empty array gives `()`, and an array of neither objects nor bytes gives None.
    """
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    return encode_bytes(input_tensor.reshape(-1).tolist())


def deserialize_bytes_tensor(encoded_tensor: bytes) -> Array:
    """The elements of a serialised tensor as a one-dimensional array of `bytes` objects.

    Raises TritonModelException where the data ends inside an element.
    """
    try:
        return objects(decode_bytes(encoded_tensor, "encoded_tensor"))
    except InvalidArgument as error:
        raise TritonModelException(str(error)) from None


def objects(values: list[bytes]) -> Array:
    """A one-dimensional array of these very objects."""
    array = np.empty(len(values), dtype=np.object_)
    array[:] = values
    return array


def _entry(model_config: Mapping[str, Any], direction: str, name: str) -> Entry | None:
    return next((e for e in model_config.get(direction, ()) if e.get("name") == name), None)
