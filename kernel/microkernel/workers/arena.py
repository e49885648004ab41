"""Memory that the server and a worker both see: blocks, each one anonymous memory file.

The server makes every block and hands its descriptor over the instance's socket, so there is no
name to guess or to leak and nothing is left when both processes are gone. A block of outputs is
leased as a whole to the responses of one batch and comes back when the last view on it is gone.
"""

import fcntl
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

SMALLEST = 16 * 1024
ALIGNMENT = 64


def aligned(size: int) -> int:
    """The next offset at which a tensor may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def block_size(needed: int) -> int:
    """The size of a block for `needed` bytes: a power of two, so that growing stays rare."""
    return max(SMALLEST, 1 << (needed - 1).bit_length())


class Block:
    """A piece of shared memory, mapped here. `view` and `array` cover all of it."""

    def __init__(self, number: int, descriptor: int, size: int) -> None:
        """Map `size` bytes of the file; the descriptor belongs to the block from now on."""
        self.number = number
        self.size = size
        self.descriptor = descriptor
        self.view = memoryview(mmap.mmap(descriptor, size))
        self.array = np.frombuffer(self.view, np.uint8)

    @classmethod
    def create(cls, number: int, size: int) -> "Block":
        """A new block of zeros. Raises OSError where the system has no memory for it."""
        return cls(number, _anonymous_file(size), size)

    def close(self) -> None:
        """Give the memory back; what is still viewed stays mapped until the last view is gone."""
        os.close(self.descriptor)
        self.view = memoryview(b"")
        self.array = np.frombuffer(self.view, np.uint8)


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("microkernel", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        # A worker that shrank the file would make the server's next access a bus error.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return descriptor
    with tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows here, not as a bus error
        return os.dup(file.fileno())


class BlockPool:
    """The output blocks of one instance, on the server's side.

    `take` gives a free block, `lease` hands one to the responses of a batch. At most `KEPT` free
    blocks stay; `retire` is called with each one that goes, so that the worker can unmap it too.
    """

    KEPT = 4

    def __init__(self, create: Callable[[int], Block], retire: Callable[[Block], None]) -> None:
        self._create = create
        self._retire = retire
        self._free: list[Block] = []
        self._leases: dict[int, weakref.ref[Any]] = {}
        self._needed = 0
        self._closed = False

    def take(self) -> Block | None:
        """The largest free block, else a new one as large as the last that was needed; None before
        anybody knows what is needed. A worker without a block has to ask, which costs a trip."""
        if self._free:
            return self._free.pop()
        return self._create(self._needed) if self._needed else None

    def grow(self, needed: int, small: Block | None) -> Block:
        """A block of at least `needed` bytes in place of one that was too small."""
        if small is not None:
            self._retire(small)
        if self._free and self._free[-1].size >= needed:
            return self._free.pop()
        self._needed = block_size(needed)
        return self._create(self._needed)

    def give_back(self, block: Block) -> None:
        """The block is free again."""
        if self._closed:
            block.close()
            return
        self._free.append(block)
        if len(self._free) > 1:
            self._free.sort(key=lambda b: b.size)
        if len(self._free) > self.KEPT:
            self._retire(self._free.pop(0))

    def lease(self, block: Block) -> memoryview:
        """A view of the block that gives it back when the last view made from it is gone."""
        owner = block.array[:]  # an object of its own, which only the views keep alive
        self._leases[block.number] = weakref.ref(owner, partial(self._returned, block))
        return owner.data

    def _returned(self, block: Block, _: object) -> None:
        del self._leases[block.number]
        self.give_back(block)

    def close(self) -> None:
        """The instance is gone: free blocks are closed now, leased ones as they come back."""
        self._closed = True
        while self._free:
            self._free.pop().close()
