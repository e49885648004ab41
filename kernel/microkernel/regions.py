"""Regions of shared memory: what a client has registered, open to be read and written.

A region of the system is read and written through its descriptor and never mapped: a client may
truncate its object at any time, and touching a mapping beyond the end would kill the server.
"""

import mmap
import os
import re
import weakref
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from microkernel.cuda_ipc import HANDLE_SIZE, CudaDriver, CudaMemory
from microkernel.errors import Internal, InvalidArgument
from microkernel.open_files import none_left
from microkernel.port import CudaRegion, SystemRegion
from microkernel.request import RegionPart
from microkernel.tensor import Buffer

LARGEST_INPUT = 2**31 - 1
"""The most bytes that one input may take from a region: what a message may hold, too."""

_FOLDER = Path("/dev/shm")
_RESERVED = "triton_python_backend_shm_region_"
_KEY = re.compile(r"[^/\0]{1,255}")
_LARGEST = 2**63 - 1
_QUICK = 1 << 20


class Region(ABC):
    """A registered region. Its memory stays open as long as somebody holds the region."""

    kind: ClassVar[str]
    """`system` or `CUDA`."""

    def __init__(self, name: str, byte_size: int) -> None:
        self.name = name
        self.byte_size = byte_size

    def check(self, part: RegionPart) -> None:
        """Raise InvalidArgument for a part that does not lie within the region."""
        end = part.offset + part.byte_size
        if end > _LARGEST:
            raise InvalidArgument(
                f"Integer overflow detected for shared memory region: '{self.name}'"
            )
        if not 0 <= part.offset < self.byte_size:
            raise InvalidArgument(f"Invalid offset for shared memory region: '{self.name}'")
        if part.byte_size < 0 or end > self.byte_size:
            raise InvalidArgument(
                f"Invalid offset + byte size for shared memory region: '{self.name}'"
            )

    def read(self, part: RegionPart) -> Buffer:
        """A copy of the bytes of a part. Raises InvalidArgument where the client has cut its object
        short, and Internal where a GPU does not give them."""
        self.check(part)
        if part.byte_size > LARGEST_INPUT:  # an object may be larger than the memory it has
            raise InvalidArgument(
                f"an input in shared memory region '{self.name}' may have at most "
                f"{LARGEST_INPUT} bytes, got {part.byte_size}"
            )
        return self._read(part)

    def write(self, part: RegionPart, data: Buffer, output: str) -> None:
        """Write an output into a part. Raises Internal where it does not fit or the client's memory
        cannot take it."""
        if len(data) > part.byte_size:
            raise Internal(
                f"shared memory size specified with the request for output '{output}' "
                f"({part.byte_size} bytes) should be at least {len(data)} bytes to hold the results"
            )
        self._write(part, data, output)

    @abstractmethod
    def is_slow(self, byte_size: int) -> bool:
        """Whether reading or writing so many bytes is too long for the event loop."""

    @abstractmethod
    def _read(self, part: RegionPart) -> Buffer: ...

    @abstractmethod
    def _write(self, part: RegionPart, data: Buffer, output: str) -> None: ...


class OpenSystemRegion(Region):
    """A part of an object of POSIX shared memory."""

    kind = "system"

    def __init__(self, about: SystemRegion) -> None:
        """Open the object. Raises InvalidArgument for a key that cannot be one, Internal where the
        object cannot be opened, and InvalidArgument where the region does not lie within it."""
        super().__init__(about.name, about.byte_size)
        self.about = about
        self._descriptor = _opened(about)
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        aligned = about.offset % mmap.ALLOCATIONGRANULARITY == 0  # Triton maps the region
        if about.byte_size <= 0 or not 0 <= about.offset <= size - about.byte_size or not aligned:
            raise _invalid(about.name)

    def is_slow(self, byte_size: int) -> bool:
        """Whether the copy is large."""
        return byte_size > _QUICK

    def _read(self, part: RegionPart) -> Buffer:
        data = bytearray(part.byte_size)
        done = os.preadv(self._descriptor, [data], self.about.offset + part.offset)
        if done != part.byte_size:
            raise InvalidArgument(
                f"shared memory region '{self.name}' has become shorter than it was when it was "
                "registered"
            )
        return data

    def _write(self, part: RegionPart, data: Buffer, output: str) -> None:
        start = self.about.offset + part.offset
        try:
            fits = start + len(data) <= os.fstat(self._descriptor).st_size
            done = os.pwritev(self._descriptor, [data], start) if fits and data else 0
        except OSError:
            done = -1
        if done != len(data):
            raise Internal(
                f"output '{output}' cannot be written to shared memory region '{self.name}', which "
                "has become shorter or is full"
            )


class OpenCudaRegion(Region):
    """A part of an allocation of a GPU, from its beginning."""

    kind = "CUDA"

    def __init__(self, about: CudaRegion, driver: CudaDriver) -> None:
        """Map the allocation; this may take long. Raises InvalidArgument for a handle of another
        length, a device that there is not and a region beyond the allocation, and Internal where
        the driver refuses the handle."""
        super().__init__(about.name, about.byte_size)
        if len(about.raw_handle) != HANDLE_SIZE:
            raise InvalidArgument(
                f"failed to register CUDA shared memory region '{about.name}': 'raw_handle' must "
                f"be {HANDLE_SIZE} bytes, got {len(about.raw_handle)}"
            )
        self.about = about
        self._memory: CudaMemory = driver.open(about.raw_handle, about.device_id)
        if not 0 < about.byte_size <= self._memory.size():
            self._memory.close()
            raise _invalid(about.name)

    def is_slow(self, byte_size: int) -> bool:
        """Always: a copy waits for what the device does."""
        return True

    def _read(self, part: RegionPart) -> Buffer:
        return self._memory.read(part.offset, part.byte_size)

    def _write(self, part: RegionPart, data: Buffer, output: str) -> None:
        self._memory.write(part.offset, data)


def _invalid(name: str) -> InvalidArgument:
    return InvalidArgument(f"failed to register shared memory region '{name}': invalid args")


def check_key(about: SystemRegion) -> str:
    """The file name of a region's object. Raises InvalidArgument for what cannot be one."""
    key = about.key.strip("/")
    if not _KEY.fullmatch(key) or key in (".", ".."):
        raise InvalidArgument(
            f"failed to register shared memory region '{about.name}': invalid shm key '{about.key}'"
        )
    if key.startswith(_RESERVED):
        raise InvalidArgument(
            f"cannot register shared memory region '{about.name}' with key '{about.key}' as the "
            f"key contains the reserved prefix '{_RESERVED}'"
        )
    return key


def _opened(about: SystemRegion) -> int:
    try:
        return os.open(_FOLDER / check_key(about), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        reason = ", for the server has too many files open" if none_left(error) else ""
        raise Internal(f"Unable to open shared memory region: '{about.key}'{reason}") from None
