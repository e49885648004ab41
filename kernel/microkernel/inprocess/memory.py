"""Memory that tensors lie in, and the ways to name where it lies."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from microkernel import dlpack
from microkernel.errors import InvalidArgument, Unsupported
from microkernel.inprocess.enums import DLDeviceType, MemoryType
from microkernel.tensor import Array

DeviceOrMemoryType: TypeAlias = (
    tuple[MemoryType | DLDeviceType | int, int] | MemoryType | DLDeviceType | str
)
"""A place: a kind, a kind and the number of the device, or text such as `cpu` and `gpu:0`."""

_BY_NAME = {kind.name: kind for kind in MemoryType}
_BY_DEVICE = {
    DLDeviceType.kDLCPU: MemoryType.CPU,
    DLDeviceType.kDLCUDA: MemoryType.GPU,
    DLDeviceType.kDLCUDAHost: MemoryType.CPU_PINNED,
}


def parse_place(place: DeviceOrMemoryType) -> tuple[MemoryType, int]:
    """The kind of memory and the number of its device. Raises InvalidArgument for what names no
    place."""
    given: Any = place
    kind, number = given if isinstance(given, tuple) and len(given) == 2 else (given, 0)
    if isinstance(kind, str):
        name, _, digits = kind.partition(":")
        kind = _BY_NAME.get(name.upper().strip(), name)
        number = int(digits) if digits.isdecimal() else number if not digits else -1
    if isinstance(kind, DLDeviceType):
        kind = _BY_DEVICE.get(kind, kind)
    if not isinstance(kind, MemoryType) or not isinstance(number, int) or number < 0:
        raise InvalidArgument(
            f"{place!r} names no memory; give a MemoryType, a MemoryType and the number of its "
            "device, or text such as 'cpu' or 'gpu:0'"
        )
    return kind, number


def require_host(place: DeviceOrMemoryType, what: str) -> None:
    """Raise Unsupported, naming the place and `what` wanted it, for any but ordinary host
    memory."""
    kind, number = parse_place(place)
    if kind is not MemoryType.CPU:
        raise Unsupported(f"{what}: memory of kind {kind.name}:{number} is not offered, only CPU")


@dataclass(slots=True, weakref_slot=True, eq=False)
class MemoryBuffer:
    """A piece of memory: its address, where it lies, its size in bytes, and the object that keeps
    it valid. It can be used as long as the buffer, or anything made from it, lives."""

    data_ptr: int
    memory_type: MemoryType
    memory_type_id: int
    size: int
    owner: Any

    @staticmethod
    def from_dlpack(owner: Any) -> "MemoryBuffer":
        """The memory of an object with `__dlpack__`, or of a numpy array. Nothing is copied.

        Raises InvalidArgument where it is not contiguous in row-major order, and Unsupported for
        memory of another device.
        """
        array = owner if isinstance(owner, np.ndarray) else dlpack.load_dlpack(owner)[0]
        return buffer_of(array)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The bytes for numpy, which keeps this buffer alive."""
        if self.memory_type is MemoryType.GPU:
            raise Unsupported("memory of a GPU cannot be read from the host")
        # Read-only memory is shown as writable: DLPack cannot say that it is, and would copy.
        return {
            "version": 3,
            "shape": (self.size,),
            "typestr": "|u1",
            "data": (self.data_ptr, False),
        }

    def as_bytes(self) -> Array:
        """All of it as an array of bytes that keeps this buffer alive."""
        return np.asarray(self) if self.size else np.empty(0, np.uint8)


def buffer_of(array: Array, owner: Any = None) -> MemoryBuffer:
    """The memory of an array. `owner` keeps it valid where the array itself does not. Raises
    InvalidArgument where the array is not contiguous."""
    if not array.flags.c_contiguous:
        raise InvalidArgument("a tensor must be contiguous in row-major (C) order")
    address: int = array.__array_interface__["data"][0]
    return MemoryBuffer(address, MemoryType.CPU, 0, array.nbytes, array if owner is None else owner)
