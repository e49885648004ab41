"""Memory of a GPU that another process shares, through the CUDA driver's own library.

The names and numbers are those of the CUDA driver API. Everything here blocks, and may be called
from any thread: each call makes the device's context current on its thread and takes it off again.
"""

import contextlib
import ctypes
import functools
import weakref
from collections.abc import Iterator, Mapping
from ctypes import POINTER, byref
from typing import Any

import numpy as np

from microkernel.errors import Internal, InvalidArgument
from microkernel.tensor import Buffer

HANDLE_SIZE = 64
"""The bytes of a handle that a process gives away to share an allocation."""

_LIBRARY = "libcuda.so.1"
_LAZY_PEER_ACCESS = 1


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_ubyte * HANDLE_SIZE),)


_context = ctypes.c_void_p
_address = ctypes.c_uint64
_SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGetCount": (POINTER(ctypes.c_int),),
    "cuDeviceGet": (POINTER(ctypes.c_int), ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(_context), ctypes.c_int),
    "cuCtxPushCurrent_v2": (_context,),
    "cuCtxPopCurrent_v2": (POINTER(_context),),
    "cuIpcOpenMemHandle_v2": (POINTER(_address), _Handle, ctypes.c_uint),
    "cuIpcCloseMemHandle": (_address,),
    "cuMemGetAddressRange_v2": (POINTER(_address), POINTER(ctypes.c_size_t), _address),
    "cuMemcpyDtoH_v2": (ctypes.c_void_p, _address, ctypes.c_size_t),
    "cuMemcpyHtoD_v2": (_address, ctypes.c_void_p, ctypes.c_size_t),
    "cuStreamSynchronize": (ctypes.c_void_p,),
    "cuGetErrorString": (ctypes.c_int, POINTER(ctypes.c_char_p)),
}


class CudaDriver:
    """The driver of this host, initialised. `devices` is how many GPUs it sees."""

    def __init__(self, library: Any) -> None:
        """`library` holds the driver's functions. Raises Internal where it cannot be initialised,
        and AttributeError where it is too old to have them all."""
        self._library = library
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        self.call("cuInit", 0)
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", byref(count))
        self.devices = count.value
        self._contexts: dict[int, int] = {}

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver. Raises Internal with the driver's reason where it
        fails."""
        code = getattr(self._library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, byref(text))
            reason = (text.value or b"unknown error").decode("utf-8", "replace")
            raise Internal(f"the CUDA driver failed in {name}: {reason} ({code})")

    def context(self, device: int) -> int:
        """The primary context of a device, which every library in this process shares; it is kept
        until the process ends."""
        if device not in self._contexts:
            handle, context = ctypes.c_int(), ctypes.c_void_p()
            self.call("cuDeviceGet", byref(handle), device)
            self.call("cuDevicePrimaryCtxRetain", byref(context), handle.value)
            self._contexts[device] = context.value or 0
        return self._contexts[device]

    @contextlib.contextmanager
    def on(self, context: int) -> Iterator[None]:
        """Work in a context."""
        self.call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", byref(ctypes.c_void_p()))

    def open(self, handle: bytes, device: int) -> "CudaMemory":
        """Map the allocation behind a handle of HANDLE_SIZE bytes. Raises InvalidArgument for a
        device that there is not, and Internal where the driver refuses."""
        if not 0 <= device < self.devices:
            raise InvalidArgument(
                f"there is no GPU {device}; device_id must be below {self.devices}"
            )
        context, address = self.context(device), ctypes.c_uint64()
        with self.on(context):
            packed = _Handle.from_buffer_copy(handle)
            self.call("cuIpcOpenMemHandle_v2", byref(address), packed, _LAZY_PEER_ACCESS)
        return CudaMemory(self, context, address.value)


class CudaMemory:
    """An allocation that another process made, mapped here until `close` is called or nobody holds
    this any more."""

    def __init__(self, driver: CudaDriver, context: int, address: int) -> None:
        self._driver = driver
        self._context = context
        self._address = address
        self.close = weakref.finalize(self, _close, driver, context, address)

    def size(self) -> int:
        """How many bytes there are. Raises Internal where the driver does not know."""
        base, size = ctypes.c_uint64(), ctypes.c_size_t()
        with self._driver.on(self._context):
            self._driver.call("cuMemGetAddressRange_v2", byref(base), byref(size), self._address)
        return base.value + size.value - self._address

    def read(self, offset: int, count: int) -> Buffer:
        """A copy of `count` bytes from `offset`, which lie within the allocation."""
        data = bytearray(count)
        if count:
            target = (ctypes.c_char * count).from_buffer(data)
            with self._driver.on(self._context):
                self._driver.call("cuMemcpyDtoH_v2", target, self._address + offset, count)
        return data

    def write(self, offset: int, data: Buffer) -> None:
        """Put bytes at `offset`; they fit into the allocation. They are there when this returns,
        for every process."""
        if not len(data):
            return
        source = np.frombuffer(data, np.uint8)
        with self._driver.on(self._context):
            self._driver.call(
                "cuMemcpyHtoD_v2", self._address + offset, source.ctypes.data, len(data)
            )
            self._driver.call("cuStreamSynchronize", None)  # the copy returns when it is staged


def _close(driver: CudaDriver, context: int, address: int) -> None:
    """Unmap an allocation; when the driver fails in it there is nothing left to give back."""
    with contextlib.suppress(Internal), driver.on(context):
        driver.call("cuIpcCloseMemHandle", address)


@functools.cache
def cuda_driver() -> CudaDriver | None:
    """The driver, None on a host without one or without a GPU. Takes a moment the first time."""
    try:
        driver = CudaDriver(ctypes.CDLL(_LIBRARY))
    except (OSError, AttributeError, Internal):
        return None
    return driver if driver.devices else None
