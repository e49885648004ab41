"""Data types on both sides, and tensors from one side to the other without copying."""

from collections.abc import Mapping
from typing import Any

import torch

from microkernel import BY_CONFIG_NAME, DataType, Tensor, encode_bytes, raw_view

TORCH_TYPES: Mapping[str, torch.dtype] = {
    "TYPE_BOOL": torch.bool,
    "TYPE_UINT8": torch.uint8,
    "TYPE_INT8": torch.int8,
    "TYPE_INT16": torch.int16,
    "TYPE_INT32": torch.int32,
    "TYPE_INT64": torch.int64,
    "TYPE_FP16": torch.float16,
    "TYPE_FP32": torch.float32,
    "TYPE_FP64": torch.float64,
}
"""What Triton's backend can feed and read; strings are lists of `str` and stand apart."""

CONFIG_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH_TYPES.items()}
STRING = "TYPE_STRING"


def is_supported(data_type: str) -> bool:
    """Whether a type of the configuration has a counterpart in TorchScript."""
    return data_type in TORCH_TYPES or data_type == STRING


def type_name(value: Any) -> str:
    """The configuration's name for the type of a result: a tensor or a list of strings."""
    if not isinstance(value, torch.Tensor):
        return STRING
    return CONFIG_NAMES.get(value.dtype, f"TYPE_INVALID ({value.dtype})")


def to_torch(tensor: Tensor) -> torch.Tensor:
    """The tensor on the same memory. Copied only where it lies at an address its type forbids;
    without data it becomes zeros of its shape."""
    dtype = TORCH_TYPES[tensor.datatype.config_name]
    if not tensor.nbytes:
        return torch.zeros(tensor.shape, dtype=dtype)
    flat = torch.frombuffer(tensor.data, dtype=dtype)
    if flat.data_ptr() % dtype.itemsize:
        flat = flat.clone()
    return flat.view(tensor.shape)


def from_torch(name: str, value: Any) -> Tensor:
    """A result as a named tensor on the same memory where that is contiguous and on the host.
    `value` is a tensor of a supported type or a list of strings."""
    if not isinstance(value, torch.Tensor):
        return Tensor(name, _row(STRING), (len(value),), encode_bytes(value))
    array = value.numpy(force=True)
    return Tensor(name, _row(CONFIG_NAMES[value.dtype]), array.shape, raw_view(array))


def _row(config_name: str) -> DataType:
    return BY_CONFIG_NAME[config_name]
