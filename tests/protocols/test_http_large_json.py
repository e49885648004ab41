"""Large JSON does not keep the loop from other clients."""

import json
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import Any

import numpy as np
import pytest

aiohttp = pytest.importorskip("aiohttp", reason="the extra 'http' is missing")

from microkernel_http.body import LARGE  # noqa: E402 - after the check above
from microkernel_http.decode import decode  # noqa: E402

Serving = Callable[..., AbstractAsyncContextManager[Any]]

BODY = b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'


@pytest.mark.parametrize(("spaces", "elsewhere"), [(0, False), (LARGE, True)])
async def test_where_json_is_read(
    http_serving: Serving, monkeypatch: pytest.MonkeyPatch, spaces: int, elsewhere: bool
) -> None:
    threads = []

    def watched(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return decode(*arguments)

    for module in ("infer", "heads"):
        monkeypatch.setattr(f"microkernel_http.{module}.decode", watched)
    async with http_serving() as frontend, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{frontend.port}/v2/models/identity/infer"
        for body, status in ((BODY, 200), (BODY[:-1], 500)):
            async with session.post(url, data=b" " * spaces + body) as answer:
                assert answer.status == status
    assert [thread is not threading.main_thread() for thread in threads] == [elsewhere] * 2
    assert len(set(threads)) == 1


MANY = 1 + LARGE // 4
NUMBERS = b"".join(np.float32(1.5).tobytes() for _ in range(MANY))


@pytest.mark.parametrize(
    ("route", "form", "elsewhere"),
    [
        ("infer", "json", True),
        ("infer", "binary", False),
        ("infer", "events", True),
        ("generate", "json", True),
        ("generate_stream", "events", True),
    ],
)
async def test_where_an_answer_is_written(
    http_serving: Serving, monkeypatch: pytest.MonkeyPatch, route: str, form: str, elsewhere: bool
) -> None:
    threads = []
    module, name = ("infer", "encode") if route == "infer" else ("generation", "from_response")
    write = getattr(import_module(f"microkernel_http.{module}"), name)

    def watched(*arguments: Any) -> Any:
        threads.append(threading.current_thread() is not threading.main_thread())
        return write(*arguments)

    monkeypatch.setattr(f"microkernel_http.{module}.{name}", watched)
    headers = {"Accept": "text/event-stream"} if form == "events" else {}
    body = _asked(route, binary=form == "binary")
    async with http_serving() as frontend, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{frontend.port}/v2/models/identity/{route}"
        async with session.post(url, data=body, headers=headers) as answer:
            assert answer.status == 200
            told = await answer.read()
    assert told.endswith(NUMBERS) if form == "binary" else told.count(b"1.5") == MANY
    assert threads == [elsewhere]


def _asked(route: str, *, binary: bool) -> bytes:
    numbers = [1.5] * MANY
    if route != "infer":
        return json.dumps({"INPUT0": numbers}).encode()
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, MANY], "data": numbers}
    parameters = {"binary_data_output": binary}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
