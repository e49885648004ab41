"""Regions of shared memory: what can be registered, and parts that must stay inside."""

import errno
import gc
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory as Object
from pathlib import Path
from typing import Any

import pytest

from microkernel import (
    AlreadyExists,
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
from microkernel.regions import OpenSystemRegion
from microkernel.shared_memory import MUCH, SharedMemory
from microkernel.tensor import UINT8

PAGE = 4096


@pytest.fixture
def shared() -> Iterator[Object]:
    """Two pages of POSIX shared memory."""
    made = Object(create=True, size=2 * PAGE)
    contents(made)[:] = bytes(range(256)) * 32
    yield made
    made.close()
    made.unlink()


def contents(shared: Object) -> memoryview:
    """The object's memory, which typing allows to be gone."""
    assert shared.buf is not None
    return shared.buf


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory(allowed=True)


def test_nothing_can_be_registered_while_the_switch_is_off(shared: Object) -> None:
    memory = SharedMemory(allowed=False)
    with pytest.raises(Unsupported, match="Client shared memory is disabled"):
        memory.register(SystemRegion("r", shared.name, PAGE))
    with pytest.raises(Unsupported, match="--allow-client-shm=true"):
        memory.unregister("r")
    assert list(memory.status()) == []


def test_a_region_is_read_and_written(memory: SharedMemory, shared: Object) -> None:
    memory.register(SystemRegion("r", f"/{shared.name}", PAGE, PAGE))
    assert list(memory.status("r")) == list(memory.status())
    part = RegionPart("r", 4, 10)
    region = memory.find(part)
    assert bytes(region.read(part)) == bytes([10, 11, 12, 13])
    region.write(part, b"abc", "OUT")
    assert bytes(contents(shared)[PAGE + 10 : PAGE + 14]) == b"abc\x0d"
    region.write(RegionPart("r", 0, 0), b"", "OUT")


@pytest.mark.parametrize(
    ("region", "error", "phrase"),
    [
        (SystemRegion("", "{}", PAGE), InvalidArgument, "'region name' is necessary"),
        (SystemRegion("r", "", PAGE), InvalidArgument, "invalid shm key"),
        (SystemRegion("r", "//", PAGE), InvalidArgument, "invalid shm key"),
        (SystemRegion("r", "../etc/passwd", PAGE), InvalidArgument, "invalid shm key"),
        (SystemRegion("r", "..", PAGE), InvalidArgument, "invalid shm key"),
        (
            SystemRegion("r", "/triton_python_backend_shm_region_1", PAGE),
            InvalidArgument,
            "contains the reserved prefix",
        ),
        (SystemRegion("r", "no_such_object", PAGE), Internal, "Unable to open shared memory"),
        (SystemRegion("r", "{}", 0), InvalidArgument, "'r': invalid args"),
        (SystemRegion("r", "{}", -1), InvalidArgument, "'r': invalid args"),
        (SystemRegion("r", "{}", 3 * PAGE), InvalidArgument, "'r': invalid args"),
        (SystemRegion("r", "{}", 2 * PAGE, PAGE), InvalidArgument, "'r': invalid args"),
        (SystemRegion("r", "{}", 1, -PAGE), InvalidArgument, "'r': invalid args"),
        (SystemRegion("r", "{}", 1, 1), InvalidArgument, "'r': invalid args"),
        (SystemRegion("r", "{}", 2**64, PAGE), InvalidArgument, "'r': invalid args"),
    ],
)
def test_what_cannot_be_registered(
    memory: SharedMemory,
    shared: Object,
    region: SystemRegion,
    error: type[MicrokernelError],
    phrase: str,
) -> None:
    key = region.key.format(shared.name)
    with pytest.raises(error, match=phrase):
        memory.register(SystemRegion(region.name, key, region.byte_size, region.offset))
    assert list(memory.status()) == []


@pytest.mark.parametrize(
    ("part", "error", "phrase"),
    [
        (RegionPart("other", 1), NotFound, "Unable to find shared memory region: 'other'"),
        (RegionPart("r", 1, PAGE), InvalidArgument, "Invalid offset for shared memory region: 'r'"),
        (RegionPart("r", 1, -1), InvalidArgument, "Invalid offset for shared memory region: 'r'"),
        (RegionPart("r", PAGE + 1), InvalidArgument, "Invalid offset \\+ byte size"),
        (RegionPart("r", 2, PAGE - 1), InvalidArgument, "Invalid offset \\+ byte size"),
        (RegionPart("r", -1, 2), InvalidArgument, "Invalid offset \\+ byte size"),
        (RegionPart("r", 2**63 - 1, 1), InvalidArgument, "Integer overflow detected"),
    ],
)
def test_parts_that_leave_the_region(
    memory: SharedMemory,
    shared: Object,
    part: RegionPart,
    error: type[MicrokernelError],
    phrase: str,
) -> None:
    memory.register(SystemRegion("r", shared.name, PAGE))
    with pytest.raises(error, match=phrase):
        memory.find(part)


def test_an_output_must_fit(memory: SharedMemory, shared: Object) -> None:
    memory.register(SystemRegion("r", shared.name, PAGE))
    part = RegionPart("r", 2)
    with pytest.raises(Internal, match=r"output 'OUT' \(2 bytes\) should be at least 3 bytes"):
        memory.find(part).write(part, b"abc", "OUT")


def test_a_client_that_cuts_its_object_short_gets_errors(memory: SharedMemory) -> None:
    made = Object(create=True, size=PAGE)
    try:
        memory.register(SystemRegion("r", made.name, PAGE))
        part = RegionPart("r", 4, 100)
        region = memory.find(part)
        os.truncate(f"/dev/shm/{made.name}", 0)
        with pytest.raises(InvalidArgument, match="has become shorter"):
            region.read(part)
        with pytest.raises(Internal, match="has become shorter"):
            region.write(part, b"abcd", "OUT")
    finally:
        made.close()
        made.unlink()


def test_a_name_stays_taken_while_a_request_uses_the_region(
    memory: SharedMemory, shared: Object
) -> None:
    about = SystemRegion("r", shared.name, PAGE)
    memory.register(about)
    with pytest.raises(AlreadyExists, match="shared memory region 'r' already in manager"):
        memory.register(about)
    used = memory.find(RegionPart("r", 1))
    memory.unregister("r")
    with pytest.raises(NotFound):
        memory.find(RegionPart("r", 1))
    with pytest.raises(NotFound, match="Unable to find system shared memory region: 'r'"):
        memory.status("r")
    with pytest.raises(AlreadyExists):
        memory.register(about)
    used.write(RegionPart("r", 1), b"z", "OUT")
    del used
    gc.collect()
    memory.register(about)


def descriptors() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_input_is_larger_than_a_message_may_be(memory: SharedMemory, shared: Object) -> None:
    os.truncate(f"/dev/shm/{shared.name}", 1 << 40)
    memory.register(SystemRegion("r", shared.name, 1 << 40))
    part = RegionPart("r", 2**31)
    with pytest.raises(InvalidArgument, match="may have at most 2147483647 bytes, got 2147483648"):
        memory.find(part).read(part)


def test_it_is_said_when_the_server_has_too_many_files_open(
    memory: SharedMemory, shared: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("microkernel.regions.os.open", full)
    with pytest.raises(Internal, match=r"Unable to open .* has too many files open"):
        memory.register(SystemRegion("r", shared.name, PAGE))


def test_regions_leave_half_of_the_files_to_connections(
    memory: SharedMemory, shared: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microkernel.shared_memory.most_open_files", lambda: 5)
    for name in "ab":
        memory.register(SystemRegion(name, shared.name, PAGE))
    with pytest.raises(InvalidArgument, match="no more than 2 regions can be registered"):
        memory.register(SystemRegion("c", shared.name, PAGE))
    monkeypatch.setattr("microkernel.shared_memory.most_open_files", lambda: -1)
    memory.register(SystemRegion("c", shared.name, PAGE))


def test_unregistering_all_closes_every_object(memory: SharedMemory, shared: Object) -> None:
    before = descriptors()
    for name in "abc":
        memory.register(SystemRegion(name, shared.name, PAGE))
    assert descriptors() == before + 3
    memory.unregister("unknown")
    memory.unregister()
    assert list(memory.status()) == []
    assert descriptors() == before


@pytest.mark.parametrize(("size", "on_the_loop"), [(PAGE, True), (4 << 20, False)])
async def test_large_copies_leave_the_event_loop(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch, size: int, on_the_loop: bool
) -> None:
    threads: list[int] = []

    def watched(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            threads.append(threading.get_ident())
            return work(*arguments)

        return run

    async def echo(request: InferRequest) -> InferResponse:
        return InferResponse("m", 1, "", (replace(request.inputs[0], name="OUT"),))

    for name in ("read", "write"):
        monkeypatch.setattr(OpenSystemRegion, name, watched(getattr(OpenSystemRegion, name)))
    made = Object(create=True, size=2 * size)
    try:
        contents(made)[:size] = bytes([7]) * size
        memory.register(SystemRegion("r", made.name, 2 * size))
        tensor = Tensor("IN", UINT8, (size,), b"")
        places = {"IN": RegionPart("r", size)}, {"OUT": RegionPart("r", size, size)}
        request = InferRequest("m", (tensor,), shared_inputs=places[0], shared_outputs=places[1])
        await memory.infer(request, echo)
        assert bytes(contents(made)[size:]) == bytes([7]) * size
    finally:
        made.close()
        made.unlink()
    assert [thread == threading.get_ident() for thread in threads] == [on_the_loop] * 2


def test_names_that_have_left_are_forgotten(memory: SharedMemory, shared: Object) -> None:
    for name in map(str, range(100)):
        memory.register(SystemRegion(name, shared.name, PAGE))
        memory.unregister(name)
    gc.collect()
    assert not memory._leaving


@pytest.mark.parametrize("name", ["infer", "stream"])
async def test_what_cannot_run_is_refused_before_much_of_it_is_read(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The object takes no memory, and entries of a request may name it any number of times."""

    def check(request: InferRequest) -> None:
        raise InvalidArgument(f"{len(request.inputs)} inputs")

    async def run(request: InferRequest) -> Any:
        raise AssertionError(request)

    def read(region: OpenSystemRegion, part: RegionPart) -> bytes:
        raise AssertionError(part)

    monkeypatch.setattr(OpenSystemRegion, "read", read)
    made = Object(create=True, size=MUCH)
    try:
        memory.register(SystemRegion("r", made.name, MUCH))
        tensor = Tensor("IN", UINT8, (1,), b"")
        parts = {"IN": RegionPart("r", MUCH // 2)}
        request = InferRequest("m", (tensor,) * 3, shared_inputs=parts)
        with pytest.raises(InvalidArgument, match="3 inputs"):
            await getattr(memory, name)(request, run, check)
    finally:
        made.close()
        made.unlink()
