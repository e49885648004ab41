"""Data types on both sides, and tensors from one side to the other without copying."""

from collections.abc import Mapping
from typing import Any

import torch

from microkernel import BY_CONFIG_NAME, DataType, Internal, Tensor, encode_bytes, raw_view
from microkernel_torchscript.failures import FAILURE

_UNSIGNED = ("uint16", "uint32", "uint64")  # torch has them since 2.3

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
    "TYPE_BF16": torch.bfloat16,
    **{f"TYPE_{n.upper()}": getattr(torch, n) for n in _UNSIGNED if hasattr(torch, n)},
}
"""What can be fed and read, the larger unsigned types and BF16 among it, which Triton's backend
refuses; strings are lists of `str` and stand apart."""

CONFIG_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH_TYPES.items()}
STRING = "TYPE_STRING"


def is_supported(data_type: str) -> bool:
    """Whether a type of the configuration has a counterpart in torch."""
    return data_type in TORCH_TYPES or data_type == STRING


def type_name(value: Any) -> str:
    """The configuration's name for the type of a result: a tensor or a list of strings."""
    if not isinstance(value, torch.Tensor):
        return STRING
    return CONFIG_NAMES.get(value.dtype, f"TYPE_INVALID ({value.dtype})")


def to_torch(tensor: Tensor, writes: bool = False) -> torch.Tensor:
    """The tensor on the same memory, which `writes` says that the model may write to.

    Copied only where it lies at an address its type forbids, or would be written to though it is
    read-only, and so somebody else's; without data it becomes zeros of its shape.
    """
    dtype = TORCH_TYPES[tensor.datatype.config_name]
    if not tensor.nbytes:
        return torch.zeros(tensor.shape, dtype=dtype)
    flat = torch.frombuffer(tensor.data, dtype=dtype)
    if flat.data_ptr() % dtype.itemsize or (writes and memoryview(tensor.data).readonly):
        flat = flat.clone()
    return flat.view(tensor.shape)


def from_torch(name: str, value: Any) -> Tensor:
    """A result as a named tensor on the same memory where that is contiguous and on the host.
    `value` is a tensor of a supported type, for which `unreadable` says "", or a list of
    strings."""
    if not isinstance(value, torch.Tensor):
        return Tensor(name, _row(STRING), (len(value),), _encoded(name, value))
    if value.dtype is torch.bfloat16:  # which numpy lacks
        array = value.detach().contiguous().view(torch.int16).numpy(force=True)
    else:
        array = value.numpy(force=True)
    return Tensor(name, _row(CONFIG_NAMES[value.dtype]), array.shape, raw_view(array))


def unreadable(value: torch.Tensor) -> str:
    """Why a tensor has no plain bytes, with what the model should return; "" where it has."""
    if value.is_quantized:
        return f"is quantized ({value.dtype}); return it with .dequantize()"
    if value.is_nested:
        return "is a nested tensor; return it with .to_padded_tensor(0.0), or its parts as a tuple"
    if value.layout is not torch.strided:
        return f"is not a dense tensor ({value.layout}); return it with .to_dense()"
    if value.is_complex():
        return f"is complex ({value.dtype}); return it with torch.view_as_real"
    if value.is_meta:
        return "is on the device 'meta', where tensors have no data"
    return ""


def _encoded(name: str, words: list[str]) -> bytes:
    try:
        return encode_bytes(words)
    except UnicodeEncodeError:
        raise Internal(f"{FAILURE}output '{name}' holds a string that is no Unicode text") from None


def _row(config_name: str) -> DataType:
    return BY_CONFIG_NAME[config_name]
