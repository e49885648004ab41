"""HTTP and the metrics page over TLS."""

import asyncio
import ssl
import urllib.request
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microkernel import InvalidArgument
from microkernel.testing import FakeServer

pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")

from geventhttpclient.response import HTTPConnectionClosed  # noqa: E402 - after the checks above

from microkernel_http.frontend import HttpFrontend  # noqa: E402
from microkernel_http.metrics import MetricsFrontend  # noqa: E402
from microkernel_http.settings import HttpSettings  # noqa: E402

CUT_OFF = (OSError, HTTPConnectionClosed)
"""What a client notices, sooner or later, that is not welcome."""
Serving = Callable[..., AbstractAsyncContextManager[Any]]


def own_files(folder: Path, **rest: Any) -> dict[str, Any]:
    files = {"server_cert": folder / "server.crt", "server_key": folder / "server.key"}
    return {name: str(path) for name, path in files.items()} | rest


def context(folder: Path, roots: str = "root", own: str = "") -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(folder / f"{roots}.crt"))
    if own:
        made.load_cert_chain(folder / f"{own}.crt", folder / f"{own}.key")
    return made


async def infer(port: int, tls: ssl.SSLContext | None) -> Any:
    """What the official client gets back for 300,000 numbers and one more."""
    values = np.arange(300_001, dtype=np.float32).reshape(1, -1)
    secure: dict[str, Any] = (
        {} if tls is None else {"ssl": True, "ssl_context_factory": lambda: tls}
    )

    def use() -> Any:
        tensor = client.InferInput("INPUT0", list(values.shape), "FP32")
        tensor.set_data_from_numpy(values)
        with client.InferenceServerClient(f"127.0.0.1:{port}", **secure) as connected:
            return connected.infer("identity", [tensor]).as_numpy("OUTPUT0")

    np.testing.assert_array_equal(await asyncio.to_thread(use), values)


async def test_the_official_client_over_tls(http_serving: Serving, certificates: Path) -> None:
    async with http_serving(**own_files(certificates, use_ssl=True)) as frontend:
        await infer(frontend.port, context(certificates))
        with pytest.raises(ssl.SSLCertVerificationError):
            await infer(frontend.port, context(certificates, roots="stranger"))
        with pytest.raises(CUT_OFF):
            await infer(frontend.port, None)


async def test_clients_with_certificates(http_serving: Serving, certificates: Path) -> None:
    roots = str(certificates / "root.crt")
    settings = own_files(certificates, use_ssl_mutual=True, root_cert=roots)
    async with http_serving(**settings) as frontend:
        await infer(frontend.port, context(certificates, own="client"))
        for own in ("", "stranger"):
            with pytest.raises(CUT_OFF):
                await infer(frontend.port, context(certificates, own=own))


async def test_the_version_of_http_is_agreed_on(http_serving: Serving, certificates: Path) -> None:
    asking = context(certificates)
    asking.set_alpn_protocols(["h2", "http/1.1"])
    async with http_serving(**own_files(certificates, use_ssl=True)) as frontend:
        _, writer = await asyncio.open_connection("127.0.0.1", frontend.port, ssl=asking)
        found = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        writer.close()
        await writer.wait_closed()
    assert found == "http/1.1"


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
async def test_a_handshake_that_does_not_end_is_cut_off(
    http_serving: Serving, certificates: Path, sent: bytes
) -> None:
    settings = own_files(certificates, use_ssl=True, header_timeout=0.05)
    async with http_serving(**settings) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        await writer.wait_closed()


async def test_a_head_that_does_not_end_over_tls(http_serving: Serving, certificates: Path) -> None:
    settings = own_files(certificates, use_ssl=True, header_timeout=1.0)
    async with http_serving(**settings) as frontend:
        secure = context(certificates)
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port, ssl=secure)
        writer.write(b"GET /v2")
        assert (await asyncio.wait_for(reader.read(), 20)).startswith(b"HTTP/1.1 408 ")
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("own", ["client", ""])
async def test_the_metrics_page_over_tls(certificates: Path, own: str) -> None:
    server = FakeServer()
    server.page = b"nv_x 1\n"
    given = own_files(certificates, metrics_use_ssl=True, metrics_port=0, address="127.0.0.1")
    if own:
        given |= {"use_ssl_mutual": True, "root_cert": str(certificates / "root.crt")}
    frontend = MetricsFrontend(server, HttpSettings(**given))
    await frontend.start()

    def page() -> bytes:
        url = f"https://127.0.0.1:{frontend.port}/metrics"
        with urllib.request.urlopen(url, context=context(certificates, own=own)) as answer:
            found: bytes = answer.read()
            return found

    try:
        assert await asyncio.to_thread(page) == b"nv_x 1\n"
        own = ""
        if "use_ssl_mutual" in given:
            with pytest.raises(CUT_OFF):
                await asyncio.to_thread(page)
    finally:
        await frontend.stop(5)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"use_ssl": True}, "--http-server-cert must name a PEM file"),
        ({"use_ssl_mutual": True, "server_cert": "absent"}, "--http-server-cert: cannot read"),
    ],
)
async def test_files_of_no_use_stop_the_front_end(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        HttpFrontend(FakeServer(), HttpSettings(**settings))


async def test_files_of_no_use_stop_the_metrics_page() -> None:
    with pytest.raises(InvalidArgument, match="--http-server-cert must name a PEM file"):
        MetricsFrontend(FakeServer(), HttpSettings(metrics_use_ssl=True))


def test_files_without_tls_are_doubtful() -> None:
    given = HttpSettings(server_cert="a", root_cert="b")
    assert given.doubts() == [
        "--http-server-cert has no effect without --http-use-ssl",
        "--http-root-cert has no effect without --http-use-ssl",
    ]
    assert replace(given, use_ssl=True).doubts() == []
    assert replace(given, use_ssl_mutual=True).doubts() == []
    assert replace(given, metrics_use_ssl=True).doubts() == []
    assert HttpSettings().doubts() == []


async def test_files_do_not_matter_where_nothing_is_served() -> None:
    given: dict[str, Any] = {"use_ssl": True, "metrics_use_ssl": True, "server_cert": "absent"}
    off = HttpSettings(allow_http=False, allow_metrics=False, **given)
    HttpFrontend(FakeServer(), off)
    MetricsFrontend(FakeServer(), off)
