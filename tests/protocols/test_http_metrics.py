import asyncio
import http.client

import pytest

from microkernel import Unavailable
from microkernel.testing import FakeServer

pytest.importorskip("aiohttp", reason="the extra 'http' is missing")

from microkernel_http.metrics import MetricsFrontend
from microkernel_http.settings import HttpSettings


def ask(port: int, method: str, path: str) -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path)
    answer = connection.getresponse()
    found = answer.status, answer.getheader("Content-Type"), answer.read()
    connection.close()
    return found


PLAIN = "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [
        ("GET", "/metrics", (200, PLAIN, b"nv_x 1\n")),
        ("GET", "/metrics/?x", (200, PLAIN, b"nv_x 1\n")),
        ("GET", "/none", (200, PLAIN, b"")),
        ("POST", "/metrics", (405, "text/plain", b'{"error":"Method Not Allowed"}')),
    ],
)
async def test_the_page(method: str, path: str, answer: tuple[int, str, bytes]) -> None:
    server = FakeServer()
    server.page = b"nv_x 1\n"
    settings = HttpSettings(address="256.0.0.1", metrics_address="127.0.0.1", metrics_port=0)
    frontend = MetricsFrontend(server, settings)
    assert await frontend.start() == f"Started Metrics Service at 127.0.0.1:{frontend.port}"
    found = await asyncio.to_thread(ask, frontend.port, method, path)
    await frontend.stop(1)
    assert found == answer


async def test_the_address_is_that_of_http_by_default_and_errors_are_answers() -> None:
    server = FakeServer()
    server.failure = Unavailable("Server exiting")
    frontend = MetricsFrontend(server, HttpSettings(address="127.0.0.1", metrics_port=0))
    await frontend.start()
    status, _, body = await asyncio.to_thread(ask, frontend.port, "GET", "/metrics")
    await frontend.stop(1)
    assert (status, body) == (503, b'{"error":"Server exiting"}')


async def test_switched_off() -> None:
    frontend = MetricsFrontend(FakeServer(), HttpSettings(allow_metrics=False))
    assert await frontend.start() is None
    await frontend.stop(1)
