"""Ordinary answers, which are written past aiohttp, look like those that it writes."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="the extra 'http' is missing")

from aiohttp import web

Serving = Callable[..., AbstractAsyncContextManager[Any]]

JSON_BODY = b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'
BINARY_HEAD = (
    b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,2],'
    b'"parameters":{"binary_data_size":8}}],"parameters":{"binary_data_output":true}}'
)
INFER = "POST /v2/models/identity/infer"
REQUESTS = {
    "live": ("GET /v2/health/live", [], b""),
    "model": ("GET /v2/models/identity/ready", [], b""),
    "json": (INFER, [], JSON_BODY),
    "binary": (
        INFER,
        [f"Inference-Header-Content-Length: {len(BINARY_HEAD)}"],
        BINARY_HEAD + b"\0\0\0@\0\0\0@",
    ),
}


def packed(name: str, *headers: str, version: str = "1.1") -> bytes:
    line, own, body = REQUESTS[name]
    lines = [f"{line} HTTP/{version}", "Host: x", *own, *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def conversation(port: int, data: bytes, answers: int = 1) -> list[tuple[str, bytes]]:
    """The answers to what is sent at once, each as its head and its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return [await asyncio.wait_for(_answer(reader), 20) for _ in range(answers)]
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    return head, await reader.readexactly(int(parts(head)[1]["content-length"]))


def parts(head: str) -> tuple[str, dict[str, str]]:
    """The status, and the headers by their names in lower case."""
    line, *lines = head.strip().split("\r\n")
    headers = [line.split(": ", 1) for line in lines]
    assert len({name.lower() for name, _ in headers}) == len(headers)
    return line.partition(" ")[2], {name.lower(): value for name, value in headers}


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[web.StreamResponse]:
    """The answers that aiohttp wrote."""
    seen = []
    prepare = web.StreamResponse.prepare

    async def watched(answer: web.StreamResponse, request: web.BaseRequest) -> Any:
        seen.append(answer)
        return await prepare(answer, request)

    monkeypatch.setattr(web.StreamResponse, "prepare", watched)
    return seen


@pytest.mark.parametrize("name", REQUESTS)
async def test_both_ways_say_the_same(
    http_port: int, prepared: list[web.StreamResponse], name: str
) -> None:
    ((head, body),) = await conversation(http_port, packed(name))
    assert not prepared
    ((other_head, other_body),) = await conversation(http_port, packed(name, "Connection: close"))
    assert len(prepared) == 1
    (status, headers), (other_status, other_headers) = parts(head), parts(other_head)
    dates = [parsedate_to_datetime(found.pop("date")) for found in (headers, other_headers)]
    assert dates == sorted(dates)
    assert other_headers.pop("connection") == "close"
    assert (status, headers, body) == (other_status, other_headers, other_body)
    assert status == "200 OK"


@pytest.mark.parametrize("name", REQUESTS)
async def test_an_old_client_is_answered_by_aiohttp(
    http_port: int, prepared: list[web.StreamResponse], name: str
) -> None:
    data = packed(name, "Connection: keep-alive", version="1.0")
    ((head, _),) = await conversation(http_port, data)
    assert parts(head)[1]["connection"] == "keep-alive"
    assert head.startswith("HTTP/1.0 200 OK")
    assert len(prepared) == 1


async def test_pages_of_other_origins_are_told_that_they_may_read(http_serving: Serving) -> None:
    async with http_serving(cors_origin=("http://a.example",)) as frontend:
        data = packed("live", "Origin: http://a.example")
        ((head, _),) = await conversation(frontend.port, data)
    assert parts(head)[1]["access-control-allow-origin"] == "http://a.example"


async def test_answers_come_in_the_order_of_the_requests(http_port: int) -> None:
    names = ["binary", "live", "json", "live", "binary", "json"]
    data = b"".join(packed(name) for name in names)
    found = await conversation(http_port, data, answers=len(names))
    by_name = {name: body for name, (_, body) in zip(names, found, strict=True)}
    assert [body for _, body in found] == [by_name[name] for name in names]
    assert by_name["live"] == b""
    assert by_name["binary"].endswith(b"\0\0\0@\0\0\0@")


async def test_the_connection_goes_on_after_a_body_that_nobody_reads(http_port: int) -> None:
    unread = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    found = await conversation(http_port, unread + packed("json"), answers=2)
    assert [parts(head)[0] for head, _ in found] == ["200 OK", "200 OK"]


async def test_a_client_that_was_to_be_asked_for_its_body_is_told_of_the_end(
    http_port: int, prepared: list[web.StreamResponse]
) -> None:
    expecting = (
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
        b"Expect: 100-continue\r\n\r\n"
    )
    ((head, _),) = await conversation(http_port, expecting)
    assert parts(head)[1]["connection"] == "close"
    assert len(prepared) == 1
