"""Threads that share the heaps of the C library."""

import platform
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

from microkernel import processors

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc tells of its heaps"
)

SCRIPT = """
import ctypes, sys, threading
from microkernel_torchscript.script.heap import pool_heaps

if sys.argv[1] == "pooled":
    pool_heaps()
libc = ctypes.CDLL(None)
for name in ("malloc", "fdopen"):
    getattr(libc, name).restype = ctypes.c_void_p
together = threading.Barrier(13)

def work():
    libc.malloc(ctypes.c_size_t(1 << 16))
    together.wait(60)
    together.wait(60)

threads = [threading.Thread(target=work) for _ in range(12)]
for thread in threads:
    thread.start()
together.wait(60)
stream = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, stream)
libc.fflush(stream)
together.wait(60)
for thread in threads:
    thread.join()
"""


def heaps(how: str) -> int:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=100, check=True
    )
    return ended.stdout.count("<heap nr=")


def test_threads_share_a_few_heaps_once_they_are_told_to() -> None:
    assert 1 <= heaps("pooled") <= min(4, processors())
    assert heaps("apart") > 4
