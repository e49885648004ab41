"""Clients that mean no good with shared memory: names that lead elsewhere, regions that are not
what they say, objects that shrink while they are read and written."""

import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hostile_peers import INFER, MODEL, Victim, grpc_stub, is_served, victim_of
from server_harness import PATIENCE, Answer, Running, ask

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")

SHARED = Path("/dev/shm")
SIZE = 1 << 20
SYSTEM = "/v2/systemsharedmemory"

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="there is no /dev/shm")


@pytest.fixture(scope="module")
def victim(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Victim:
    return victim_of(tmp_path_factory, start_server, "--allow-client-shm=true")


@pytest.fixture
def memory(victim: Victim) -> Iterator[Path]:
    """An object of a megabyte, and no region registered afterwards."""
    path = SHARED / f"microkernel-{uuid.uuid4().hex}"
    path.write_bytes(bytes(SIZE))
    yield path
    path.unlink()
    assert victim.server.post(f"{SYSTEM}/unregister").status == 200


def register(victim: Victim, name: str, **region: Any) -> Answer:
    body = json.dumps(region).encode()
    return ask(victim.server.http, "POST", f"{SYSTEM}/region/{name}/register", body)


@contextmanager
def registered(victim: Victim, memory: Path, size: int = SIZE) -> Iterator[None]:
    """A region `r` of an object, for a while."""
    assert register(victim, "r", key=memory.name, byte_size=size).status == 200
    yield
    assert victim.server.post(f"{SYSTEM}/unregister").status == 200


def register_over_grpc(victim: Victim, name: str, **region: Any) -> tuple[str, str]:
    with grpc_stub(victim.server) as (stub, messages):
        request = messages.SystemSharedMemoryRegisterRequest(name=name, **region)
        try:
            stub.SystemSharedMemoryRegister(request, timeout=PATIENCE)
        except grpc.RpcError as error:
            return error.code().name, str(error.details())
    return "OK", ""


INVALID = (400, "INVALID_ARGUMENT", "invalid shm key")
ELSEWHERE = (500, "INTERNAL", "Unable to open shared memory region")
KEYS: dict[str, tuple[int, str, str]] = {
    "": INVALID,
    "/": INVALID,
    "///": INVALID,
    ".": INVALID,
    "/..": INVALID,
    "../": INVALID,
    "/../etc/passwd": INVALID,
    "../../etc/passwd": INVALID,
    "/dev/shm/x": INVALID,
    "a/b": INVALID,
    "a\0b": INVALID,
    "x" * 256: INVALID,
    "x" * (1 << 19): INVALID,
    "é" * 200: ELSEWHERE,
    "..x": ELSEWHERE,
    "/triton_python_backend_shm_region_1": (
        400,
        "INVALID_ARGUMENT",
        "contains the reserved prefix",
    ),
}


@pytest.mark.parametrize("key", KEYS, ids=lambda key: repr(key)[:40])
def test_keys_that_lead_elsewhere(victim: Victim, key: str) -> None:
    status, code, phrase = KEYS[key]

    def attack() -> None:
        found = register(victim, "r", key=key, byte_size=8)
        assert (found.status, phrase in found.error) == (status, True), found.body[:300]
        named, details = register_over_grpc(victim, "r", key=key, byte_size=8)
        assert (named, phrase in details) == (code, True), details[:300]
        assert victim.server.get(f"{SYSTEM}/status").json == []

    victim.suffers(attack)


def test_links_and_folders_are_not_opened(victim: Victim, memory: Path) -> None:
    link, folder = memory.with_suffix(".link"), memory.with_suffix(".folder")
    link.symlink_to("/etc/hostname")
    folder.mkdir()
    try:
        for path in (link, folder):
            found = register(victim, "r", key=path.name, byte_size=8)
            assert (found.status, found.error.split(":")[0]) == (500, ELSEWHERE[2])
    finally:
        link.unlink()
        folder.rmdir()


@pytest.mark.parametrize(
    "region",
    [
        {"byte_size": 0},
        {"byte_size": SIZE + 1},
        {"byte_size": 2**63},
        {"byte_size": 2**64 - 1},
        {"byte_size": 8, "offset": SIZE},
        {"byte_size": 8, "offset": SIZE - 4},
        {"byte_size": 8, "offset": 2**63 - 8},
        {"byte_size": 8, "offset": 2**64 - 8},
        {"byte_size": 2**64 - 4096, "offset": 4096},
        {"byte_size": 8, "offset": 4},
    ],
    ids=str,
)
def test_regions_beyond_their_object(victim: Victim, memory: Path, region: dict[str, int]) -> None:
    phrase = "failed to register shared memory region 'r': invalid args"

    def attack() -> None:
        found = register(victim, "r", key=memory.name, **region)
        assert (found.status, found.error) == (400, phrase)
        assert register_over_grpc(victim, "r", key=memory.name, **region) == (
            "INVALID_ARGUMENT",
            phrase,
        )

    victim.suffers(attack)


@pytest.mark.parametrize("region", [{"byte_size": -1}, {"byte_size": 2**64}, {"byte_size": 8.0}])
def test_sizes_that_are_none(victim: Victim, memory: Path, region: dict[str, Any]) -> None:
    assert register(victim, "r", key=memory.name, **region).status == 500
    assert register(victim, "r", key=7, byte_size=8).status == 500


NAMES = ["..", ".", "a/b", "../../etc/passwd", "é", "a b", "x" * 10_000, "%2e%2e"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: str(name)[:40])
def test_names_lead_nowhere(victim: Victim, memory: Path, name: str) -> None:
    from urllib.parse import quote

    named = quote(name, safe="")
    found = register(victim, named, key=memory.name, byte_size=8)
    assert found.status == 200, found.body
    about = victim.server.get(f"{SYSTEM}/region/{named}/status").json
    assert about == [{"name": name, "key": memory.name, "offset": 0, "byte_size": 8}]
    assert register_over_grpc(victim, name, key=memory.name, byte_size=8)[0] == "ALREADY_EXISTS"
    assert victim.server.post(f"{SYSTEM}/region/{named}/unregister").status == 200


def ask_shared(victim: Victim, input_part: dict[str, Any], output_part: dict[str, Any]) -> Answer:
    """A request whose input and output lie where `*_part` say, of two numbers."""
    document = {
        "inputs": [
            {"name": "IN_INT32", "datatype": "INT32", "shape": [1, 2], "parameters": input_part}
        ],
        "outputs": [{"name": "OUT_INT32", "parameters": output_part}],
    }
    return victim.server.post(INFER, json.dumps(document).encode())


def part(size: Any, offset: Any = 0, region: Any = "r") -> dict[str, Any]:
    return {
        "shared_memory_region": region,
        "shared_memory_byte_size": size,
        "shared_memory_offset": offset,
    }


@pytest.mark.parametrize(
    ("place", "status", "phrase"),
    [
        (part(8, SIZE), 400, "Invalid offset for shared memory region: 'r'"),
        (part(8, SIZE - 4), 400, "Invalid offset + byte size for shared memory region: 'r'"),
        (part(SIZE + 1), 400, "Invalid offset + byte size for shared memory region: 'r'"),
        (part(8, 2**63 - 1), 400, "Integer overflow detected"),
        (part(8, 2**64 - 8), 400, "Integer overflow detected"),
        (part(2**64 - 1, 1), 400, "Integer overflow detected"),
        (part(8, 0, "../r"), 404, "Unable to find shared memory region: '../r'"),
        (part(8, 0, 7), 500, "'shared_memory_region'"),
        (part(-8), 500, "'shared_memory_byte_size'"),
        (part(8, -8), 500, "'shared_memory_offset'"),
        (part(8, 2**64), 500, "'shared_memory_offset'"),
        (part(8.0), 500, "'shared_memory_byte_size'"),
    ],
)
def test_parts_beyond_their_region(
    victim: Victim, memory: Path, place: dict[str, Any], status: int, phrase: str
) -> None:
    assert register(victim, "r", key=memory.name, byte_size=SIZE).status == 200
    for parts in ((place, part(8)), (part(8), place)):
        found = ask_shared(victim, *parts)
        assert (found.status, phrase in found.error) == (status, True), found.body
    is_served(victim.server)


@pytest.mark.parametrize("size", [0, 4, 8, 12])
def test_objects_that_were_cut(victim: Victim, memory: Path, size: int) -> None:
    phrase = "has become shorter"

    def attack() -> None:
        os.truncate(memory, SIZE)
        with registered(victim, memory):
            os.truncate(memory, size)
            read = ask_shared(victim, part(8), {})
            written = ask_shared(victim, part(8), part(8, 8))
        if size < 8:
            assert (read.status, phrase in read.error) == (400, True)
            assert (written.status, phrase in written.error) == (400, True)
        else:
            assert read.status == 200
            assert (written.status, phrase in written.error) == (500, True)

    victim.suffers(attack)


def test_an_object_that_is_cut_all_the_time(victim: Victim, memory: Path) -> None:
    def attack() -> None:
        over = threading.Event()

        def cut() -> None:
            while not over.is_set():
                os.truncate(memory, 0)
                os.truncate(memory, SIZE)

        cutter = threading.Thread(target=cut)
        try:
            with registered(victim, memory):
                cutter.start()
                found = {ask_large(victim, SIZE // 8) for _ in range(60)}
            assert found <= {200, 400, 500}
        finally:
            over.set()
            cutter.join()

    victim.suffers(attack)


def ask_large(victim: Victim, count: int) -> int:
    """The status of a request from one half of the region to the other."""
    shape = [count // 2, 2]
    document = {
        "inputs": [
            {
                "name": "IN_INT32",
                "datatype": "INT32",
                "shape": shape,
                "parameters": part(4 * count),
            }
        ],
        "outputs": [{"name": "OUT_INT32", "parameters": part(4 * count, SIZE // 2)}],
    }
    return victim.server.post(INFER, json.dumps(document).encode()).status


def test_an_object_of_a_terabyte(victim: Victim, memory: Path) -> None:
    os.truncate(memory, 1 << 40)

    def attack() -> None:
        with registered(victim, memory, 1 << 40):
            found = ask_shared(victim, part(1 << 39), {})
        assert (found.status, "input byte size mismatch" in found.error) == (400, True)

    victim.suffers(attack)


@pytest.mark.slow
def test_more_regions_than_allowed(victim: Victim, memory: Path) -> None:
    def attack() -> None:
        with grpc_stub(victim.server) as (stub, messages):

            def request(number: int) -> Any:
                return messages.SystemSharedMemoryRegisterRequest(
                    name=f"r{number}", key=memory.name, byte_size=8
                )

            for number in range(4096):
                stub.SystemSharedMemoryRegister(request(number), timeout=PATIENCE)
            with pytest.raises(grpc.RpcError) as raised:
                stub.SystemSharedMemoryRegister(request(4096), timeout=PATIENCE)
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert raised.value.details() == "no more than 4096 regions can be registered"
            is_served(victim.server)
            stub.SystemSharedMemoryUnregister(messages.SystemSharedMemoryUnregisterRequest())

    victim.suffers(attack)


@pytest.mark.parametrize(
    ("key", "value"), [("offset", -1), ("byte_size", -1), ("offset", -(2**63))]
)
def test_parts_below_0_over_grpc(victim: Victim, memory: Path, key: str, value: int) -> None:
    assert register(victim, "r", key=memory.name, byte_size=SIZE).status == 200
    with grpc_stub(victim.server) as (stub, messages):
        request = messages.ModelInferRequest(model_name=MODEL)
        entry = request.inputs.add(name="IN_INT32", datatype="INT32", shape=[1, 2])
        entry.parameters["shared_memory_region"].string_param = "r"
        entry.parameters["shared_memory_byte_size"].int64_param = 8
        entry.parameters[f"shared_memory_{key}"].int64_param = value
        with pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(request, timeout=PATIENCE)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Invalid offset" in raised.value.details()
    is_served(victim.server)
