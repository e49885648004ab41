"""What Google Vertex AI asks of a container."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from structlog.testing import capture_logs

from microkernel import InvalidArgument, Listening, Unavailable
from microkernel.testing import FakeServer
from microkernel_http.routes import Endpoint
from microkernel_http.vertex_ai.routes import FORBIDDEN, REDIRECT, redirected
from microkernel_http.vertex_ai.settings import Paths, VertexAiSettings, presets

pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")

from microkernel_http.vertex_ai.frontend import VertexAiFrontend  # noqa: E402

BINARY = "application/vnd.vertex-ai-triton.binary+json;json-header-size="
PATHS = {"AIP_HEALTH_ROUTE": "/healthy", "AIP_PREDICT_ROUTE": "/v1/predict"}
PREDICT = "/v1/predict"
INFER = {"inputs": [{"name": "INPUT0", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}

Serving: TypeAlias = Callable[..., Any]
"""Called with a server and settings, serves a front end."""


@pytest.fixture
def serving(http_site: Any) -> Serving:
    def make(server: FakeServer, **settings: Any) -> Any:
        given = {"allow_vertex_ai": True, "address": "127.0.0.1", "port": 0, **settings}
        return http_site(VertexAiFrontend(server, VertexAiSettings(**given), PATHS))

    return make


@pytest.fixture
async def site(server: FakeServer, serving: Serving) -> AsyncIterator[Any]:
    """One whose default model is `identity`."""
    async with serving(server, default_model="identity") as site:
        yield site


def made(server: FakeServer, default_model: str = "") -> VertexAiFrontend:
    settings = VertexAiSettings(
        allow_vertex_ai=True, address="127.0.0.1", port=0, default_model=default_model
    )
    return VertexAiFrontend(server, settings, PATHS)


async def test_where_it_listens(server: FakeServer) -> None:
    frontend = made(server, "identity")
    line = await frontend.start()
    assert line == f"Started Vertex AI HTTPService at 127.0.0.1:{frontend.port}"
    await frontend.stop(1)


async def test_switched_off_it_reads_no_environment_and_does_not_listen() -> None:
    frontend = VertexAiFrontend(FakeServer(), VertexAiSettings(), {})
    assert await frontend.start() is None
    assert VertexAiSettings().listening() == []
    await frontend.stop(1)


def test_what_it_says_it_listens_on() -> None:
    listening = VertexAiSettings(allow_vertex_ai=True, port=81).listening()
    assert listening == [Listening("--vertex-ai-port", "0.0.0.0", 81)]


@pytest.mark.parametrize("missing", sorted(PATHS))
def test_a_path_that_is_missing(missing: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{missing} is not defined for Vertex AI endpoint"):
        Paths.of({**PATHS, missing: ""})


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, {}),
        ({"AIP_MODE": "TRAINING", "AIP_HTTP_PORT": ""}, {}),
        (
            {"AIP_MODE": "PREDICTION"},
            {"--allow-vertex-ai": True, "--allow-http": False, "--allow-grpc": False},
        ),
        ({"AIP_HTTP_PORT": "81"}, {"--vertex-ai-port": 81}),
        ({"AIP_HTTP_PORT": "8x"}, {"--vertex-ai-port": "8x"}),  # refused with the settings
        ({"AIP_STORAGE_URI": "/models"}, {"--model-repository": ("/models",)}),
    ],
)
def test_presets(environment: Mapping[str, str], found: Mapping[str, Any]) -> None:
    assert presets(environment) == found


async def test_without_a_default_the_only_model_predicts(server: FakeServer) -> None:
    with pytest.raises(InvalidArgument, match="contains only a single model if default model"):
        await made(server).start()
    for name in server.models:
        server.models[name].ready = name == "identity"
    frontend = made(server)
    assert await frontend.start()
    await frontend.stop(1)
    server.models["identity"].ready = False
    with pytest.raises(InvalidArgument, match="contains only a single model if default model"):
        await made(server).start()


async def test_a_line_for_each_prediction(server: FakeServer, serving: Serving) -> None:
    server.traced = True
    with capture_logs() as lines:
        async with serving(server, default_model="identity", access_log=True) as site:
            await site.ask("POST", PREDICT, {**INFER, "id": "mine"})
            redirect = {REDIRECT: "v2/models/sum/config"}
            await site.ask("POST", PREDICT, b"", redirect)
    first, second = [line for line in lines if line["event"] == "answered"]
    assert [first[key] for key in ("id", "model", "trace_id")] == ["mine", "identity", "1"]
    assert [second[key] for key in ("id", "model", "trace_id")] == ["", "sum", ""]


async def test_a_default_that_is_not_loaded(server: FakeServer) -> None:
    with pytest.raises(InvalidArgument, match=r"Expect the default model 'absent' .* is loaded"):
        await made(server, "absent").start()


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 400)])
async def test_health(site: Any, server: FakeServer, ready: bool, status: int) -> None:
    server.is_ready = ready
    assert (await site.ask("GET", "/healthy"))[::2] == (status, b"")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/", "/v1/predict/", "/v2/health/ready", "/metrics"])
async def test_an_unknown_path_is_an_empty_400(site: Any, method: str, path: str) -> None:
    assert (await site.ask(method, path))[::2] == (400, b"")


@pytest.mark.parametrize("redirect", [{}, {REDIRECT: "v2"}])
async def test_methods(site: Any, redirect: Mapping[str, str]) -> None:
    status, headers, _ = await site.ask("GET", PREDICT, headers=redirect)
    assert (status, headers["Allow"]) == (405, "POST")
    status, headers, _ = await site.ask("POST", "/healthy")
    assert (status, headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize("headers", [{}, {REDIRECT: "v2/models/identity/versions/1/infer"}])
async def test_a_prediction_with_raw_bytes(site: Any, headers: Mapping[str, str]) -> None:
    given = client.InferInput("INPUT0", [1, 3], "FP32")
    given.set_data_from_numpy(np.array([[1, 2, 3]], np.float32))
    body, size = client.InferenceServerClient.generate_request_body([given])
    headers = {"Content-Type": f"{BINARY}{size}", **headers}
    status, found, answer = await site.ask("POST", PREDICT, body, headers)
    assert status == 200
    length = int(found["Content-Type"].removeprefix(BINARY))
    result = client.InferenceServerClient.parse_response_body(answer, header_length=length)
    assert result.as_numpy("OUTPUT0").tolist() == [[1, 2, 3]]


async def test_a_prediction_in_json(site: Any) -> None:
    status, headers, body = await site.ask("POST", PREDICT, INFER)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    result = client.InferenceServerClient.parse_response_body(body)
    assert result.as_numpy("OUTPUT0").tolist() == [[1, 2]]


async def test_errors_have_the_statuses_of_v2(site: Any, server: FakeServer) -> None:
    assert await site.status("POST", PREDICT, b"{") == 500
    assert await site.status("POST", PREDICT, b"x", **{"Content-Encoding": "br"}) == 501
    server.failure = Unavailable("Exceeds maximum queue size")
    assert await site.status("POST", PREDICT, INFER) == 503


@pytest.mark.parametrize(
    ("target", "endpoint"),
    [
        ("v2", Endpoint.SERVER_METADATA),
        ("v2/health/live", Endpoint.LIVE),
        ("v2/health/ready", Endpoint.READY),
        ("v2/models/identity", Endpoint.MODEL_METADATA),
        ("v2/models/identity/ready", Endpoint.MODEL_READY),
        ("v2/models/identity/config", Endpoint.MODEL_CONFIG),
        ("v2/models/identity/versions/1/stats", Endpoint.STATISTICS),
        ("v2/models/stats", Endpoint.STATISTICS),
        ("v2/repository/index", Endpoint.REPOSITORY_INDEX),
        ("v2/systemsharedmemory/status", Endpoint.REGION_STATUS),
        ("v2/cudasharedmemory/status", Endpoint.REGION_STATUS),
    ],
)
async def test_redirects(site: Any, target: str, endpoint: Endpoint) -> None:
    route = redirected(target, allowed=True)
    assert route is not None
    assert route.endpoint is endpoint
    assert await site.status("POST", PREDICT, **{REDIRECT: target}) == 200


async def test_a_redirect_answers_as_v2_does(site: Any) -> None:
    body = (await site.ask("POST", PREDICT, headers={REDIRECT: "v2/models/addsub"}))[2]
    assert [tensor["name"] for tensor in json.loads(body)["inputs"]] == ["A", "B"]
    answer = await site.ask("POST", PREDICT, headers={REDIRECT: "v2/models/absent"})
    assert answer[0] == 404


@pytest.mark.parametrize(
    "target",
    [
        "v2/repository/models/identity/load",
        "v2/repository/models/identity/unload",
        "v2/systemsharedmemory/region/r/register",
        "v2/systemsharedmemory/unregister",
        "v2/cudasharedmemory/region/r/register",
        "v2/cudasharedmemory/region/r/unregister",
    ],
)
async def test_a_prediction_changes_nothing(site: Any, server: FakeServer, target: str) -> None:
    route = redirected(target, allowed=True)
    assert route is not None
    assert route.endpoint in FORBIDDEN
    assert await site.status("POST", PREDICT, b"{}", **{REDIRECT: target}) == 403
    assert (server.loads, server.unloads) == ([], [])


@pytest.mark.parametrize(
    "target",
    [
        *("v2/models/strings/generate", "v2/models/strings/generate_stream", "v2/logging"),
        *("v2/trace/setting", "v2/models/identity/trace/setting", "openapi.json", "docs"),
        *("/v2", "v2/", "", "metrics/", "v2/models/identity/none", "healthy"),
    ],
)
async def test_what_is_not_reachable_is_an_empty_400(site: Any, target: str) -> None:
    assert redirected(target, allowed=True) is None
    assert (await site.ask("POST", PREDICT, b"{}", {REDIRECT: target}))[::2] == (400, b"")


async def test_the_metrics_page(server: FakeServer, serving: Serving, tmp_path: Path) -> None:
    server.page = b"nv_x 1\n"
    headers = {REDIRECT: "metrics"}
    async with serving(server, default_model="identity") as site:
        status, found, body = await site.ask("POST", PREDICT, headers=headers)
        assert (status, body) == (200, b"nv_x 1\n")
        assert found["Content-Type"] == "text/plain; charset=utf-8"
    async with serving(server, default_model="identity", allow_metrics=False) as site:
        assert (await site.ask("POST", PREDICT, headers=headers))[::2] == (400, b"")
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef")
    async with serving(server, default_model="identity", metrics_auth_file=str(keys)) as site:
        assert await site.status("POST", PREDICT, **headers) == 401
        headers["X-API-Key"] = keys.read_text()
        assert await site.status("POST", PREDICT, **headers) == 200


async def test_restricted_apis(server: FakeServer, serving: Serving) -> None:
    restricted = ("inference,health,model-config:admin=secret",)
    async with serving(server, default_model="identity", restricted_api=restricted) as site:
        for method, path, body, headers in [
            ("GET", "/healthy", None, {}),
            ("POST", PREDICT, INFER, {}),
            ("POST", PREDICT, INFER, {REDIRECT: "v2/models/identity/infer"}),
            ("POST", PREDICT, None, {REDIRECT: "v2/models/identity/config"}),
        ]:
            assert await site.status(method, path, body, **headers) == 403
            assert await site.status(method, path, body, admin="secret", **headers) == 200
        assert await site.status("POST", PREDICT, **{REDIRECT: "v2"}) == 200
