"""Large JSON does not keep the loop from other clients."""

import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

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

    monkeypatch.setattr("microkernel_http.infer.decode", watched)
    async with http_serving() as frontend, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{frontend.port}/v2/models/identity/infer"
        for body, status in ((BODY, 200), (BODY[:-1], 500)):
            async with session.post(url, data=b" " * spaces + body) as answer:
                assert answer.status == status
    assert [thread is not threading.main_thread() for thread in threads] == [elsewhere] * 2
    assert len(set(threads)) == 1
