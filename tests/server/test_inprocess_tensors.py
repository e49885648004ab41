"""Tensors of the in-process API: from numpy, torch, DLPack and lists, and back without a copy."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import microkernel
import microkernel.inprocess as tritonserver
from microkernel import dlpack
from microkernel.inprocess import DataType, MemoryType, Tensor
from microkernel.inprocess.memory import parse_place
from microkernel.inprocess.tensor import encode_input

NUMERIC = [
    *("?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"),
]


def torch_or_skip() -> Any:
    return pytest.importorskip("torch", reason="the extra 'torchscript' is missing")


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.ctypes.data)


@pytest.mark.parametrize("code", NUMERIC)
def test_an_array_and_back_on_one_piece_of_memory(code: str) -> None:
    array = np.arange(6).astype(code).reshape(2, 3)
    tensor = Tensor.from_dlpack(array)
    back = np.from_dlpack(tensor)
    assert (tensor.data_type.name, tensor.shape) == (
        microkernel.datatype_of(array).name,
        (2, 3),
    )
    assert tensor.size == array.nbytes
    assert address(array) == tensor.data_ptr == address(back)
    assert back.dtype == array.dtype
    assert back.tolist() == array.tolist()
    assert (tensor.memory_type, tensor.memory_type_id) == (MemoryType.CPU, 0)
    assert tensor.__dlpack_device__() == (1, 0)


@pytest.mark.parametrize("read_only", [False, True])
def test_torch_reads_a_tensor_where_it_lies(read_only: bool) -> None:
    torch = torch_or_skip()
    array = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    array.flags.writeable = not read_only
    found = torch.from_dlpack(Tensor.from_dlpack(array))
    assert found.data_ptr() == address(array)
    assert found.tolist() == array.tolist()


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "bool", "int64", "float16"])
def test_a_torch_tensor_is_taken_where_it_lies(kind: str) -> None:
    torch = torch_or_skip()
    given = torch.tensor([[0, 1], [1, 0]]).to(getattr(torch, kind))
    encoded = encode_input("x", given)
    tensor = Tensor.from_dlpack(given)
    assert tensor.data_ptr == given.data_ptr()
    assert np.frombuffer(encoded.data, np.uint8).ctypes.data == given.data_ptr()
    assert encoded.datatype.name == tensor.data_type.name
    again = torch.from_dlpack(tensor)
    assert again.dtype == given.dtype
    assert again.data_ptr() == given.data_ptr()
    assert torch.equal(again, given)


def test_bfloat16_needs_dlpack() -> None:
    torch = torch_or_skip()
    tensor = Tensor.from_dlpack(torch.ones(3, dtype=torch.bfloat16))
    assert tensor.data_type is DataType.BF16
    with pytest.raises(tritonserver.InvalidArgumentError, match="BF16, which numpy lacks"):
        np.asarray(tensor)


def test_memory_lives_as_long_as_what_was_made_from_it() -> None:
    class Owner(np.ndarray[Any, Any]):
        """An array that can be watched."""

    owner = np.ones(1000).view(Owner)
    watched = weakref.ref(owner)
    tensor = Tensor.from_dlpack(owner)
    array = np.from_dlpack(tensor)
    del owner, tensor
    gc.collect()
    assert watched() is not None
    assert array.sum() == 1000
    del array
    gc.collect()
    assert watched() is None


def test_the_shape_of_a_tensor_may_be_changed() -> None:
    tensor = Tensor.from_dlpack(np.arange(6, dtype=np.int32))
    tensor.shape = [2, 3]
    assert np.from_dlpack(tensor).tolist() == [[0, 1, 2], [3, 4, 5]]
    tensor.shape = [2, 4]
    with pytest.raises(
        tritonserver.InvalidArgumentError, match=r"shape \[2, 4\] takes 32 bytes, its memory has 24"
    ):
        np.from_dlpack(tensor)


def test_an_empty_tensor() -> None:
    tensor = Tensor.from_dlpack(np.empty((0, 4), np.float32))
    assert np.from_dlpack(tensor).shape == (0, 4)
    assert encode_input("x", tensor).nbytes == 0


WORDS = ["plain", "für", "", "zero\0", "雨"]


@pytest.mark.parametrize(
    "given",
    [
        [WORDS],
        np.array([WORDS], dtype=np.object_),
        [[word.encode() for word in WORDS]],
        Tensor.from_string_array([WORDS]),
        Tensor.from_bytes_array([[word.encode() for word in WORDS]]),
    ],
    ids=["list", "objects", "bytes", "strings", "byte strings"],
)
def test_texts(given: Any) -> None:
    encoded = encode_input("x", given)
    assert encoded.datatype.name == "BYTES"
    assert encoded.shape == (1, 5)
    assert encoded.as_numpy().tolist() == [[word.encode() for word in WORDS]]


def test_text_arrays() -> None:
    tensor = Tensor.from_string_array(np.array([["ä", "b"]]))
    assert tensor.data_type is DataType.BYTES
    assert tensor.to_string_array().tolist() == [["ä", "b"]]
    assert tensor.to_bytes_array().tolist() == [["ä".encode(), b"b"]]
    assert np.asarray(tensor).tolist() == [["ä".encode(), b"b"]]
    with pytest.raises(tritonserver.InvalidArgumentError, match="no form in DLPack"):
        np.from_dlpack(tensor)
    with pytest.raises(tritonserver.InvalidArgumentError, match="not UTF-8"):
        Tensor.from_bytes_array([b"\xff"]).to_string_array()
    with pytest.raises(tritonserver.InvalidArgumentError, match="is INT64, not BYTES"):
        Tensor.from_dlpack(np.arange(2)).to_string_array()


@pytest.mark.parametrize(
    ("given", "datatype", "numbers"),
    [
        ([[True, False]], "BOOL", [[True, False]]),
        ([1, 2], "INT64", [1, 2]),
        ([[0.5]], "FP64", [[0.5]]),
        (np.arange(4, dtype=np.int32).reshape(2, 2).T, "INT32", [[0, 2], [1, 3]]),
        (np.arange(3, dtype=">i4"), "INT32", [0, 1, 2]),
        (np.arange(6, dtype=np.int16)[::2], "INT16", [0, 2, 4]),
    ],
    ids=["booleans", "numbers", "fractions", "transposed", "big-endian", "strided"],
)
def test_inputs_that_take_a_copy(given: Any, datatype: str, numbers: Any) -> None:
    encoded = encode_input("x", given)
    assert encoded.datatype.name == datatype
    assert encoded.as_numpy().tolist() == numbers


def test_a_transposed_torch_tensor_is_copied() -> None:
    torch = torch_or_skip()
    given = torch.arange(4, dtype=torch.float32).reshape(2, 2).T
    assert encode_input("x", given).as_numpy().tolist() == [[0, 2], [1, 3]]
    with pytest.raises(tritonserver.InvalidArgumentError, match="contiguous in row-major"):
        Tensor.from_dlpack(given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([[1], [1, 2]], "input 'x': it cannot be made an array"),
        ("text", "input 'x': 'text' is no tensor; put it in a list"),
        (None, "input 'x': None is no tensor"),
        (["\ud800"], "input 'x': an element is no text"),
        (np.zeros(2, np.complex64), "input 'x': numpy type 'complex64' has no counterpart"),
    ],
    ids=["ragged", "text", "nothing", "surrogate", "complex"],
)
def test_what_is_no_input(given: Any, words: str) -> None:
    with pytest.raises(tritonserver.InvalidArgumentError, match=words):
        encode_input("x", given)


def test_a_tensor_with_a_gradient_says_what_to_do() -> None:
    torch = torch_or_skip()
    with pytest.raises(tritonserver.InvalidArgumentError, match=r"input 'x'.*detach"):
        encode_input("x", torch.ones(2, requires_grad=True))


class OnDevice:
    """A tensor of a GPU, as far as it is looked at."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 1

    def __dlpack__(self, **_options: object) -> Any:
        raise BufferError("it stays where it is")


class LikeTorch(OnDevice):
    """One with torch's word for the copy."""

    def cpu(self) -> Any:
        return self.array


class LikeJax(OnDevice):
    """One that exports a copy on request."""

    def __dlpack__(self, **options: object) -> Any:
        assert options == {"dl_device": dlpack.CPU}
        return self.array.__dlpack__()


@pytest.mark.parametrize("kind", [LikeTorch, LikeJax])
def test_a_tensor_of_a_gpu_is_copied_to_the_host(kind: type[OnDevice]) -> None:
    encoded = encode_input("x", kind(np.arange(3)))
    assert encoded.as_numpy().tolist() == [0, 1, 2]


def test_a_tensor_of_a_gpu_without_a_copy() -> None:
    with pytest.raises(
        tritonserver.UnsupportedError,
        match=r"input 'x': OnDevice lies on the DLPack device \(2, 1\) and gives no copy",
    ):
        encode_input("x", OnDevice(np.arange(3)))


def test_no_dlpack_tensor() -> None:
    with pytest.raises(tritonserver.InvalidArgumentError, match="an unused DLPack capsule"):
        dlpack.load_dlpack(object())
    capsule = np.arange(2).__dlpack__()
    assert dlpack.load_dlpack(capsule)[0].tolist() == [0, 1]
    with pytest.raises(tritonserver.InvalidArgumentError, match="an unused DLPack capsule"):
        dlpack.load_dlpack(capsule)


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("cpu", (MemoryType.CPU, 0)),
        ("gpu:1", (MemoryType.GPU, 1)),
        ("CPU_PINNED", (MemoryType.CPU_PINNED, 0)),
        (MemoryType.GPU, (MemoryType.GPU, 0)),
        ((MemoryType.GPU, 3), (MemoryType.GPU, 3)),
        (tritonserver.DLDeviceType.kDLCPU, (MemoryType.CPU, 0)),
        ((tritonserver.DLDeviceType.kDLCUDA, 2), (MemoryType.GPU, 2)),
    ],
)
def test_places(place: Any, found: tuple[MemoryType, int]) -> None:
    assert parse_place(place) == found


@pytest.mark.parametrize(
    "place",
    [
        *("unsupported", "gpu:x", "gpu:-1", ("gpu", "1"), 7, (), (MemoryType.CPU, -1), None),
        tritonserver.DLDeviceType.kDLMetal,
    ],
)
def test_what_is_no_place(place: Any) -> None:
    with pytest.raises(tritonserver.InvalidArgumentError, match="names no memory"):
        parse_place(place)


def test_moving_a_tensor() -> None:
    tensor = Tensor.from_dlpack(np.arange(3))
    assert tensor.to_host() is tensor
    assert tensor.to_device("cpu:0") is tensor
    with pytest.raises(
        tritonserver.UnsupportedError, match="to_device: memory of kind GPU:1 is not offered"
    ):
        tensor.to_device("gpu:1")
    with pytest.raises(BufferError):
        tensor.__dlpack__(dl_device=(2, 0))
    copied = np.from_dlpack(tensor, copy=True)
    assert address(copied) != tensor.data_ptr


def test_memory_buffers() -> None:
    array = np.arange(6, dtype=np.int32)
    buffer = tritonserver.MemoryBuffer.from_dlpack(array)
    assert (buffer.data_ptr, buffer.size, buffer.owner) == (address(array), 24, array)
    made = Tensor(DataType.INT32, (2, 3), buffer)
    assert np.from_dlpack(made).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(tritonserver.InvalidArgumentError, match="contiguous"):
        tritonserver.MemoryBuffer.from_dlpack(array[::2])
