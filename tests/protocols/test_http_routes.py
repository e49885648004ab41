import pytest

from microkernel import LATEST, InvalidArgument
from microkernel_http.routes import Endpoint, find


@pytest.mark.parametrize(
    ("method", "target", "endpoint", "model", "version"),
    [
        ("POST", "/v2/models/m/infer", Endpoint.INFER, "m", LATEST),
        ("POST", "/v2/models/m/versions/12/infer?x=/y", Endpoint.INFER, "m", 12),
        ("POST", "/v2/models/a%20b%2Fc/infer", Endpoint.INFER, "a b/c", LATEST),
        ("GET", "/v2/models/ready", Endpoint.MODEL_METADATA, "ready", LATEST),
        ("GET", "/v2/models/m/ready", Endpoint.MODEL_READY, "m", LATEST),
        ("GET", "/v2/models/m/versions/1/ready", Endpoint.MODEL_READY, "m", 1),
        ("GET", "/v2/models/m", Endpoint.MODEL_METADATA, "m", LATEST),
        ("GET", "/v2/models/m/versions/1", Endpoint.MODEL_METADATA, "m", 1),
        ("GET", "/v2/models/stats/versions/1", Endpoint.MODEL_METADATA, "stats", 1),
        ("GET", "/v2/models/statsman", Endpoint.MODEL_METADATA, "statsman", LATEST),
        ("GET", "/v2/models/m/versions/1/config", Endpoint.MODEL_CONFIG, "m", 1),
        ("GET", "/v2", Endpoint.SERVER_METADATA, "", LATEST),
        ("GET", "/v2?", Endpoint.SERVER_METADATA, "", LATEST),
        ("GET", "/v2/health/live", Endpoint.LIVE, "", LATEST),
        ("GET", "/v2/health/ready", Endpoint.READY, "", LATEST),
        ("POST", "/v2/repository/index", Endpoint.REPOSITORY_INDEX, "", LATEST),
        ("POST", "/v2/repository/any/index", Endpoint.REPOSITORY_INDEX, "", LATEST),
        ("POST", "/v2/models/m/generate", Endpoint.GENERATE, "m", LATEST),
        ("POST", "/v2/models/m/versions/2/generate_stream", Endpoint.GENERATE_STREAM, "m", 2),
        ("GET", "/v2/models/stats", Endpoint.STATISTICS, "", LATEST),
        ("GET", "/v2/models/m/stats", Endpoint.STATISTICS, "m", LATEST),
        ("GET", "/v2/models/m/versions/3/stats", Endpoint.STATISTICS, "m", 3),
        ("GET", "/v2/models/stats/stats", Endpoint.STATISTICS, "stats", LATEST),
        ("POST", "/v2/repository/models/a%20b/load", Endpoint.LOAD, "a b", LATEST),
        ("POST", "/v2/repository/models/m/unload", Endpoint.UNLOAD, "m", LATEST),
        ("GET", "/v2/logging", Endpoint.LOGGING, "", LATEST),
        ("POST", "/v2/logging", Endpoint.LOGGING, "", LATEST),
        ("GET", "/v2/trace/setting", Endpoint.TRACE, "", LATEST),
        ("POST", "/v2/models/a%20b/trace/setting", Endpoint.TRACE, "a b", LATEST),
        ("GET", "/openapi.json", Endpoint.OPENAPI, "", LATEST),
        ("GET", "/docs?a=b", Endpoint.DOCS, "", LATEST),
    ],
)
def test_paths(method: str, target: str, endpoint: Endpoint, model: str, version: int) -> None:
    route = find(method, target)
    assert route is not None
    assert (route.endpoint, route.allowed) == (endpoint, True)
    assert (route.model, route.version()) == (model, version)


@pytest.mark.parametrize(
    "target",
    [
        *("/", "/v2/", "/v2/none", "/v2/models", "/v2/models/", "/v2/models/m/", "//v2"),
        *("/v2/models/m/versions", "/v2/models/m/versions/", "/v2/models/m/versions/x"),
        *("/v2/models/m/versions/-1", "/v2/models/m/versions/1/", "/v2/trace/settings"),
        *("/v2/models/m/versions/\u0661", "/v2/models/m/none", "/v2/health", "/v2\n"),
        *("/v2/repository/a/b/index", "/v2/repository/models/load", "/v2/repository/m/load"),
        *("/v2/models/m/versions/1/trace/setting", "/v2/models/trace/setting", "/docs/"),
        *("/v2/sharedmemory/status", "/v2/systemsharedmemory/region/status", "/v2/logging/"),
    ],
)
def test_paths_that_are_none(target: str) -> None:
    assert find("GET", target) is None


@pytest.mark.parametrize(
    ("target", "repository"),
    [
        ("/v2/repository/models/m/load", ""),
        ("/v2/repository/other/models/m/load", "other"),
        ("/v2/repository/models/models/m/unload", "models"),
    ],
)
def test_paths_that_name_a_repository(target: str, repository: str) -> None:
    route = find("POST", target)
    assert route is not None
    assert (route.repository, route.model) == (repository, "m")


@pytest.mark.parametrize(
    ("method", "target", "endpoint", "kind", "region"),
    [
        ("GET", "/v2/systemsharedmemory/status", Endpoint.REGION_STATUS, "system", ""),
        ("GET", "/v2/cudasharedmemory/region/a%20b/status", Endpoint.REGION_STATUS, "cuda", "a b"),
        ("POST", "/v2/cudasharedmemory/region/r/register", Endpoint.REGION_REGISTER, "cuda", "r"),
        ("POST", "/v2/systemsharedmemory/unregister", Endpoint.REGION_UNREGISTER, "system", ""),
    ],
)
def test_paths_of_shared_memory(
    method: str, target: str, endpoint: Endpoint, kind: str, region: str
) -> None:
    route = find(method, target)
    assert route is not None
    assert (route.endpoint, route.allowed) == (endpoint, True)
    assert (route.kind, route.region) == (kind, region)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/v2/models/stats"),
        ("GET", "/v2/repository/models/m/load"),
        ("PUT", "/v2/logging"),
        ("GET", "/v2/models/m/infer"),
        ("OPTIONS", "/v2/models/m/infer"),
        ("HEAD", "/v2/health/live"),
        ("GET", "/v2/repository/index"),
        ("POST", "/v2/models/m"),
    ],
)
def test_other_methods_are_not_allowed(method: str, target: str) -> None:
    route = find(method, target)
    assert route is not None
    assert not route.allowed


def test_a_version_beyond_64_bits() -> None:
    route = find("GET", "/v2/models/m/versions/99999999999999999999")
    assert route is not None
    with pytest.raises(InvalidArgument, match="failed to get model version from specified version"):
        route.version()
