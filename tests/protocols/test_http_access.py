"""Who may use the HTTP front end, from which pages, and what is logged of it."""

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from microkernel import (
    REFUSAL,
    InferRequest,
    InferResponse,
    InvalidArgument,
    ModelConfig,
    Unavailable,
)
from microkernel.testing import FakeServer

pytest.importorskip("aiohttp", reason="the extra 'http' is missing")

from microkernel_http.cors import Cors
from microkernel_http.frontend import HttpFrontend
from microkernel_http.metrics import MetricsFrontend
from microkernel_http.settings import HttpSettings

Serving = Callable[..., AbstractAsyncContextManager[Any]]
KEY = "0123456789abcdef"
BEARER = {"Authorization": f"Bearer {KEY}"}
INFER = "/v2/models/identity/infer"
BODY = b'{"id":"%s","inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":[1]}]}'
PAGE = "https://page.example"


async def ask(
    port: int,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> tuple[int, dict[str, str], bytes]:
    def use() -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    return await asyncio.to_thread(use)


@pytest.fixture
def keys(tmp_path: Path) -> str:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n")
    return str(file)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v2", {}, 401),
        ("GET", "/v2", BEARER, 200),
        ("GET", "/v2", {"X-API-Key": KEY}, 200),
        ("GET", "/v2", {"X-API-Key": KEY + "0"}, 401),
        ("GET", "/v2", {"Authorization": KEY}, 401),
        ("GET", "/v2/health/live", {}, 200),
        ("GET", "/v2/health/ready", {}, 200),
        ("GET", "/docs", {}, 200),
        ("POST", "/docs", {}, 405),
        ("GET", "/openapi.json", {}, 401),
        ("GET", "/v2/models/identity/ready", {}, 401),
        ("GET", "/none", {}, 401),
        ("GET", "/none", BEARER, 404),
        ("PUT", "/v2", {}, 401),
        ("PUT", "/v2", BEARER, 405),
        ("OPTIONS", "/v2", {"Access-Control-Request-Method": "POST", "Origin": PAGE}, 401),
        ("GET", "/v2/logging", {}, 401),
        ("GET", "/v2/logging", BEARER, 403),
        ("GET", "/v2/logging", {**BEARER, "other": "secret"}, 200),
        ("GET", "/v2/logging", {"other": "secret"}, 401),
    ],
)
async def test_who_has_a_key_may_pass(
    http_serving: Serving,
    keys: str,
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
) -> None:
    restricted = ("logging:other=secret",)
    async with http_serving(auth_file=keys, restricted_api=restricted) as frontend:
        found, given, body = await ask(frontend.port, method, path, headers)
    assert found == status
    assert given.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
    if status == 401:
        assert given["Content-Type"] == "application/json"
        assert json.loads(body) == {"error": REFUSAL}


async def test_the_body_of_a_refused_request_is_not_waited_for(
    http_serving: Serving, keys: str
) -> None:
    async with http_serving(auth_file=keys) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {2**40}\r\n"
        writer.write(f"{head}Expect: 100-continue\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.readuntil(b"}"), 20)
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nConnection: close\r\n" in answer


async def test_the_metrics_page_has_keys_of_its_own(keys: str) -> None:
    settings = HttpSettings(address="127.0.0.1", metrics_port=0, metrics_auth_file=keys)
    frontend = MetricsFrontend(FakeServer(), settings)
    await frontend.start()
    try:
        assert (await ask(frontend.port, "GET", "/metrics"))[0] == 401
        assert (await ask(frontend.port, "GET", "/none"))[0] == 401
        assert (await ask(frontend.port, "GET", "/metrics", BEARER))[0] == 200
    finally:
        await frontend.stop(5)


async def test_a_file_without_keys_stops_the_front_end(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    with pytest.raises(InvalidArgument, match="--http-auth-file: cannot read"):
        HttpFrontend(FakeServer(), HttpSettings(auth_file=absent))
    with pytest.raises(InvalidArgument, match="--metrics-auth-file: cannot read"):
        MetricsFrontend(FakeServer(), HttpSettings(metrics_auth_file=absent))
    off = HttpSettings(
        allow_http=False, allow_metrics=False, auth_file=absent, metrics_auth_file=absent
    )
    HttpFrontend(FakeServer(), off)
    MetricsFrontend(FakeServer(), off)


READABLE = {
    "Access-Control-Expose-Headers": "Inference-Header-Content-Length, Retry-After",
}


@pytest.mark.parametrize(
    ("origins", "origin", "added"),
    [
        (["*"], None, {}),
        (["*"], PAGE, {"Access-Control-Allow-Origin": "*", **READABLE}),
        ([PAGE], None, {"Vary": "Origin"}),
        ([PAGE], "https://page.example.evil", {"Vary": "Origin"}),
        ([PAGE], "http://page.example", {"Vary": "Origin"}),
        ([PAGE], "null", {"Vary": "Origin"}),
        (
            ["http://a:1", "HTTPS://Page.example"],
            PAGE,
            {"Vary": "Origin", "Access-Control-Allow-Origin": PAGE, **READABLE},
        ),
    ],
)
def test_what_is_added_for_a_page(
    origins: list[str], origin: str | None, added: dict[str, str]
) -> None:
    assert Cors(origins).headers(origin) == added


@pytest.mark.parametrize(
    "origin",
    [
        *("", "null", "page.example", "https://page.example/", "https://a/b", "https://a b"),
        "https://*.page.example",
    ],
)
async def test_what_is_no_origin_stops_the_front_end(origin: str) -> None:
    with pytest.raises(InvalidArgument, match="--http-cors-origin must be '\\*' or an origin"):
        HttpFrontend(FakeServer(), HttpSettings(cors_origin=(origin,)))


@pytest.mark.parametrize(
    ("headers", "status", "methods", "allowed"),
    [
        ({"Origin": PAGE, "Access-Control-Request-Method": "POST"}, 204, "GET, POST", None),
        (
            {
                "Origin": PAGE,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type",
            },
            204,
            "GET, POST",
            "authorization,content-type",
        ),
        ({"Origin": PAGE}, 401, None, None),
        ({"Access-Control-Request-Method": "POST"}, 401, None, None),
        (
            {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
            401,
            None,
            None,
        ),
    ],
)
async def test_a_browser_asks_before_it_sends_and_needs_no_key_for_that(
    http_serving: Serving,
    keys: str,
    headers: dict[str, str],
    status: int,
    methods: str | None,
    allowed: str | None,
) -> None:
    async with http_serving(cors_origin=(PAGE,), auth_file=keys) as frontend:
        found, given, body = await ask(frontend.port, "OPTIONS", INFER, headers)
    assert found == status
    assert given.get("Access-Control-Allow-Methods") == methods
    assert given.get("Access-Control-Allow-Headers") == allowed
    assert given["Vary"] == "Origin"
    if status == 204:
        assert (body, given["Access-Control-Allow-Origin"]) == (b"", PAGE)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v2", None, 200),
        (INFER, BODY % b"", 200),
        (INFER, b"{", 500),
        ("/none", None, 404),
        ("/v2/models/absent/generate_stream", b"{}", 404),
        ("/v2/health/ready", None, 503),
    ],
)
async def test_a_page_may_read_every_answer(
    server: FakeServer, http_serving: Serving, path: str, body: bytes | None, status: int
) -> None:
    if status == 503:
        server.failure = Unavailable("Server exiting")
    method = "GET" if body is None else "POST"
    async with http_serving(cors_origin=("*",)) as frontend:
        found, given, _ = await ask(frontend.port, method, path, {"Origin": PAGE}, body)
    assert (found, given["Access-Control-Allow-Origin"]) == (status, "*")


async def test_pages_are_told_nothing_unless_asked_for(http_serving: Serving) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    async with http_serving() as frontend:
        status, given, _ = await ask(frontend.port, "OPTIONS", "/v2", asked)
    assert status == 405
    assert not [name for name in given if name.startswith("Access-Control") or name == "Vary"]


async def logged(http_serving: Serving, *requests: tuple[Any, ...]) -> list[dict[str, Any]]:
    with capture_logs() as lines:
        async with http_serving(access_log=True) as frontend:
            for request in requests:
                await ask(frontend.port, *request)
    return [dict(line) for line in lines if line["event"] in ("answered", "cut short")]


async def test_a_line_for_each_request(http_serving: Serving) -> None:
    body = BODY % b"seven"
    line, health, wrong, refused = await logged(
        http_serving,
        ("POST", INFER + "?secret=1", {}, body),
        ("GET", "/v2/health/live"),
        ("POST", INFER, {}, b"{"),
        ("GET", "/none"),
    )
    assert line.pop("ms") > 0
    assert line.pop("sent") > len("OUTPUT0")
    assert line == {
        "event": "answered",
        "log_level": "info",
        "method": "POST",
        "path": INFER,
        "status": 200,
        "received": len(body),
        "client": "127.0.0.1",
        "id": "seven",
        "model": "identity",
        "trace_id": "",
    }
    assert (health["status"], health["received"]) == (200, 0)
    assert (wrong["status"], wrong["id"], wrong["model"]) == (500, "", "identity")
    assert (refused["status"], refused["path"], refused["model"]) == (404, "/none", "")


async def test_a_line_names_the_trace_of_its_request(
    server: FakeServer, http_serving: Serving
) -> None:
    server.traced = True
    (line,) = await logged(http_serving, ("POST", INFER, {}, BODY % b""))
    assert line["trace_id"] == server.traces[0].shown_id == "1"


@pytest.mark.parametrize("traced", [False, True])
async def test_a_line_for_a_stream_whose_client_leaves(
    server: FakeServer, http_serving: Serving, traced: bool
) -> None:
    left = asyncio.Event()

    async def endless(config: ModelConfig, request: InferRequest) -> AsyncIterator[InferResponse]:
        yield InferResponse("stream", 1, "", (), final=False)
        await left.wait()
        yield InferResponse("stream", 1, "", (), final=True)

    server.traced, server.models["stream"].responses = traced, endless
    with capture_logs() as lines:
        async with http_serving(access_log=True) as frontend:
            reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
            writer.write(
                b"POST /v2/models/stream/generate_stream HTTP/1.1\r\nHost: x\r\n"
                b'Content-Length: 13\r\n\r\n{"id":"mine"}'
            )
            await asyncio.wait_for(reader.readuntil(b"data: "), 20)
            writer.transport.abort()
            await writer.wait_closed()
    (line,) = [line for line in lines if line["event"] in ("answered", "cut short")]
    assert line["event"] == "cut short"
    assert (line["status"], line["id"], line["model"]) == (200, "mine", "stream")
    assert line["sent"] > len("data: ")
    assert line["trace_id"] == ("1" if traced else "")


async def test_a_clients_text_does_not_control_the_terminal(http_serving: Serving) -> None:
    escaped, long, wide = await logged(
        http_serving,
        ("POST", INFER, {}, BODY % rb"a\u001b[31m\nlevel=error"),
        ("GET", "/" + "x" * 5000),
        ("GET", "/%0a"),
    )
    assert escaped["id"] == "a\\x1b[31m\\nlevel=error"
    assert long["path"] == "/" + "x" * 255
    assert wide["path"] == "/%0a"


async def test_bytes_of_a_path_that_are_no_text_can_be_logged(http_serving: Serving) -> None:
    with capture_logs() as lines:
        async with http_serving(access_log=True) as frontend:
            reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
            writer.write(b"GET /v2/models/\xff\xfe/config HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b"}"), 20)
            writer.close()
            await writer.wait_closed()
    (line,) = [line for line in lines if line["event"] == "answered"]
    line["path"].encode("ascii")


async def test_no_line_unless_asked_for(http_serving: Serving) -> None:
    with capture_logs() as lines:
        async with http_serving() as frontend:
            await ask(frontend.port, "GET", "/v2")
    assert lines == []
