"""`pb_utils.Tensor`: arrays, BYTES and DLPack."""

from typing import Any

import numpy as np
import pytest
from python_models import bf16, received

import microkernel
from microkernel import DATA_TYPES
from microkernel_python.errors import TritonModelException
from microkernel_python.tensor import ReceivedTensor, Tensor

FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)


# Tensor


def test_a_tensor_refers_to_its_array() -> None:
    tensor = Tensor("T", FLOATS)
    assert tensor.as_numpy() is FLOATS
    assert (tensor.name(), tensor.shape(), tensor.triton_dtype()) == ("T", [2, 3], 11)
    assert tensor.is_cpu()
    view = tensor.encoded()
    assert np.shares_memory(np.frombuffer(view.data, np.float32), FLOATS)
    assert not hasattr(tensor, "__dict__")


def test_a_transposed_array_is_copied_into_order() -> None:
    tensor = Tensor("T", FLOATS.T)
    assert tensor.as_numpy().flags.c_contiguous
    np.testing.assert_array_equal(tensor.encoded().as_numpy(), FLOATS.T)


@pytest.mark.parametrize("value", [[1.0], np.float32(1), None, "x"])
def test_a_tensor_wants_an_array(value: Any) -> None:
    with pytest.raises(TypeError, match=r"numpy\.ndarray"):
        Tensor("T", value)


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([1j]), np.array([1], "M8[s]")])
def test_element_types_the_protocol_lacks(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(TritonModelException, match="numpy type"):
        Tensor("T", array)


def test_names_of_tensors() -> None:
    assert Tensor(b"bytes", FLOATS).name() == "bytes"
    with pytest.raises(TritonModelException, match="must not be empty"):
        Tensor("", FLOATS)
    with pytest.raises(TypeError, match="name must be a str"):
        Tensor(None, FLOATS)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError):
        Tensor(name="T", array=FLOATS)  # type: ignore[call-arg]  # positional only


def test_a_received_tensor_is_a_private_copy() -> None:
    source = np.arange(3, dtype=np.int64)
    tensor = received(source)
    array = tensor.as_numpy()
    assert tensor.as_numpy() is array
    array += 1
    np.testing.assert_array_equal(source, [0, 1, 2])
    np.testing.assert_array_equal(tensor.encoded().as_numpy(), [0, 1, 2])


@pytest.mark.parametrize(
    ("elements", "sent"),
    [
        (np.array([b"a", "ü", None, 7], dtype=object), [b"a", "ü".encode(), b"None", b"7"]),
        (np.array([b"ab\0", b""], dtype="S3"), [b"ab", b""]),
        (np.empty((0, 2), dtype=object), []),
    ],
)
def test_bytes_are_encoded(elements: np.ndarray[Any, Any], sent: list[bytes]) -> None:
    view = Tensor("T", elements).encoded()
    assert view.datatype is DATA_TYPES["BYTES"]
    assert view.shape == elements.shape
    assert microkernel.decode_bytes(view.data, "T") == sent


def test_received_bytes_are_bytes_objects() -> None:
    array = received(np.array([["a", "b"]], dtype=object)).as_numpy()
    assert array.dtype == np.object_
    assert array.tolist() == [[b"a", b"b"]]


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
@pytest.mark.parametrize("dtype", [np.float16, np.bool_, object])
def test_scalars_and_empty_tensors_both_ways(shape: tuple[int, ...], dtype: Any) -> None:
    array = np.full(shape, b"x" if dtype is object else 1, dtype=dtype)
    tensor = received(array)
    assert tensor.shape() == list(shape)
    np.testing.assert_array_equal(tensor.as_numpy(), array)
    assert Tensor("T", array).encoded().shape == shape


def test_big_endian_arrays_are_sent_little_endian() -> None:
    view = Tensor("T", np.array([1], dtype=">i4")).encoded()
    assert bytes(view.data) == b"\x01\0\0\0"


# DLPack


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint16, np.bool_, np.float64])
def test_dlpack_out_and_in(dtype: Any) -> None:
    source = np.array([[1, 0, 1]], dtype=dtype)
    for tensor in (Tensor("T", source), received(source)):
        assert tensor.__dlpack_device__() == (1, 0)
        copy = Tensor.from_dlpack("U", tensor.to_dlpack())
        assert (copy.name(), copy.shape(), copy.triton_dtype()) == (
            "U",
            [1, 3],
            tensor._datatype.number,
        )
        np.testing.assert_array_equal(copy.as_numpy(), source)
        np.testing.assert_array_equal(np.from_dlpack(tensor), source)


def test_an_imported_tensor_is_sent_without_a_copy_and_read_as_a_copy() -> None:
    source = np.arange(3, dtype=np.float32)
    tensor = Tensor.from_dlpack("T", source)
    assert np.shares_memory(np.frombuffer(tensor.encoded().data, np.float32), source)
    assert not np.shares_memory(tensor.as_numpy(), source)


def test_a_capsule_is_used_once() -> None:
    capsule = Tensor("T", FLOATS.copy()).to_dlpack()
    assert '"dltensor"' in repr(capsule)
    Tensor.from_dlpack("T", capsule)
    assert '"used_dltensor"' in repr(capsule)
    with pytest.raises(TritonModelException, match="unused DLPack capsule"):
        Tensor.from_dlpack("T", capsule)


def test_read_only_arrays_are_exported_as_copies() -> None:
    array = FLOATS.copy()
    array.flags.writeable = False
    exported = np.from_dlpack(Tensor("T", array))
    np.testing.assert_array_equal(exported, FLOATS)
    assert not np.shares_memory(exported, array)


def test_empty_tensors_pass_through_dlpack() -> None:
    tensor = Tensor.from_dlpack("T", np.zeros((0, 3), dtype=np.int32))
    assert tensor.shape() == [0, 3]
    assert tensor.encoded().nbytes == 0


def test_bf16_has_dlpack_only() -> None:
    tensor = ReceivedTensor(bf16([0x3F80, 0x4000]))
    with pytest.raises(TritonModelException, match="BF16, which numpy lacks"):
        tensor.as_numpy()
    again = Tensor.from_dlpack("T", tensor)
    assert again.triton_dtype() == DATA_TYPES["BF16"].number
    assert again.encoded().datatype is DATA_TYPES["BF16"]
    assert bytes(again.encoded().data) == bytes(bf16([0x3F80, 0x4000]).data)


def test_dlpack_with_torch() -> None:
    torch = pytest.importorskip("torch")
    values = torch.from_dlpack(ReceivedTensor(bf16([0x3F80, 0x4000])))
    assert values.dtype == torch.bfloat16
    assert values.tolist() == [1.0, 2.0]
    sent = Tensor.from_dlpack("T", values * 2).encoded()
    assert bytes(sent.data) == bytes(bf16([0x4000, 0x4080]).data)
    floats = torch.from_dlpack(Tensor("T", FLOATS.copy()))
    assert floats.shape == (2, 3)
    capsule = torch.utils.dlpack.to_dlpack(floats + 1)
    np.testing.assert_array_equal(Tensor.from_dlpack("T", capsule).as_numpy(), FLOATS + 1)


@pytest.mark.parametrize("obj", [FLOATS.T, np.array([1j]), 3, None, object()])
def test_what_from_dlpack_refuses(obj: object) -> None:
    with pytest.raises(TritonModelException):
        Tensor.from_dlpack("T", obj.copy(order="K") if isinstance(obj, np.ndarray) else obj)
    with pytest.raises(TritonModelException, match="must not be empty"):
        Tensor.from_dlpack("", obj)


def test_bytes_have_no_dlpack() -> None:
    with pytest.raises(TritonModelException, match="BYTES, which DLPack lacks"):
        Tensor("T", np.array([b"x"])).to_dlpack()


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("device_type", 2, "DLPack device type 2 is not offered"),
        ("code", 99, "cannot read the DLPack tensor"),
    ],
)
def test_capsules_that_numpy_cannot_hold(field: str, value: int, text: str) -> None:
    capsule = Tensor("T", FLOATS.copy()).to_dlpack()
    setattr(microkernel.dlpack._descriptor(capsule), field, value)
    with pytest.raises(TritonModelException, match=text):
        Tensor.from_dlpack("T", capsule)
