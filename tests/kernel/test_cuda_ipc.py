"""Memory of GPUs: every call to the driver with a driver made of this process's memory, and the
real driver where there is one."""

import asyncio
import ctypes
import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from microkernel import (
    AlreadyExists,
    CudaRegion,
    InferRequest,
    InferResponse,
    Internal,
    InvalidArgument,
    MicrokernelError,
    NotFound,
    RegionPart,
    SystemRegion,
    Tensor,
    Unsupported,
)
from microkernel.cuda_ipc import CudaDriver, cuda_driver
from microkernel.responses import ResponseStream
from microkernel.shared_memory import SharedMemory

SIZE = 4096
HANDLE = bytes(range(64))
SHIFT = 256
"""Where in its allocation the memory begins that a handle stands for."""


class Host:
    """A library of the driver's functions whose device memory is a buffer of this process."""

    def __init__(self, devices: int = 2) -> None:
        self._buffer = ctypes.create_string_buffer(SIZE)
        self.memory = memoryview(self._buffer).cast("B")
        self.devices = devices
        self.failing: dict[str, int] = {}
        self.current: dict[int, list[int]] = {}
        self.mapped = 0
        self.unsynchronised = False
        self.threads: set[int] = set()
        names = [name for name in dir(self) if name.startswith("cu") and name != "current"]
        functions = {name: self._function(name, getattr(self, name)) for name in names}
        self.library = SimpleNamespace(**functions)

    def _function(self, name: str, work: Callable[..., None]) -> Callable[..., int]:
        def function(*arguments: Any) -> int:
            if name in self.failing:
                return self.failing[name]
            work(*arguments)
            return 0

        return function

    @property
    def address(self) -> int:
        return ctypes.addressof(self._buffer)

    def _check_current(self) -> None:
        assert self.current.get(threading.get_ident()), "no context is current on this thread"
        self.threads.add(threading.get_ident())

    def cuInit(self, flags: int) -> None:  # noqa: N802 - the driver's names
        assert flags == 0

    def cuDeviceGetCount(self, count: Any) -> None:  # noqa: N802
        count._obj.value = self.devices

    def cuDeviceGet(self, device: Any, ordinal: int) -> None:  # noqa: N802
        device._obj.value = 10 + ordinal

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> None:  # noqa: N802
        context._obj.value = 100 + device

    def cuCtxPushCurrent_v2(self, context: int) -> None:  # noqa: N802
        self.current.setdefault(threading.get_ident(), []).append(context)

    def cuCtxPopCurrent_v2(self, context: Any) -> None:  # noqa: N802
        context._obj.value = self.current[threading.get_ident()].pop()

    def cuIpcOpenMemHandle_v2(self, address: Any, handle: Any, flags: int) -> None:  # noqa: N802
        self._check_current()
        assert (bytes(handle.reserved), flags) == (HANDLE, 1)
        address._obj.value = self.address + SHIFT
        self.mapped += 1

    def cuIpcCloseMemHandle(self, address: int) -> None:  # noqa: N802
        self._check_current()
        assert address == self.address + SHIFT
        self.mapped -= 1

    def cuMemGetAddressRange_v2(self, base: Any, size: Any, address: int) -> None:  # noqa: N802
        self._check_current()
        base._obj.value, size._obj.value = self.address, SIZE

    def cuMemcpyDtoH_v2(self, target: Any, source: int, count: int) -> None:  # noqa: N802
        self._check_current()
        ctypes.memmove(target, source, count)

    def cuMemcpyHtoD_v2(self, target: int, source: Any, count: int) -> None:  # noqa: N802
        self._check_current()
        ctypes.memmove(target, source, count)
        self.unsynchronised = True

    def cuStreamSynchronize(self, stream: Any) -> None:  # noqa: N802
        self._check_current()
        self.unsynchronised = False

    def cuGetErrorString(self, code: int, text: Any) -> None:  # noqa: N802
        text._obj.value = b"out of luck"


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def memory(host: Host) -> SharedMemory:
    driver = CudaDriver(host.library)
    return SharedMemory(allowed=True, cuda=lambda: driver)


def region(name: str = "c", **fields: Any) -> CudaRegion:
    return replace(CudaRegion(name, HANDLE, 1, 64), **fields)


async def test_a_region_is_read_and_written(memory: SharedMemory, host: Host) -> None:
    await memory.register_cuda(region())
    host.memory[SHIFT + 10 : SHIFT + 14] = b"abcd"
    found = memory.find(RegionPart("c", 4, 10))
    assert bytes(found.read(RegionPart("c", 4, 10))) == b"abcd"
    assert bytes(found.read(RegionPart("c", 0, 10))) == b""
    found.write(RegionPart("c", 4, 20), memoryview(b"wxyz"), "OUT")
    found.write(RegionPart("c", 4, 20), b"", "OUT")
    assert bytes(host.memory[SHIFT + 20 : SHIFT + 24]) == b"wxyz"
    assert not host.unsynchronised
    assert not any(host.current.values())
    assert list(memory.cuda_status()) == list(memory.cuda_status("c")) == [region()]
    with pytest.raises(Internal, match=r"output 'OUT' \(2 bytes\) should be at least 3 bytes"):
        found.write(RegionPart("c", 2), b"abc", "OUT")


async def test_nothing_of_a_gpu_happens_on_the_event_loop(memory: SharedMemory, host: Host) -> None:
    loop_thread = threading.get_ident()
    await memory.register_cuda(region())
    tensor = Tensor.from_numpy("A", np.zeros(0, np.uint8))
    part = RegionPart("c", 4, 8)
    host.memory[SHIFT + 8 : SHIFT + 12] = b"1234"

    async def double(request: InferRequest) -> InferResponse:
        return InferResponse(
            "m", 1, "", (Tensor("B", tensor.datatype, (4,), request.inputs[0].data),)
        )

    request = InferRequest(
        "m", (tensor,), shared_inputs={"A": part}, shared_outputs={"B": RegionPart("c", 8)}
    )
    response = await memory.infer(request, double)
    assert response.outputs[0].data == b""
    assert bytes(host.memory[SHIFT : SHIFT + 4]) == b"1234"
    assert host.threads
    assert loop_thread not in host.threads


async def test_both_kinds_share_their_names(memory: SharedMemory, system_key: str) -> None:
    memory.register(SystemRegion("s", system_key, SIZE))
    await memory.register_cuda(region())
    for name in "sc":
        with pytest.raises(
            AlreadyExists, match=f"shared memory region '{name}' already in manager"
        ):
            await memory.register_cuda(region(name))
        with pytest.raises(AlreadyExists):
            memory.register(SystemRegion(name, system_key, SIZE))
    with pytest.raises(NotFound, match="'c' is registered as CUDA shared memory, not as system"):
        memory.status("c")
    with pytest.raises(NotFound, match="'s' is registered as system shared memory, not as CUDA"):
        memory.cuda_status("s")
    with pytest.raises(NotFound, match="Unable to find cuda shared memory region: 'x'"):
        memory.cuda_status("x")
    memory.unregister("c")
    memory.unregister_cuda("s")
    assert [len(memory.status()), len(memory.cuda_status())] == [1, 1]
    memory.unregister()
    memory.unregister_cuda("unknown")
    assert [len(memory.status()), len(memory.cuda_status())] == [0, 1]


async def test_a_mapping_goes_with_its_last_user(memory: SharedMemory, host: Host) -> None:
    await memory.register_cuda(region())
    used = memory.find(RegionPart("c", 1))
    memory.unregister_cuda()
    gc.collect()
    assert host.mapped == 1
    with pytest.raises(AlreadyExists):
        await memory.register_cuda(region())
    del used
    gc.collect()
    assert host.mapped == 0
    await memory.register_cuda(region())


async def test_a_name_is_taken_while_its_region_is_opened(memory: SharedMemory) -> None:
    results = await asyncio.gather(
        *(memory.register_cuda(region()) for _ in range(4)), return_exceptions=True
    )
    assert sorted(type(r).__name__ for r in results) == ["AlreadyExists"] * 3 + ["NoneType"]


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"name": ""}, InvalidArgument, "'region name' is necessary"),
        ({"raw_handle": HANDLE[:63]}, InvalidArgument, "'raw_handle' must be 64 bytes, got 63"),
        ({"device_id": 2}, InvalidArgument, "there is no GPU 2; device_id must be below 2"),
        ({"device_id": -1}, InvalidArgument, "there is no GPU -1"),
        ({"byte_size": 0}, InvalidArgument, "'c': invalid args"),
        ({"byte_size": SIZE - SHIFT + 1}, InvalidArgument, "'c': invalid args"),
        ({"byte_size": 2**64 - 1}, InvalidArgument, "'c': invalid args"),
    ],
)
async def test_what_cannot_be_registered(
    memory: SharedMemory,
    host: Host,
    fields: dict[str, Any],
    error: type[MicrokernelError],
    text: str,
) -> None:
    with pytest.raises(error) as caught:
        await memory.register_cuda(region(**fields))
    assert text in str(caught.value)
    assert not memory.cuda_status()
    assert host.mapped == 0
    await memory.register_cuda(region(byte_size=SIZE - SHIFT))  # the name is free again


@pytest.mark.parametrize(
    "name", ["cuIpcOpenMemHandle_v2", "cuMemGetAddressRange_v2", "cuDevicePrimaryCtxRetain"]
)
async def test_a_driver_that_refuses(memory: SharedMemory, host: Host, name: str) -> None:
    host.failing[name] = 201
    with pytest.raises(Internal) as caught:
        await memory.register_cuda(region())
    assert str(caught.value) == f"the CUDA driver failed in {name}: out of luck (201)"
    assert not any(host.current.values())
    host.failing.clear()
    await memory.register_cuda(region())


async def test_copies_that_fail(memory: SharedMemory, host: Host) -> None:
    await memory.register_cuda(region())
    part = RegionPart("c", 4)
    found = memory.find(part)
    host.failing = {"cuMemcpyDtoH_v2": 700, "cuMemcpyHtoD_v2": 700, "cuIpcCloseMemHandle": 700}
    with pytest.raises(Internal, match="out of luck"):
        found.read(part)
    with pytest.raises(Internal, match="out of luck"):
        found.write(part, b"abcd", "OUT")
    assert not any(host.current.values())
    memory.unregister_cuda()
    del found
    gc.collect()  # a mapping that cannot be closed is given up without a word


async def test_the_switch_and_gpus_come_first() -> None:
    asked = []

    def nobody() -> None:
        asked.append(1)

    closed = SharedMemory(allowed=False, cuda=nobody)
    with pytest.raises(Unsupported, match="--allow-client-shm=true"):
        await closed.register_cuda(region())
    with pytest.raises(Unsupported):
        closed.unregister_cuda()
    assert not closed.cuda_status()
    assert not asked
    without = SharedMemory(allowed=True, cuda=nobody)
    with pytest.raises(InvalidArgument) as caught:
        await without.register_cuda(region(raw_handle=b""))
    assert str(caught.value) == (
        "failed to register CUDA shared memory region: 'c', GPUs not supported"
    )


@pytest.mark.parametrize(
    ("library", "error"),
    [(SimpleNamespace(), AttributeError), (None, Internal)],
)
def test_drivers_of_no_use(host: Host, library: Any, error: type[Exception]) -> None:
    host.failing["cuInit"] = 100
    with pytest.raises(error):
        CudaDriver(host.library if library is None else library)


async def test_a_stream_fills_the_same_place_again_and_again(
    memory: SharedMemory, host: Host
) -> None:
    await memory.register_cuda(region())
    tensor = Tensor.from_numpy("B", np.zeros(4, np.uint8))
    abandoned = []

    async def start(request: InferRequest) -> ResponseStream:
        stream = ResponseStream(lambda: abandoned.append(1))
        for data in (b"1111", b"22222222", b"33"):
            output = Tensor("B", tensor.datatype, (len(data),), data)
            stream.put(InferResponse("m", 1, "", (output,), final=False))
        return stream

    request = InferRequest("m", (), shared_outputs={"B": RegionPart("c", 4)})
    stream = await memory.stream(request, start)
    memory.unregister_cuda()
    first = await anext(stream)
    assert bytes(host.memory[SHIFT : SHIFT + 4]) == b"1111"
    assert (first.outputs[0].data, first.shared_outputs) == (b"", {"B": RegionPart("c", 4)})
    second = await anext(stream)
    assert isinstance(second.error, Internal)
    assert (second.outputs, second.final) == ((), False)
    await anext(stream)
    assert bytes(host.memory[SHIFT : SHIFT + 4]) == b"3311"
    assert not stream.ended
    stream.close()
    assert abandoned == [1]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@pytest.fixture
def system_key() -> Any:
    from multiprocessing.shared_memory import SharedMemory as Object

    made = Object(create=True, size=SIZE)
    yield made.name
    made.close()
    made.unlink()


EXPORT = """
import ctypes, sys
from ctypes import byref, c_size_t, c_uint64
from microkernel.cuda_ipc import _Handle, cuda_driver

driver, address, handle = cuda_driver(), c_uint64(), _Handle()
library = driver._library
with driver.on(driver.context(0)):
    library.cuMemAlloc_v2.argtypes = (ctypes.POINTER(c_uint64), c_size_t)
    library.cuIpcGetMemHandle.argtypes = (ctypes.c_void_p, c_uint64)
    driver.call("cuMemAlloc_v2", byref(address), 4096)
    driver.call("cuMemcpyHtoD_v2", address, b"from the other side", 19)
    driver.call("cuIpcGetMemHandle", byref(handle), address)
    print(bytes(handle.reserved).hex(), flush=True)
    sys.stdin.readline()
    back = ctypes.create_string_buffer(4)
    driver.call("cuMemcpyDtoH_v2", back, address.value + 100, 4)
    print(back.raw.decode(), flush=True)
"""


@pytest.mark.gpu
def test_memory_of_another_process() -> None:
    if cuda_driver() is None:
        pytest.skip("there is no NVIDIA GPU")
    memory = SharedMemory(allowed=True)
    with subprocess.Popen(
        [sys.executable, "-c", EXPORT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        handle = bytes.fromhex(other.stdout.readline())
        asyncio.run(memory.register_cuda(CudaRegion("c", handle, 0, 4096)))
        with pytest.raises(InvalidArgument, match="invalid args"):
            asyncio.run(memory.register_cuda(CudaRegion("d", handle, 0, 2**40)))
        part = RegionPart("c", 19)
        assert bytes(memory.find(part).read(part)) == b"from the other side"
        there = RegionPart("c", 4, 100)
        memory.find(there).write(there, b"back", "OUT")
        answer, _ = other.communicate("\n")
        memory.unregister_cuda()
    assert answer == "back\n"
