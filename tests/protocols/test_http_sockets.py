"""Unix-domain sockets."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from microkernel import InvalidArgument, Unavailable
from microkernel.testing import FakeServer

pytest.importorskip("aiohttp", reason="the extra 'http' is missing")

from microkernel_http.frontend import HttpFrontend
from microkernel_http.metrics import MetricsFrontend
from microkernel_http.settings import HttpSettings

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path that is short enough for a socket."""
    return Path(os.path.relpath(tmp_path)) / "socket"


def mode(path: Path) -> int | None:
    """The permissions of a file, None where there is none."""
    return stat.S_IMODE(path.lstat().st_mode) if os.path.lexists(path) else None


async def ask(path: Path, sent: bytes = LIVE) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(sent)
    found = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return found


async def test_an_address_without_a_path() -> None:
    with pytest.raises(InvalidArgument, match="address 'unix:' must be unix:PATH"):
        HttpFrontend(FakeServer(), HttpSettings(address="unix:"))


async def test_http_on_a_socket(server: FakeServer, path: Path) -> None:
    frontend = HttpFrontend(server, HttpSettings(address=f"unix:{path}", port=8000))
    assert await frontend.start() == f"Started HTTPService at unix:{path}"
    assert frontend.port == 0
    assert mode(path) == 0o600
    assert (await ask(path)).startswith(b"HTTP/1.1 200 ")
    await frontend.stop(5)
    assert mode(path) is None


async def test_the_metrics_page_on_a_socket(path: Path) -> None:
    server = FakeServer()
    server.page = b"nv_x 1\n"
    frontend = MetricsFrontend(server, HttpSettings(metrics_address=f"unix:{path}"))
    assert await frontend.start() == f"Started Metrics Service at unix:{path}"
    page = await ask(path, LIVE.replace(b"/v2/health/live", b"/metrics"))
    await frontend.stop(5)
    assert page.endswith(b"\r\n\r\nnv_x 1\n")


async def test_the_metrics_page_stays_on_this_host_where_http_does(path: Path) -> None:
    settings = HttpSettings(address=f"unix:{path}", metrics_port=0)
    frontend = MetricsFrontend(FakeServer(), settings)
    assert await frontend.start() == f"Started Metrics Service at 127.0.0.1:{frontend.port}"
    await frontend.stop(5)


async def test_a_socket_in_use_is_left_alone(server: FakeServer, path: Path) -> None:
    settings = HttpSettings(address=f"unix:{path}")
    first, second = HttpFrontend(server, settings), HttpFrontend(server, settings)
    await first.start()
    with pytest.raises(Unavailable, match=f"^Socket 'unix:{path}' already in use$"):
        await second.start()
    await second.stop(5)
    assert (await ask(path)).startswith(b"HTTP/1.1 200 ")
    await first.stop(5)
