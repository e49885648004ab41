"""What a worker may use of the host: reading the parameters, and real workers that are held to
them."""

import asyncio
import ctypes
import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from odd_deeds import deed
from odd_loader import CONFIG, odd_loader
from structlog.testing import capture_logs
from waiting import until

from microkernel import (
    InferRequest,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ModelParameter,
    Unavailable,
)
from microkernel.models.version import ModelVersion
from microkernel.workers import limits
from microkernel.workers.limits import (
    NO_LIMITS,
    Limits,
    apply_limits,
    data_size,
    limits_from_json,
    limits_to_json,
    parse_limits,
    refuse_limits,
)

Ask = Callable[..., InferRequest]
Load = Callable[..., Awaitable[ModelVersion]]

MIB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="the limits need Linux")


def config(**parameters: str) -> ModelConfig:
    return ModelConfig(name="m", parameters={k: ModelParameter(v) for k, v in parameters.items()})


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, NO_LIMITS),
        ({"WORKER": "process"}, NO_LIMITS),
        ({"WORKER_MEMORY_LIMIT": "1000000"}, Limits(memory=1000000)),
        ({"WORKER_MEMORY_LIMIT": "512KiB"}, Limits(memory=512 << 10)),
        ({"WORKER_MEMORY_LIMIT": "800MiB"}, Limits(memory=800 * MIB)),
        ({"WORKER_MEMORY_LIMIT": "2.5 GiB"}, Limits(memory=2560 * MIB)),
        ({"WORKER_MEMORY_LIMIT": "1TiB"}, Limits(memory=1 << 40)),
        ({"WORKER_OPEN_FILES_LIMIT": "64"}, Limits(files=64)),
        ({"WORKER_NETWORK": "none"}, Limits(network=False)),
        ({"WORKER_NETWORK": "host"}, NO_LIMITS),
        (
            {
                "WORKER_MEMORY_LIMIT": "1GiB",
                "WORKER_OPEN_FILES_LIMIT": "100",
                "WORKER_NETWORK": "none",
            },
            Limits(1 << 30, 100, network=False),
        ),
    ],
)
def test_reading(parameters: dict[str, str], expected: Limits) -> None:
    assert parse_limits(config(**parameters)) == expected
    assert limits_from_json(limits_to_json(expected)) == expected


SIZE = "a number of bytes, also with a unit, like '800MiB' or '2.5 GiB'"
WRONG = [
    *(
        ("WORKER_MEMORY_LIMIT", text, SIZE)
        for text in ("", "0", "-1", "1e9", "800MB", "2 gib", "GiB", "lots", "1TiB ", "9999999TiB")
    ),
    *(
        ("WORKER_OPEN_FILES_LIMIT", text, "a whole number from 64 on")
        for text in ("", "63", "-64", "64.5", "many", "99999999999")
    ),
    *(("WORKER_NETWORK", text, "'host' or 'none'") for text in ("", "None", "off")),
]


@pytest.mark.parametrize(("key", "text", "right"), WRONG)
def test_what_is_wrong_is_named_with_what_is_right(key: str, text: str, right: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_limits(config(**{key: text}))
    assert str(caught.value) == f"parameter '{key}' of model 'm' must be {right}, got '{text}'"


def test_threads_of_the_server_have_no_limits() -> None:
    refuse_limits(config(), NO_LIMITS)
    own = config(WORKER_MEMORY_LIMIT="1GiB", WORKER_NETWORK="none")
    with pytest.raises(InvalidArgument) as caught:
        refuse_limits(own, parse_limits(own))
    assert str(caught.value) == (
        "parameter 'WORKER_MEMORY_LIMIT', 'WORKER_NETWORK' of model 'm' holds for a worker "
        "process, but its parameter 'WORKER' is 'thread', which runs it in the server's; use "
        "'process' or 'instance'"
    )


def test_the_size_of_a_process() -> None:
    assert data_size("VmSize:\t  99 kB\nVmData:\t  14 kB\nVmStk:\t 132 kB\n") == 14 << 10
    assert data_size("Name:\tx\n") == 0


@pytest.fixture
async def load(odd_path: None, tmp_path: Path) -> AsyncIterator[Load]:
    """`model = await load(WORKER_NETWORK="none")`: a model with those parameters."""
    loader = odd_loader()
    made: list[ModelVersion] = []

    async def make(**parameters: str) -> ModelVersion:
        directory = tmp_path / "odd"
        (directory / "1").mkdir(parents=True, exist_ok=True)
        more = "".join(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
            for key, value in parameters.items()
        )
        (directory / "config.pbtxt").write_text(textwrap.dedent(CONFIG) + more)
        made.append(await loader.load(loader.read(directory), directory, 1))
        return made[-1]

    yield make
    for model in made:
        await model.drain()
        await model.stop()
    await loader.close()


async def answer(model: ModelVersion, request: InferRequest) -> list[Any]:
    await until(lambda: model.ready)
    async with asyncio.timeout(20):
        row: list[Any] = (await model.infer(request)).outputs[0].as_numpy()[0].tolist()
        return row


async def die(model: ModelVersion, ask: Ask) -> str:
    """Have the worker killed; the error."""
    with capture_logs(), pytest.raises(Unavailable) as caught:
        await answer(model, ask(deed("kill")))
    return str(caught.value)


@linux
async def test_a_batch_that_takes_too_much_memory_fails_alone(load: Load, ask: Ask) -> None:
    model = await load(WORKER_MEMORY_LIMIT="400MiB")
    for _ in range(2):
        with capture_logs(), pytest.raises(Internal, match="Unable to allocate"):
            await answer(model, ask(deed("large"), 256 * MIB, 7))
        assert await answer(model, ask(3)) == [6]
    assert (await die(model, ask)).endswith(
        "killed by signal SIGKILL (its memory is limited to 419430400 bytes by "
        "'WORKER_MEMORY_LIMIT')"
    )
    with capture_logs(), pytest.raises(Internal, match="Unable to allocate"):
        await answer(model, ask(deed("large"), 256 * MIB, 7))


@linux
async def test_a_limit_that_leaves_no_room_for_a_model_fails_the_load(load: Load) -> None:
    with pytest.raises(Unavailable) as caught:
        await load(WORKER_MEMORY_LIMIT="64KiB")
    assert str(caught.value).startswith(
        "model 'odd': parameter 'WORKER_MEMORY_LIMIT' is 65536, but a worker of this backend has "
    )


@linux
async def test_open_files(load: Load, ask: Ask) -> None:
    model = await load(WORKER_OPEN_FILES_LIMIT="80")
    for _ in range(2):
        count, error, _ = await answer(model, ask(deed("open_files"), 0, 0))
        assert 40 < count < 80
        assert error == errno.EMFILE
        assert await answer(model, ask(3)) == [6]
        await die(model, ask)


@linux
async def test_more_files_than_the_server_may_open_fail_the_load(load: Load) -> None:
    with pytest.raises(Unavailable, match="is 999999999, but the server itself may open no more"):
        await load(WORKER_OPEN_FILES_LIMIT="999999999")


def namespaces() -> bool:
    """Whether this system lets a process without privileges take its own network away."""
    code = f"import ctypes; raise SystemExit(ctypes.CDLL(None).unshare({0x50000000}))"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@linux
@pytest.mark.skipif(not namespaces(), reason="this system allows no user namespaces")
async def test_a_worker_without_a_network(load: Load, ask: Ask) -> None:
    model = await load(WORKER_NETWORK="none")
    for _ in range(2):
        error, *ids = await answer(model, ask(deed("reach_home"), 0, 0))
        assert error == errno.ENETUNREACH
        assert ids == [os.getuid(), os.getgid()]
        await die(model, ask)


@linux
async def test_other_workers_have_the_network(load: Load, ask: Ask) -> None:
    model = await load(WORKER_NETWORK="host")
    assert (await answer(model, ask(deed("reach_home"), 0, 0)))[0] == 0


@linux
@pytest.mark.skipif(not namespaces(), reason="this system allows no user namespaces")
def test_without_privileges_a_user_namespace_takes_the_network() -> None:
    """The privileged way is refused in a process of its own, as to a server that is not root; it
    forks as a worker is forked, so that it has one thread."""
    code = """
        import errno, os, socket, warnings
        from microkernel.workers import limits
        warnings.simplefilter("ignore", DeprecationWarning)
        if (child := os.fork()) != 0:
            raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        unshare = limits._unshare
        limits._unshare = lambda flags: flags != 0x40000000 and unshare(flags)
        ids = os.getuid(), os.getgid()
        refusal = limits.apply_limits(limits.Limits(network=False))
        assert refusal == "", refusal
        assert (os.getuid(), os.getgid()) == ids
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        assert sock.connect_ex(("127.0.0.1", 9)) == errno.ENETUNREACH
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


@linux
def test_where_the_system_refuses_it_says_what_it_would_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(flags: int) -> bool:
        ctypes.set_errno(errno.EPERM)
        return False

    monkeypatch.setattr(limits, "_unshare", refuse)
    assert apply_limits(Limits(network=False)) == (
        "parameter 'WORKER_NETWORK' is 'none', but this system lets the server take the network "
        "from no worker (Operation not permitted): it must allow user namespaces, which containers "
        "often do not, or the server needs the capability CAP_SYS_ADMIN"
    )


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert apply_limits(NO_LIMITS) == ""
    assert apply_limits(Limits(files=100)) == "the limits of workers need Linux"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"WORKER_MEMORY_LIMIT": "much"}, "must be a number of bytes"),
        ({"WORKER": "thread", "WORKER_NETWORK": "none"}, "is 'thread'"),
    ],
)
async def test_what_is_wrong_fails_the_load(
    load: Load, parameters: dict[str, str], words: str
) -> None:
    with pytest.raises(MicrokernelError, match=words):
        await load(**parameters)
