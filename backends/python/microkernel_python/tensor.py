"""`pb_utils.Tensor`: a named tensor in host memory."""

from typing import Any

import numpy as np

import microkernel
from microkernel import (
    DATA_TYPES,
    DataType,
    Internal,
    InvalidArgument,
    decode_bytes,
    element_count,
    export_dlpack,
)
from microkernel_python import dlpack
from microkernel_python.arguments import text
from microkernel_python.datatypes import Array, objects
from microkernel_python.errors import TritonModelException

_BYTES = DATA_TYPES["BYTES"]
_BF16 = DATA_TYPES["BF16"]


class Tensor:
    """A tensor made by the model from a numpy array, which is referenced, not copied, where it is
    contiguous in row-major order.

    Raises TypeError for anything but a numpy array, and TritonModelException for an empty name and
    for an element type the protocol lacks.
    """

    __slots__ = ("_array", "_datatype", "_memory", "_name", "_shape")

    def __init__(self, name: str | bytes, array: Array, /) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"a tensor is made from a numpy.ndarray, not {type(array).__name__}")
        ordered = array if array.flags.c_contiguous else array.copy(order="C")
        self._hold(_name(name), _datatype(array), ordered, ordered)

    def _hold(self, name: str, datatype: DataType, memory: Array, array: Array | None) -> None:
        """`memory` is what is sent, as 16-bit integers for BF16; `array` is what the model sees,
        None until it asks."""
        self._name = name
        self._datatype = datatype
        self._shape = memory.shape
        self._memory: Array | None = memory
        self._array = array

    def name(self) -> str:
        """The tensor's name."""
        return self._name

    def shape(self) -> list[int]:
        """The dimensions, the batch dimension included where the model batches."""
        return list(self._shape)

    def triton_dtype(self) -> int:
        """The number of the data type."""
        return self._datatype.number

    def is_cpu(self) -> bool:
        """Whether the tensor lies in host memory, as all do."""
        return True

    def as_numpy(self) -> Array:
        """The tensor as an array, the same one on every call; of a received tensor it is a private
        copy that may be changed and kept. BYTES elements are `bytes`.

        Raises TritonModelException for BF16, which numpy lacks.
        """
        if self._array is None:
            if self._datatype is _BF16:
                raise TritonModelException(
                    f"tensor '{self._name}' is BF16, which numpy lacks; use DLPack"
                )
            self._array = self._held().copy()
        return self._array

    def to_dlpack(self) -> object:
        """A capsule on a private copy of a received tensor, or on the array the model gave.

        Raises TritonModelException for BYTES.
        """
        if self._datatype is _BYTES:
            raise TritonModelException(f"tensor '{self._name}' is BYTES, which DLPack lacks")
        if self._datatype is _BF16:
            return export_dlpack(self._held().copy(), bfloat16=True)
        return export_dlpack(self.as_numpy())

    def __dlpack__(self, stream: object = None, **_options: object) -> Any:
        """As `to_dlpack`; host memory needs no stream."""
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        """Host memory: (1, 0)."""
        return dlpack.CPU

    @staticmethod
    def from_dlpack(name: str | bytes, obj: Any) -> "Tensor":
        """A tensor on the memory of a DLPack capsule, or of an object with `__dlpack__` and
        `__dlpack_device__`. Nothing is copied for sending.

        Raises TritonModelException for an empty name, for memory that is not contiguous in
        row-major order or not in host memory, and for element types the protocol lacks.
        """
        return _ImportedTensor(_name(name), obj)

    def encoded(self) -> microkernel.Tensor:
        """The tensor as the kernel takes it, a view on the memory wherever that is possible."""
        memory = np.asarray(self._held())
        if self._datatype is _BF16:
            raw = microkernel.raw_view(memory)
            return microkernel.Tensor(self._name, _BF16, self._shape, raw)
        return microkernel.Tensor.from_numpy(self._name, memory)

    def _held(self) -> Array:
        if self._memory is None:
            raise TritonModelException(
                f"tensor '{self._name}' of an earlier request is gone; call as_numpy() before "
                "'execute' returns to keep its data"
            )
        return self._memory


class _ImportedTensor(Tensor):
    """A tensor on memory that came through DLPack."""

    __slots__ = ()

    def __init__(self, name: str, obj: Any) -> None:
        memory, bfloat16 = dlpack.load(obj)
        self._hold(name, _BF16 if bfloat16 else _datatype(memory), memory, None)


class ReceivedTensor(Tensor):
    """An input of a request, on memory that is the kernel's until `release`.

    Raises InvalidArgument or Internal where the data does not fit the shape.
    """

    __slots__ = ()

    def __init__(self, source: microkernel.Tensor) -> None:
        memory = _received(source)
        array = memory if source.datatype is _BYTES else None
        self._hold(source.name, source.datatype, memory, array)

    def encoded(self) -> microkernel.Tensor:
        """A copy: outputs live longer than the inputs of their batch."""
        view = super().encoded()
        view.data = bytes(view.data)
        return view

    def release(self) -> None:
        """Let go of the kernel's memory; what the model took out with `as_numpy` stays."""
        self._memory = self._array


def _received(source: microkernel.Tensor) -> Array:
    if source.datatype is _BYTES:
        return _strings(source)
    if source.datatype is _BF16:
        return np.frombuffer(source.data, dtype="<u2").reshape(source.shape)
    return source.as_numpy()


def _strings(source: microkernel.Tensor) -> Array:
    elements = decode_bytes(source.data, source.name)
    expected = element_count(source.shape)
    if len(elements) > expected:
        raise InvalidArgument(
            f"unexpected number of string elements {len(elements)} for inference input "
            f"'{source.name}', expecting {expected}"
        )
    if len(elements) < expected:
        raise Internal(
            f"expected {expected} string elements for inference input '{source.name}', "
            f"got {len(elements)}"
        )
    return objects(elements).reshape(source.shape)


def _name(name: object) -> str:
    checked = text(name, "name")
    if not checked:
        raise TritonModelException("a tensor's name must not be empty")
    return checked


def _datatype(array: Array) -> DataType:
    if array.dtype.kind == "U":
        raise TritonModelException(
            f"numpy type '{array.dtype}' is not supported; make text an array of objects or bytes"
        )
    try:
        return microkernel.datatype_of(array)
    except InvalidArgument as error:
        raise TritonModelException(str(error)) from None
