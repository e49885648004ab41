"""Headers as parameters of a request."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from microkernel import InferRequest, InvalidArgument
from microkernel.testing import FakeServer
from microkernel_http.forwarding import Forwarding

pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")

from microkernel_http.frontend import HttpFrontend  # noqa: E402 - after the check above
from microkernel_http.settings import HttpSettings  # noqa: E402

HEADERS = [(b"X-Tenant", b"blue"), (b"x-note", b"caf\xc3\xa9"), (b"Accept", b"\xe9")]


@pytest.mark.parametrize(
    ("pattern", "forwarded"),
    [
        ("", {}),
        ("tenant", {"X-Tenant": "blue"}),
        ("^x-", {"X-Tenant": "blue", "x-note": "caf\u00e9"}),
        ("(?-i)^x-", {"x-note": "caf\u00e9"}),
        ("(?-i)tenant", {}),
        ("(?-i)", {"X-Tenant": "blue", "x-note": "caf\u00e9", "Accept": "\u00e9"}),
        ("ACCEPT", {"Accept": "\u00e9"}),
        ("^tenant", {}),
    ],
)
def test_which_headers_become_parameters(pattern: str, forwarded: dict[str, str]) -> None:
    request = InferRequest("m", (), parameters={"mine": 1})
    found = Forwarding(pattern).onto(request, HEADERS)
    assert found.parameters == {"mine": 1, **forwarded}
    assert request.parameters == {"mine": 1}


def test_a_header_wins_over_a_parameter_of_its_name() -> None:
    request = InferRequest("m", (), parameters={"X-Tenant": "forged", "x-tenant": "other"})
    found = Forwarding("tenant").onto(request, HEADERS)
    assert found.parameters == {"X-Tenant": "blue", "x-tenant": "other"}


@pytest.mark.parametrize(
    "name",
    [
        *("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers"),
        *("binary_data_output", "triton_anything"),
    ],
)
def test_reserved_names_cannot_be_forwarded(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Forwarding(".").onto(InferRequest("m", ()), [(name.encode(), b"1")])
    text = "is reserved for Triton usage and cannot be forwarded"
    assert str(caught.value) == f"header name '{name}' {text}"


def test_a_reserved_name_that_does_not_match_is_no_fault() -> None:
    request = InferRequest("m", ())
    assert Forwarding("x").onto(request, [(b"priority", b"u=1")]) is request


@pytest.mark.parametrize("pattern", ["(", "(?-i)*"])
async def test_a_wrong_pattern_stops_the_front_end(server: FakeServer, pattern: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        HttpFrontend(server, HttpSettings(header_forward_pattern=pattern))
    start = f"--http-header-forward-pattern must be a regular expression, got '{pattern}': "
    assert str(caught.value).startswith(start)


@pytest.fixture
async def forwarding_port(server: FakeServer) -> AsyncIterator[int]:
    settings = HttpSettings(address="127.0.0.1", port=0, header_forward_pattern="tenant|priority")
    frontend = HttpFrontend(server, settings)
    await frontend.start()
    yield frontend.port
    await frontend.stop(5)


def infer(port: int, headers: dict[str, str]) -> Any:
    tensor = client.InferInput("INPUT0", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
    with client.InferenceServerClient(f"127.0.0.1:{port}") as connected:
        return connected.infer("identity", [tensor], headers=headers)


async def test_a_model_sees_the_headers(server: FakeServer, forwarding_port: int) -> None:
    await asyncio.to_thread(infer, forwarding_port, {"X-Tenant": "blue", "Other": "no"})
    assert server.requests[0].parameters == {"X-Tenant": "blue"}


async def test_a_reserved_header_fails_the_call(server: FakeServer, forwarding_port: int) -> None:
    with pytest.raises(client.InferenceServerException, match="cannot be forwarded") as caught:
        await asyncio.to_thread(infer, forwarding_port, {"priority": "1"})
    assert caught.value.status() == "400"
    assert server.requests == []
