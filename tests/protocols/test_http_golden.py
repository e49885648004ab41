"""Recorded answers of the real server, as far as a front end alone decides them: the models are
canned, so what lies behind the port is not replayed here."""

import asyncio
import base64
import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from microkernel.testing import FakeServer

pytest.importorskip("aiohttp", reason="the extra 'http' is missing")

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "http.jsonl"
HEADERS = ("content-type", "inference-header-content-length")
NEWER_BEHAVIOUR = (
    b"not gzip at all",  # corrupt data is an error now
    b'"shape": [1, 3], "data": [1, 2]}',  # too few elements have a message of their own now
    b'[{"name": "OUTPUT0"}, {"name": "OUTPUT0"}]',  # a repeated output is refused now
)
BEHIND_THE_PORT = (
    *("[request id: <id_unknown>]", "unexpected inference", "incomplete string data"),
    *('"state":"UNLOADING"', '"model_stats"'),  # these depend on the moment
)
NOT_REPLAYED = (
    "/config",  # the kernel completes it
    "/trace",  # the kernel keeps the settings
)


def _is_ours(pair: dict[str, Any]) -> bool:
    request, body = pair["request"], base64.b64decode(pair["request"]["body"])
    answer = base64.b64decode(pair["answer"]["body"]).decode("utf-8", "replace")
    if any(text in answer for text in BEHIND_THE_PORT) and "Raw request" not in answer:
        return False
    if any(text in body for text in NEWER_BEHAVIOUR):
        return False
    return not any(part in request["path"] for part in NOT_REPLAYED)


def _recorded() -> list[dict[str, Any]]:
    if not GOLDEN.exists():
        return []
    lines = GOLDEN.read_text().splitlines()
    return [pair for pair in map(json.loads, lines) if _is_ours(pair)]


RECORDED = _recorded()


def _ask(port: int, request: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = base64.b64decode(request["body"])
    connection.request(request["method"], request["path"], body=body, headers=request["headers"])
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    headers = {k.lower(): v for k, v in answer.getheaders() if k.lower() in HEADERS}
    return {"status": answer.status, "headers": headers, "content": content}


def _comparable(status: int, headers: dict[str, str], content: bytes) -> tuple[object, ...]:
    length = int(headers.get("inference-header-content-length", len(content)))
    head = content[:length]
    try:
        text = repr(json.loads(head))  # by value: NaN equals NaN, and so do spellings of a number
    except ValueError:
        text = repr(head)
    sized = "inference-header-content-length" in headers
    return status, headers.get("content-type"), sized, text, content[length:]


@pytest.mark.skipif(not RECORDED, reason="the recorded conversation is not beside the repository")
async def test_answers_as_the_real_server_does(server: FakeServer, http_port: int) -> None:
    del server.models["stream"]
    server.models["addsub"].labels = {"SUM": ("north", "east", "south", "west")}
    differences = []
    for pair in RECORDED:
        real, request = pair["answer"], pair["request"]
        here = await asyncio.to_thread(_ask, http_port, request)
        expected = _comparable(real["status"], real["headers"], base64.b64decode(real["body"]))
        found = _comparable(here["status"], here["headers"], here["content"])
        if found != expected:
            differences.append(f"{request['method']} {request['path']}: {found} != {expected}")
    assert len(RECORDED) > 110
    assert differences == []
