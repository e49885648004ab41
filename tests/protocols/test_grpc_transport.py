"""TLS, compression and the other settings of gRPC's connections."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microkernel import InvalidArgument
from microkernel.options import remarks
from microkernel.testing import FakeServer

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")
client = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

from microkernel_grpc.frontend import GrpcFrontend  # noqa: E402 - after the checks above
from microkernel_grpc.settings import GrpcSettings  # noqa: E402
from microkernel_grpc.transport import channel_options, credentials  # noqa: E402

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="the command openssl is missing"
)


@asynccontextmanager
async def serving(server: FakeServer, **settings: Any) -> AsyncIterator[int]:
    frontend = GrpcFrontend(server, GrpcSettings(address="127.0.0.1", port=0, **settings))
    await frontend.start()
    yield frontend.port
    await frontend.stop(5)


def test_the_defaults_of_a_connection() -> None:
    assert dict(channel_options(GrpcSettings())) == {
        "grpc.max_receive_message_length": 2147483647,
        "grpc.max_send_message_length": 2147483647,
        "grpc.server.max_pending_requests": 8192,
        "grpc.server.max_pending_requests_hard_limit": 8192,
        "grpc.so_reuseport": 0,
        "grpc.keepalive_time_ms": 7200000,
        "grpc.keepalive_timeout_ms": 20000,
        "grpc.keepalive_permit_without_calls": 0,
        "grpc.http2.max_pings_without_data": 2,
        "grpc.http2.min_ping_interval_without_data_ms": 300000,
        "grpc.http2.max_ping_strikes": 2,
    }


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"reuse_port": True}, "grpc.so_reuseport", 1),
        ({"keepalive_time": 1}, "grpc.keepalive_time_ms", 1),
        ({"keepalive_timeout": 2}, "grpc.keepalive_timeout_ms", 2),
        ({"keepalive_permit_without_calls": True}, "grpc.keepalive_permit_without_calls", 1),
        ({"http2_max_pings_without_data": 3}, "grpc.http2.max_pings_without_data", 3),
        (
            {"http2_min_recv_ping_interval_without_data": 4},
            "grpc.http2.min_ping_interval_without_data_ms",
            4,
        ),
        ({"http2_max_ping_strikes": 5}, "grpc.http2.max_ping_strikes", 5),
        ({"max_connection_age": 6}, "grpc.max_connection_age_ms", 6),
        ({"max_connection_age_grace": 7}, "grpc.max_connection_age_grace_ms", 7),
        (
            {"infer_response_compression_level": "low"},
            "grpc.default_compression_level",
            1,
        ),
        (
            {"infer_response_compression_level": "high"},
            "grpc.default_compression_level",
            3,
        ),
    ],
)
def test_settings_of_a_connection(settings: dict[str, Any], name: str, value: int) -> None:
    assert dict(channel_options(GrpcSettings(**settings)))[name] == value


def test_flags_without_effect_are_named() -> None:
    assert remarks(GrpcSettings()) == []
    given = GrpcSettings(
        infer_thread_count=4, infer_allocation_pool_size=0, max_response_pool_size=1
    )
    assert remarks(given) == [
        "--grpc-infer-thread-count has no effect: one event loop serves every call",
        "--grpc-infer-allocation-pool-size has no effect: messages are not kept for reuse",
        "--grpc-max-response-pool-size has no effect: a stream stops reading requests while its "
        "answers wait",
    ]


def _channel(port: int) -> Any:
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}")


class Counting:
    """Passes connections on to a port and counts the bytes that come back."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.received = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._port)
        forth = asyncio.create_task(self._pump(reader, there[1]))
        self.received += await self._pump(there[0], writer)
        await forth

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        count = 0
        while data := await reader.read(1 << 16):
            count += len(data)
            writer.write(data)
        writer.close()
        return count


@pytest.mark.parametrize(
    ("level", "compressed"), [("none", False), ("low", True), ("medium", True), ("high", True)]
)
async def test_answers_are_compressed_as_asked(
    server: FakeServer, level: str, compressed: bool
) -> None:
    values = np.zeros((1, 250_000), np.float32)

    def use(port: int) -> Any:
        tensor = client.InferInput("INPUT0", list(values.shape), "FP32")
        tensor.set_data_from_numpy(values)
        with client.InferenceServerClient(f"127.0.0.1:{port}") as connected:
            answer = connected.infer("identity", [tensor], compression_algorithm="gzip")
            return answer.as_numpy("OUTPUT0")

    async with serving(server, infer_response_compression_level=level) as port:
        counting, ended = Counting(port), asyncio.Event()

        async def connected(*ends: Any) -> None:
            await counting.connected(*ends)
            ended.set()

        relay = await asyncio.start_server(connected, "127.0.0.1", 0)
        async with relay:
            through = relay.sockets[0].getsockname()[1]
            np.testing.assert_array_equal(await asyncio.to_thread(use, through), values)
            await asyncio.wait_for(ended.wait(), 10)
    assert (counting.received < 20_000) is compressed


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with certificates of a server and a client, and a stranger's of its own."""
    folder = tmp_path_factory.mktemp("pki")
    for name in ("root", "stranger"):
        _openssl(folder, "req", "-x509", "-subj", f"/CN={name}", *_key(name), "-out", f"{name}.crt")
    names = folder / "names"
    names.write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        _openssl(folder, "req", "-subj", f"/CN={name}", *_key(name), "-out", f"{name}.csr")
        root = ["-CA", "root.crt", "-CAkey", "root.key", "-CAcreateserial", "-days", "2"]
        files = ["-in", f"{name}.csr", "-out", f"{name}.crt", "-extfile", "names"]
        _openssl(folder, "x509", "-req", *files, *root)
    return folder


def _key(name: str) -> list[str]:
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    return [*curve, "-keyout", f"{name}.key"]


def _openssl(folder: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)


def _tls(pki: Path, **rest: Any) -> dict[str, Any]:
    files = {"server_cert": pki / "server.crt", "server_key": pki / "server.key"}
    return {name: str(path) for name, path in files.items()} | rest


async def is_live(port: int, **tls: Any) -> bool:
    def use() -> bool:
        with client.InferenceServerClient(f"127.0.0.1:{port}", **tls) as connected:
            live: bool = connected.is_server_live(client_timeout=20)
            return live

    return await asyncio.to_thread(use)


@needs_openssl
async def test_tls(server: FakeServer, pki: Path) -> None:
    async with serving(server, **_tls(pki, use_ssl=True)) as port:
        assert await is_live(port, ssl=True, root_certificates=str(pki / "root.crt"))
        for wrong in ({"ssl": True, "root_certificates": str(pki / "stranger.crt")}, {}):
            with pytest.raises(client.InferenceServerException, match="UNAVAILABLE"):
                await is_live(port, **wrong)


@needs_openssl
async def test_mutual_tls(server: FakeServer, pki: Path) -> None:
    known = {"ssl": True, "root_certificates": str(pki / "root.crt")}
    mutual = _tls(pki, use_ssl_mutual=True, root_cert=str(pki / "root.crt"))
    async with serving(server, **mutual) as port:
        for name, welcome in (("client", True), ("stranger", False), ("", False)):
            own = {"private_key": pki / f"{name}.key", "certificate_chain": pki / f"{name}.crt"}
            shown = {key: str(path) for key, path in own.items()} if name else {}
            if welcome:
                assert await is_live(port, **known, **shown)
                continue
            with pytest.raises(client.InferenceServerException, match="UNAVAILABLE"):
                await is_live(port, **known, **shown)


def test_no_tls_unless_asked_for() -> None:
    given = GrpcSettings(server_cert="absent")
    assert credentials(given) is None
    assert given.doubts() == ["--grpc-server-cert has no effect without --grpc-use-ssl"]
    assert GrpcSettings(use_ssl=True, server_cert="absent").doubts() == []


@needs_openssl
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"server_cert": ""}, "--grpc-server-cert must name a PEM file"),
        ({"server_key": ""}, "--grpc-server-key must name a PEM file"),
        ({"use_ssl_mutual": True}, "--grpc-root-cert must name a PEM file"),
        ({"server_key": "absent.key"}, "--grpc-server-key: cannot read"),
        ({"server_key": "client.key"}, "and its unencrypted key in PEM form"),
        ({"server_key": "locked.key"}, "and its unencrypted key in PEM form"),
        ({"server_cert": "names"}, "--grpc-server-cert"),
        ({"root_cert": "names"}, "--grpc-root-cert"),
    ],
)
def test_tls_files_that_cannot_be_used(
    server: FakeServer, pki: Path, settings: dict[str, Any], text: str
) -> None:
    if "locked.key" in settings.values():
        _openssl(
            pki, "ec", "-in", "server.key", "-aes256", "-passout", "pass:x", "-out", "locked.key"
        )
    given = {k: str(pki / v) if isinstance(v, str) and v else v for k, v in settings.items()}
    with pytest.raises(InvalidArgument) as caught:
        GrpcFrontend(server, GrpcSettings(**{**_tls(pki, use_ssl=True), **given}))
    assert text in str(caught.value)


def test_tls_files_do_not_matter_where_grpc_is_switched_off(server: FakeServer) -> None:
    GrpcFrontend(server, GrpcSettings(allow_grpc=False, use_ssl=True, server_cert="absent"))
