"""DLPack for models, whose errors are TritonModelExceptions."""

from typing import Any

from microkernel import MicrokernelError, load_dlpack
from microkernel_python.datatypes import Array
from microkernel_python.errors import TritonModelException

CPU = (1, 0)


def load(obj: Any) -> tuple[Array, bool]:
    """The memory of a capsule or an exporting object as an array, and whether its elements are
    bfloat16, which are 16-bit integers in the array then. The capsule is used up.

    Raises TritonModelException where numpy cannot hold it, see `Tensor.from_dlpack`.
    """
    try:
        array, bfloat16 = load_dlpack(obj)
    except MicrokernelError as error:
        raise TritonModelException(str(error)) from None
    if not array.flags.c_contiguous:
        raise TritonModelException("a DLPack tensor must be contiguous in row-major (C) order")
    return array, bfloat16
