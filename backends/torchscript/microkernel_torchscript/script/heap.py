"""How much memory the C library keeps for threads that are not computing."""

import contextlib
import ctypes

from microkernel import processors

_ARENA_MAX = -8
"""`M_ARENA_MAX` of glibc's malloc.h."""

_MOST = 4


def pool_heaps() -> None:
    """Let the threads that start from now on share a few heaps, where the C library can.

    Otherwise each keeps what its largest batch needed, which for many instances comes to more than
    the weights that they share. The price is some waiting for each other when they allocate.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library has no such setting
        ctypes.CDLL(None).mallopt(_ARENA_MAX, min(_MOST, processors()))
