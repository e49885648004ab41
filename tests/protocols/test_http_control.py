"""Loading and unloading, the log and shared memory: the bodies, and the routes."""

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import (
    Internal,
    InvalidArgument,
    LogChanges,
    MicrokernelError,
    Unavailable,
    Unsupported,
)
from microkernel.testing import FakeServer
from microkernel_http.control_bodies import (
    LoadRequest,
    load_request,
    log_changes,
    only_ready,
    unload_dependents,
)

aiohttp = pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")

CONFIG = '{"backend": "python", "max_batch_size": 2}'


def parameters(**given: object) -> bytes:
    return json.dumps({"parameters": given}).encode()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", LoadRequest(None, {})),
        (b"{}", LoadRequest(None, {})),
        (b'{"parameters": {}}', LoadRequest(None, {})),
        (parameters(config="{}"), LoadRequest("{}", {})),
        (
            parameters(**{"config": "{}", "file:1/model.py": "AAEC", "file:a": ""}),
            LoadRequest("{}", {"1/model.py": b"\0\1\2", "a": b""}),
        ),
        (parameters(**{"file:1/m": "AA=="}), LoadRequest(None, {"1/m": b"\0"})),
    ],
)
def test_load_requests(body: bytes, expected: LoadRequest) -> None:
    assert load_request(body) == expected


@pytest.mark.parametrize(
    ("read", "body", "error", "message"),
    [
        (load_request, b"{", Internal, "failed to parse the request JSON buffer: "),
        (load_request, parameters(other=1), Internal, "unrecognized load parameter 'other'"),
        (load_request, parameters(config=1), Internal, "Unable to parse 'config': attempt to acc"),
        (load_request, parameters(**{"file:1/m": 1}), Internal, "Unable to parse 'file:1/m': att"),
        (
            *(load_request, parameters(**{"file:1/m": "A"})),
            *(InvalidArgument, "parameter 'file:1/m' must be valid base64: "),
        ),
        (load_request, parameters(**{"file:1/m": "\u00e9"}), InvalidArgument, "parameter 'file:1"),
        (load_request, b'{"parameters": 1}', Internal, "Unable to parse 'parameters': attempt to"),
        (
            *(unload_dependents, parameters(unload_dependents=1)),
            *(Internal, "Unable to parse 'unload_dependents': attempt to access JSON non-boolean"),
        ),
        (log_changes, b"", Internal, "failed to parse the request JSON buffer: The document is em"),
        (
            *(log_changes, b'{"log_file": "x", "log_info": 1}'),
            *(Unsupported, "log file location can not be updated through network protocol"),
        ),
        (
            *(log_changes, b'{"log_info": 1}'),
            *(Internal, "attempt to access JSON non-boolean as boolean"),
        ),
        (
            *(log_changes, b'{"log_verbose_level": -1}'),
            *(Internal, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        ),
        (
            *(log_changes, b'{"log_verbose_level": true}'),
            *(Internal, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        ),
        (
            *(log_changes, b'{"log_format": 1}'),
            *(Internal, "attempt to access JSON non-string as string"),
        ),
    ],
)
def test_bad_bodies(
    read: Callable[[bytes], object], body: bytes, error: type[MicrokernelError], message: str
) -> None:
    with pytest.raises(error) as caught:
        read(body)
    assert type(caught.value) is error
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", False),
        (b"[]", False),
        (parameters(), False),
        (parameters(unload_dependents=False), False),
        (parameters(unload_dependents=True, other=1), True),
    ],
)
def test_whether_dependents_are_unloaded(body: bytes, expected: bool) -> None:
    assert unload_dependents(body) is expected


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, LogChanges()),
        ([], LogChanges()),
        ({"other": 1, "log_info": None, "log_file": None}, LogChanges()),
        (
            {"log_info": False, "log_warning": True, "log_error": False},
            LogChanges(log_info=False, log_warning=True, log_error=False),
        ),
        (
            {"log_verbose_level": 3, "log_format": "ISO8601"},
            LogChanges(log_verbose_level=3, log_format="ISO8601"),
        ),
    ],
)
def test_changes_of_the_log(document: object, expected: LogChanges) -> None:
    assert log_changes(json.dumps(document).encode()) == expected


_values = st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4)
_keys = st.sampled_from(
    ["parameters", "config", "file:a", "ready", "unload_dependents", "log_info", "log_format"]
)
_documents = st.recursive(
    _values, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_keys, inner, max_size=3)
)


@given(_documents.map(lambda document: json.dumps(document).encode()) | st.binary(max_size=20))
def test_any_body_is_read_or_refused_with_an_error_of_ours(body: bytes) -> None:
    for read in (load_request, unload_dependents, log_changes, only_ready):
        with contextlib.suppress(MicrokernelError):
            read(body)


def with_client(port: int, use: Callable[[Any], Any]) -> Any:
    with client.InferenceServerClient(f"127.0.0.1:{port}") as connected:
        return use(connected)


async def test_the_official_client_loads_and_unloads(server: FakeServer, http_port: int) -> None:
    large = bytes(range(256)) * 2000
    files = {"file:1/model.py": b"\0\xff", "file:2/large": large}

    def use(c: Any) -> None:
        c.unload_model("addsub", unload_dependents=True)
        assert not c.is_model_ready("addsub")
        c.load_model("addsub")
        assert c.is_model_ready("addsub")
        c.load_model("strings", config=CONFIG, files=files)
        assert c.get_model_config("strings")["max_batch_size"] == 2
        c.unload_model("absent")

    await asyncio.to_thread(with_client, http_port, use)
    assert server.unloads == [("addsub", True), ("absent", False)]
    assert server.loads == [
        ("addsub", None, {}),
        ("strings", CONFIG, {"1/model.py": b"\0\xff", "2/large": large}),
    ]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("absent", None, "[500] failed to load 'absent', failed to poll from model repository"),
        ("addsub", "{", "[500] failed to load 'addsub', failed to poll from model repository"),
        ("..", None, "[400] model name must not contain path traversal characters"),
    ],
)
async def test_loads_that_fail(http_port: int, name: str, config: str | None, message: str) -> None:
    def use(c: Any) -> None:
        c.load_model(name, config=config)

    with pytest.raises(client.InferenceServerException) as caught:
        await asyncio.to_thread(with_client, http_port, use)
    assert str(caught.value) == message


async def test_the_official_client_reads_and_changes_the_log(
    server: FakeServer, http_port: int
) -> None:
    def use(c: Any) -> list[Any]:
        return [
            c.get_log_settings(),
            c.update_log_settings({"log_verbose_level": 2, "log_info": False}),
            c.get_log_settings(),
        ]

    before, changed, after = await asyncio.to_thread(with_client, http_port, use)
    assert before == {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }
    assert changed == after == {**before, "log_verbose_level": 2, "log_info": False}


async def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, str, bytes]:
    async with aiohttp.request(method, f"http://127.0.0.1:{port}{path}", data=body) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.read()


async def test_a_wrong_format_of_the_log_is_unavailable_over_http(http_port: int) -> None:
    status, _, body = await ask(http_port, "POST", "/v2/logging", b'{"log_format": "x"}')
    assert status == 503
    assert json.loads(body)["error"].startswith("invalid argument for log_format: 'x'")


async def test_a_level_of_the_log_that_grpc_cannot_tell_is_refused(
    server: FakeServer, http_port: int
) -> None:
    body = b'{"log_verbose_level": 4294967296}'
    status, _, answer = await ask(http_port, "POST", "/v2/logging", body)
    assert status == 503
    assert "log_verbose_level: '4294967296', must be from 0" in json.loads(answer)["error"]
    assert server.log.settings.log_verbose_level == 0


@pytest.mark.parametrize("path", ["load", "unload"])
async def test_loading_in_another_control_mode(
    server: FakeServer, http_port: int, path: str
) -> None:
    text = "explicit model load / unload is not allowed if polling is enabled"
    server.failure = Unavailable(text)
    found = await ask(http_port, "POST", f"/v2/repository/models/addsub/{path}")
    assert found == (
        503,
        "application/json",
        json.dumps({"error": text}, separators=(",", ":")).encode(),
    )


@pytest.mark.parametrize("path", ["load", "unload"])
async def test_a_repository_cannot_be_named(server: FakeServer, http_port: int, path: str) -> None:
    found = await ask(http_port, "POST", f"/v2/repository/other/models/addsub/{path}", b"{")
    text = b'{"error":"\'repository_name\' specification is not supported"}'
    assert found == (501, "application/json", text)
    assert (server.loads, server.unloads) == ([], [])


async def test_a_load_answers_with_nothing_as_json(http_port: int) -> None:
    path = "/v2/repository/models/addsub/load"
    assert await ask(http_port, "POST", path) == (200, "application/json", b"")


@pytest.mark.parametrize("kind", ["system", "cuda"])
async def test_shared_memory_is_switched_off(http_port: int, kind: str) -> None:
    paths = ("region/r/register", "region/r/unregister", "unregister", "register")
    for path in paths:
        found = await ask(http_port, "POST", f"/v2/{kind}sharedmemory/{path}", b"{}")
        text = (
            b'{"error":"Client shared memory is disabled. Start the server with '
            b"'--allow-client-shm=true' to enable.\"}"
        )
        assert found == (501, "application/json", text)
    none = await ask(http_port, "GET", f"/v2/{kind}sharedmemory/status")
    assert none == (200, "application/json", b"[]")
    status, _, body = await ask(http_port, "GET", f"/v2/{kind}sharedmemory/region/r/status")
    error = f"Unable to find {kind} shared memory region: 'r'"
    assert (status, json.loads(body)) == (404, {"error": error})


def test_files_are_sent_as_the_official_client_encodes_them() -> None:
    encoded = base64.b64encode(b"\xfb\xff").decode()  # with + and /
    assert load_request(parameters(**{"file:x": encoded})).files == {"x": b"\xfb\xff"}
