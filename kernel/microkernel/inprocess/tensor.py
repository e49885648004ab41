"""`Tensor`: the inputs and outputs of the in-process API, and what can be made into one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from microkernel import dlpack, tensor
from microkernel.errors import InvalidArgument, MicrokernelError, Unsupported
from microkernel.inprocess.enums import DataType, DLDeviceType, MemoryType
from microkernel.inprocess.memory import (
    DeviceOrMemoryType,
    MemoryBuffer,
    buffer_of,
    require_host,
)
from microkernel.tensor import Array


@dataclass(slots=True, weakref_slot=True, eq=False)
class Tensor:
    """A tensor in host memory: its element type, its shape, and the memory it lies in.

    `numpy.from_dlpack` and `torch.from_dlpack` give views, also of an output, whose memory stays
    valid as long as anything made from it lives.
    """

    data_type: DataType
    shape: Sequence[int]
    memory_buffer: MemoryBuffer

    @property
    def data_ptr(self) -> int:
        """The address of the first byte."""
        return self.memory_buffer.data_ptr

    @property
    def memory_type(self) -> MemoryType:
        """The kind of memory."""
        return self.memory_buffer.memory_type

    @property
    def memory_type_id(self) -> int:
        """The number of the device."""
        return self.memory_buffer.memory_type_id

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.memory_buffer.size

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule on this memory. Raises BufferError for a device other than the host, and
        InvalidArgument for BYTES, which DLPack lacks."""
        if dl_device is not None and tuple(map(int, dl_device)) != dlpack.CPU:
            raise BufferError(f"a tensor in host memory cannot be exported to {dl_device}")
        array = self._elements()
        return dlpack.export_dlpack(
            array.copy() if copy else array,
            bfloat16=self.data_type is DataType.BF16,
            max_version=max_version,
        )

    def __dlpack_device__(self) -> tuple[DLDeviceType, int]:
        """Host memory."""
        return DLDeviceType.kDLCPU, 0

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """For `numpy.asarray`: a view; BYTES as an array of `bytes`, which is a copy. Raises
        InvalidArgument for BF16, which numpy lacks."""
        if self.data_type is DataType.BF16:
            raise InvalidArgument("the tensor is BF16, which numpy lacks; use DLPack")
        array = self.to_bytes_array() if self.data_type is DataType.BYTES else self._elements()
        converted = array if dtype is None else array.astype(dtype, copy=False)
        return converted.copy() if copy else converted

    def _elements(self) -> Array:
        """A view; 16-bit integers for BF16. Raises InvalidArgument for BYTES and where shape and
        size disagree."""
        row = tensor.BY_NUMBER.get(self.data_type)
        if row is None or row is tensor.BYTES:
            raise InvalidArgument(
                f"a tensor of {self.data_type.name} has no form in DLPack; use to_string_array() "
                "or to_bytes_array()"
            )
        expected = tensor.element_count(self.shape) * row.size
        if expected != self.size:
            raise InvalidArgument(
                f"a {row} tensor of shape {list(self.shape)} takes {expected} bytes, its memory "
                f"has {self.size}"
            )
        elements = self.memory_buffer.as_bytes().view(row.numpy or np.dtype("<u2"))
        return elements.reshape(tuple(self.shape))

    def to_bytes_array(self) -> Array:
        """The elements of a BYTES tensor as an array of `bytes`. Raises InvalidArgument for
        another type."""
        if self.data_type is not DataType.BYTES:
            raise InvalidArgument(f"the tensor is {self.data_type.name}, not BYTES")
        return self.encoded("").as_numpy()

    def to_string_array(self) -> Array:
        """The elements of a BYTES tensor as an array of `str`, decoded as UTF-8. Raises
        InvalidArgument for another type and for what is no UTF-8."""
        array = self.to_bytes_array()
        try:
            words = [element.decode() for element in array.reshape(-1).tolist()]
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"an element is not UTF-8: {error}") from None
        return _objects(words, array.shape)

    def to_host(self) -> "Tensor":
        """The tensor in host memory: itself."""
        return self.to_device(MemoryType.CPU)

    def to_device(self, device: DeviceOrMemoryType) -> "Tensor":
        """The tensor where it is wanted; host memory is the only place there is. Raises
        Unsupported for another."""
        require_host(device, "to_device")
        return self

    @staticmethod
    def from_dlpack(obj: Any) -> "Tensor":
        """A tensor on the memory of an object with `__dlpack__` or of a numpy array. Nothing is
        copied.

        Raises InvalidArgument where it is not contiguous in row-major order and for element types
        that the protocol lacks, and Unsupported for memory of another device.
        """
        array, bfloat16 = _array_of(obj)
        return _on(array, tensor.BF16 if bfloat16 else tensor.datatype_of(array))

    @staticmethod
    def from_string_array(string_array: "Array | Sequence[Any]") -> "Tensor":
        """A BYTES tensor of strings, each in UTF-8. Raises InvalidArgument for nested lists of
        uneven lengths."""
        return _from_objects(string_array)

    @staticmethod
    def from_bytes_array(bytes_array: "Array | Sequence[Any]") -> "Tensor":
        """A BYTES tensor of byte strings. Raises InvalidArgument for nested lists of uneven
        lengths."""
        return _from_objects(bytes_array)

    def encoded(self, name: str) -> tensor.Tensor:
        """The tensor as the kernel takes it, on the same memory."""
        row = tensor.BY_NUMBER.get(self.data_type)
        if row is None:
            raise InvalidArgument(f"a tensor of type {self.data_type.name} cannot be sent")
        data = self.memory_buffer.as_bytes().data
        return tensor.Tensor(name, row, tuple(self.shape), data)


def encode_input(name: str, value: Any) -> tensor.Tensor:
    """An input as the kernel takes it, on the memory of the value wherever that is contiguous.

    Takes a `Tensor`, a numpy array, an object with `__dlpack__`, a nested list, and whatever numpy
    makes an array of. Tensors of a GPU are copied to the host. Raises InvalidArgument and
    Unsupported naming the input.
    """
    try:
        if isinstance(value, Tensor):
            return value.encoded(name)
        array, bfloat16 = _array_of(value)
        if bfloat16:
            return tensor.Tensor(name, tensor.BF16, array.shape, tensor.raw_view(array))
        return tensor.Tensor.from_numpy(name, array)
    except MicrokernelError as error:
        raise type(error)(f"input '{name}': {error}") from None
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"input '{name}': an element is no text: {error}") from None


def _array_of(value: Any) -> tuple[Array, bool]:
    """The value as an array, of 16-bit integers where it is bfloat16."""
    if not isinstance(value, np.ndarray):
        if hasattr(value, "__dlpack__"):
            on_host = _to_host(value)
            if not isinstance(on_host, np.ndarray):
                return dlpack.load_dlpack(on_host)
            value = on_host
        else:
            value = _array_from(value)
    if value.dtype.name == "bfloat16":  # of the package ml_dtypes
        return value.view(np.uint16), True
    return value, False


def _to_host(value: Any) -> Any:
    """An object whose memory the host can read. Frameworks have no common word for the copy."""
    device = getattr(value, "__dlpack_device__", lambda: dlpack.CPU)()
    if int(device[0]) in dlpack.HOST_KINDS:
        return value
    for word in ("cpu", "get"):  # torch's, cupy's
        if callable(copy := getattr(value, word, None)):
            return copy()
    try:
        return value.__dlpack__(dl_device=dlpack.CPU)
    except (TypeError, BufferError, NotImplementedError) as error:
        raise Unsupported(
            f"{type(value).__name__} lies on the DLPack device {tuple(map(int, device))} and gives "
            f"no copy for the host: {error}"
        ) from None


def _array_from(value: Any) -> Array:
    if isinstance(value, str | bytes) or value is None:
        raise InvalidArgument(f"{value!r} is no tensor; put it in a list or an array")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidArgument(f"it cannot be made an array: {error}") from None
    # numpy's own text types drop zeros at the end of an element.
    return np.array(value, dtype=np.object_) if array.dtype.kind in "SU" else array


def _from_objects(value: "Array | Sequence[Any]") -> Tensor:
    array = value if isinstance(value, np.ndarray) else _array_from(value)
    elements = tensor.encode_bytes(array.reshape(-1).tolist())
    return _on(np.frombuffer(elements, np.uint8), tensor.BYTES, array.shape)


def _on(array: Array, row: tensor.DataType, shape: tuple[int, ...] | None = None) -> Tensor:
    if row is tensor.BYTES and shape is None:
        raise InvalidArgument("text has no form in DLPack; use from_string_array()")
    if row.numpy is not None and row is not tensor.BYTES and array.dtype != row.numpy:
        array = array.astype(row.numpy)  # from the other byte order
    return Tensor(DataType(row.number), array.shape if shape is None else shape, buffer_of(array))


def _objects(elements: Sequence[object], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array.reshape(shape)
