"""gRPC on Unix-domain sockets."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from microkernel import InvalidArgument, Unavailable
from microkernel.testing import FakeServer

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")

from microkernel_grpc.frontend import GrpcFrontend  # noqa: E402 - after the check above
from microkernel_grpc.schema import SERVICES  # noqa: E402
from microkernel_grpc.settings import GrpcSettings  # noqa: E402


@pytest.fixture
def path() -> Iterator[Path]:
    """A path short enough for a socket, wherever the tests run."""
    with tempfile.TemporaryDirectory(prefix="mk") as folder:
        yield Path(folder) / "s"


def frontend(path: Path, **settings: Any) -> GrpcFrontend:
    return GrpcFrontend(FakeServer(), GrpcSettings(address=f"unix:{path}", **settings))


async def is_live(path: Path) -> bool:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        answer: bytes = await channel.unary_unary(f"/{SERVICES[0]}/ServerLive")(b"", timeout=20)
    return answer == b"\x08\x01"


def mode(path: Path) -> int | None:
    """The permissions of a file, None where there is none."""
    return stat.S_IMODE(path.lstat().st_mode) if os.path.lexists(path) else None


def test_an_address_without_a_path() -> None:
    with pytest.raises(InvalidArgument, match="address 'unix:' must be unix:PATH"):
        GrpcFrontend(FakeServer(), GrpcSettings(address="unix:"))


async def test_a_socket_lives_as_long_as_the_server(path: Path) -> None:
    served = frontend(path, port=7)
    assert await served.start() == f"Started GRPCInferenceService at unix:{path}"
    assert served.port == 0
    assert mode(path) == 0o600
    assert await is_live(path)
    await served.stop(5)
    assert mode(path) is None


async def test_a_socket_in_use_is_left_alone(path: Path) -> None:
    first, second = frontend(path), frontend(path)
    await first.start()
    with pytest.raises(Unavailable) as caught:
        await second.start()
    assert str(caught.value) == f"Socket 'unix:{path}' already in use"
    assert await is_live(path)
    await first.stop(5)
