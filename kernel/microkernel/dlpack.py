"""DLPack capsules of host memory, made and read by numpy.

numpy has no bfloat16. Such elements pass as 16-bit integers, and the element type in the capsule's
descriptor is set right on either side.
"""

import ctypes
from typing import Any

import numpy as np

from microkernel.errors import InvalidArgument, Unsupported
from microkernel.tensor import Array

CPU = (1, 0)
"""The device of host memory."""

HOST_KINDS = (1, 3)
"""The kinds of devices whose memory the host reads: its own, and pinned for CUDA."""

_UNSIGNED, _BFLOAT = 1, 4
_NAME = b"dltensor"


class _Descriptor(ctypes.Structure):
    """The head of a managed tensor, as DLPack lays it out."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
    )


# Prototypes of our own: those on `ctypes.pythonapi` are shared with every other library.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _Holder:
    """What numpy wants around a capsule."""

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_options: object) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU


def export_dlpack(array: Array, *, bfloat16: bool = False, **options: Any) -> Any:
    """A capsule on the array's memory, or on a copy's where the array is read-only or not in the
    machine's byte order, which DLPack cannot say. With `bfloat16` the array holds such elements as
    16-bit integers. `options` are those of the array API's `__dlpack__` that numpy knows; those
    that are None are left out."""
    if not (array.flags.writeable and array.dtype.isnative):
        array = array.astype(array.dtype.newbyteorder("="), copy=True)
    given = {name: value for name, value in options.items() if value is not None}
    if not bfloat16:
        return array.__dlpack__(**given)
    given.pop("max_version", None)  # the descriptor lies elsewhere in newer capsules
    capsule = array.__dlpack__(**given)
    _descriptor(capsule).code = _BFLOAT
    return capsule


def load_dlpack(obj: Any) -> tuple[Array, bool]:
    """The memory of a capsule or an exporting object as an array, and whether its elements are
    bfloat16, which are 16-bit integers in the array then. The capsule is used up.

    Raises Unsupported for memory of another device, and InvalidArgument for what is no DLPack
    tensor or has elements that numpy lacks.
    """
    capsule = _capsule(obj)
    descriptor = _descriptor(capsule)
    if descriptor.device_type not in HOST_KINDS:
        raise Unsupported(
            f"DLPack device type {descriptor.device_type} is not offered; "
            "move the tensor to host memory"
        )
    bfloat16 = (descriptor.code, descriptor.bits, descriptor.lanes) == (_BFLOAT, 16, 1)
    if bfloat16:
        descriptor.code = _UNSIGNED
    try:
        array: Array = np.from_dlpack(_Holder(capsule))
    except (BufferError, RuntimeError) as error:
        raise InvalidArgument(f"cannot read the DLPack tensor: {error}") from None
    return array, bfloat16


def _capsule(obj: Any) -> object:
    if hasattr(obj, "__dlpack__"):
        try:
            obj = obj.__dlpack__()
        except (BufferError, RuntimeError, TypeError) as error:
            raise InvalidArgument(
                f"{type(obj).__name__} cannot be read through DLPack: {error}"
            ) from None
    if not _is_valid(obj, _NAME):
        raise InvalidArgument(
            "this needs an unused DLPack capsule, or an object with '__dlpack__' and "
            f"'__dlpack_device__', not {type(obj).__name__}"
        )
    return obj


def _descriptor(capsule: object) -> _Descriptor:
    """The descriptor inside a capsule, valid as long as the capsule is unused."""
    address = _get_pointer(capsule, _NAME)
    assert address is not None
    return _Descriptor.from_address(address)
