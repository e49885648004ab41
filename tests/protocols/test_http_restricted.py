"""Endpoints that answer only to requests with a certain header."""

import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import InvalidArgument
from microkernel.testing import FakeServer
from microkernel_http.restricted import GROUPS, Restriction, restrictions
from microkernel_http.routes import Endpoint

aiohttp = pytest.importorskip("aiohttp", reason="the extra 'http' is missing")

from microkernel_http.frontend import HttpFrontend  # noqa: E402 - after the check above
from microkernel_http.settings import HttpSettings  # noqa: E402


def test_every_endpoint_is_in_one_group() -> None:
    grouped = [endpoint for group in GROUPS.values() for endpoint in group]
    assert sorted(e.name for e in grouped) == sorted(e.name for e in Endpoint)


def test_restrictions_by_endpoint() -> None:
    first, second = Restriction("key", "a=b:c"), Restriction("X-Other", "2")
    found = restrictions(["logging, model-config:key=a=b:c", "statistics:X-Other=2"])
    assert found == {
        Endpoint.LOGGING: first,
        Endpoint.MODEL_CONFIG: first,
        Endpoint.STATISTICS: second,
    }
    assert restrictions([]) == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["health"], "must look like '<API>,<API>:<header>=<value>', got 'health'"),
        ([""], "must look like "),
        ([":a=b"], "must look like "),
        (["health:a"], "must look like "),
        (["health:=secret"], "must look like '<API>,<API>:<header>=<value>', got 'health:=...'"),
        (["health:a="], "must look like "),
        (["health,none:a=b"], "unknown API 'none'; there are health, metadata, inference, "),
        (["health,:a=b"], "unknown API ''; there are "),
        (["health,health:a=b"], "API 'health' is restricted twice"),
        (["health:a=b", "health:a=b"], "API 'health' is restricted twice"),
    ],
)
async def test_values_that_stop_the_front_end(
    server: FakeServer, values: list[str], message: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        HttpFrontend(server, HttpSettings(restricted_api=tuple(values)))
    assert str(caught.value).startswith("--http-restricted-api")
    assert message in str(caught.value)


@given(st.lists(st.text(alphabet="health,:=a "), max_size=3))
def test_any_value_is_read_or_refused_with_an_error_of_ours(values: list[str]) -> None:
    with contextlib.suppress(InvalidArgument):
        restrictions(values)


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ({}, False),
        ({"key": "secret"}, True),
        ({"key": "Secret"}, False),
        ({"key": ""}, False),
        ({"key": "secret\udce9"}, False),
        ({"other": "secret"}, False),
    ],
)
def test_who_is_admitted(headers: dict[str, str], admitted: bool) -> None:
    assert Restriction("key", "secret").admits(headers) is admitted


@pytest.fixture
async def restricted_port(server: FakeServer) -> AsyncIterator[int]:
    restricted = ("health,inference,shared-memory:X-Key=secret", "model-repository:admin=1")
    settings = HttpSettings(address="127.0.0.1", port=0, restricted_api=restricted)
    frontend = HttpFrontend(server, settings)
    await frontend.start()
    yield frontend.port
    await frontend.stop(5)


@pytest.mark.parametrize(
    ("method", "path", "header", "admitted"),
    [
        ("GET", "/v2/health/live", "X-Key", 200),
        ("GET", "/v2/models/identity/ready", "X-Key", 200),
        ("POST", "/v2/models/identity/infer", "X-Key", 200),
        ("POST", "/v2/models/identity/generate", "X-Key", 400),
        ("POST", "/v2/models/identity/generate_stream", "X-Key", 400),
        ("GET", "/v2/models/identity/infer", "X-Key", 405),
        ("GET", "/v2/cudasharedmemory/status", "X-Key", 200),
        ("POST", "/v2/systemsharedmemory/unregister", "X-Key", 501),
        ("POST", "/v2/repository/index", "admin", 200),
        ("POST", "/v2/repository/models/absent/load", "admin", 500),
        ("POST", "/v2/repository/models/absent/unload", "admin", 200),
    ],
)
async def test_restricted_endpoints(
    restricted_port: int, method: str, path: str, header: str, admitted: int
) -> None:
    url = f"http://127.0.0.1:{restricted_port}{path}"
    for value in (None, "wrong"):
        headers = {} if value is None else {header: value}
        async with aiohttp.request(method, url, headers=headers) as answer:
            refusal = f"This API is restricted, expecting header '{header}'"
            assert answer.status == 403
            assert await answer.json(content_type=None) == {"error": refusal}
    right = "secret" if header == "X-Key" else "1"
    entry = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [1]}
    body = {"inputs": [entry], "INPUT0": []} if method == "POST" else None
    async with aiohttp.request(method, url, json=body, headers={header.lower(): right}) as answer:
        assert answer.status == admitted


async def test_other_endpoints_stay_open(restricted_port: int) -> None:
    for path in ("/v2", "/v2/models/stats", "/v2/logging", "/v2/models/identity"):
        async with aiohttp.request("GET", f"http://127.0.0.1:{restricted_port}{path}") as answer:
            assert answer.status == 200
