"""Which paths and methods HTTP answers how: routing, health, metadata, configuration, errors."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from facts_harness import JSON, OCTETS, SERVED, TEXT, TYPES, A, B, Fact, X, request
from server_harness import Running, ask, write_python_model

NOT_FOUND = "Request for unknown model: 'absent' is not found"
NO_VERSION = "Request for unknown model: 'echo' version 7 is not found"
TOO_LARGE = "failed to get model version from specified version string '99999999999999999999'"
HUGE = "versions/99999999999999999999"

FACTS = {
    "live": Fact("GET", "/v2/health/live", 200, TEXT, None),
    "ready": Fact("GET", "/v2/health/ready", 200, TEXT, None),
    "model ready": Fact("GET", "/v2/models/echo/ready", 200, TEXT, None),
    "version ready": Fact("GET", "/v2/models/echo/versions/1/ready", 200, TEXT, None),
    "an unknown model is not ready": Fact(
        "GET", "/v2/models/absent/ready", 400, TEXT, "Model version not ready"
    ),
    "an unknown version is not ready": Fact(
        "GET", "/v2/models/echo/versions/7/ready", 400, TEXT, "Model version not ready"
    ),
    "a model that was never loaded is not ready": Fact(
        "GET", "/v2/models/later/ready", 400, TEXT, "Model version not ready"
    ),
    "server metadata": Fact("GET", "/v2", 200, JSON, '"name":"triton"'),
    "the query string is ignored": Fact("GET", "/v2?a=b", 200, JSON, '"name":"triton"'),
    "model metadata": Fact("GET", "/v2/models/echo", 200, JSON, '"name":"echo"'),
    "version metadata": Fact("GET", "/v2/models/echo/versions/1", 200, JSON, '"versions":["1"]'),
    "model configuration": Fact("GET", "/v2/models/echo/config", 200, JSON, '"name":"echo"'),
    "version configuration": Fact(
        "GET", "/v2/models/echo/versions/1/config", 200, JSON, '"backend":"python"'
    ),
    "all statistics": Fact("GET", "/v2/models/stats", 200, JSON, '"model_stats":['),
    "statistics of a model": Fact("GET", "/v2/models/echo/stats", 200, JSON, '"name":"echo"'),
    "statistics of a version": Fact(
        "GET", "/v2/models/echo/versions/1/stats", 200, JSON, '"version":"1"'
    ),
    "a model called stats has no metadata": Fact("POST", "/v2/models/stats", 405, TEXT, "Method"),
    "index": Fact("POST", "/v2/repository/index", 200, JSON, '"state":"READY"'),
    "index of a repository": Fact("POST", "/v2/repository/any/index", 200, JSON, '"READY"'),
    "system regions": Fact("GET", "/v2/systemsharedmemory/status", 200, JSON, "[]"),
    "cuda regions": Fact("GET", "/v2/cudasharedmemory/status", 200, JSON, "[]"),
    "trace settings": Fact("GET", "/v2/trace/setting", 200, JSON, '"trace_mode":"triton"'),
    "a model's trace settings": Fact("GET", "/v2/models/echo/trace/setting", 200, JSON, "trace"),
    "log settings": Fact("GET", "/v2/logging", 200, JSON, '"log_format":"default"'),
    "no slash at the end": Fact("GET", "/v2/", 404, TEXT, "Not Found"),
    "no slash after a model": Fact("GET", "/v2/models/echo/", 404, TEXT, "Not Found"),
    "no such path": Fact("GET", "/v2/nothing", 404, TEXT, "Not Found"),
    "a version of letters": Fact("GET", "/v2/models/echo/versions/x", 404, TEXT, "Not Found"),
    "a negative version": Fact("GET", "/v2/models/echo/versions/-1", 404, TEXT, "Not Found"),
    "a version of a trace setting": Fact(
        "GET", "/v2/models/echo/versions/1/trace/setting", 404, TEXT, "Not Found"
    ),
    "a version beyond 64 bits": Fact("GET", f"/v2/models/echo/{HUGE}", 400, JSON, TOO_LARGE),
    "readiness beyond 64 bits": Fact("GET", f"/v2/models/echo/{HUGE}/ready", 400, TEXT, TOO_LARGE),
    "inference beyond 64 bits": Fact(
        "POST", f"/v2/models/echo/{HUGE}/infer", 400, TEXT, TOO_LARGE, request(X)
    ),
    "metadata of an unknown model": Fact("GET", "/v2/models/absent", 404, JSON, NOT_FOUND),
    "metadata of an unknown version": Fact(
        "GET", "/v2/models/echo/versions/7", 404, JSON, NO_VERSION
    ),
    "configuration of an unknown model": Fact(
        "GET", "/v2/models/absent/config", 404, JSON, NOT_FOUND
    ),
    "inference of an unknown model": Fact(
        "POST", "/v2/models/absent/infer", 404, TEXT, NOT_FOUND, request(X)
    ),
    "an unknown model comes before a bad body": Fact(
        "POST", "/v2/models/absent/infer", 404, TEXT, NOT_FOUND, b"{"
    ),
    "generation of an unknown model": Fact(
        "POST", "/v2/models/absent/generate", 404, JSON, NOT_FOUND, b"{}"
    ),
    "a stream of an unknown model": Fact(
        "POST", "/v2/models/absent/generate_stream", 404, JSON, NOT_FOUND, b"{}"
    ),
    "statistics of an unknown model": Fact(
        "GET", "/v2/models/absent/stats", 400, JSON, "requested model 'absent' is not available"
    ),
    "statistics of an unknown version": Fact(
        *("GET", "/v2/models/echo/versions/7/stats", 400, JSON),
        "requested model version is not available for model 'echo'",
    ),
    "trace settings of an unknown model": Fact(
        *("GET", "/v2/models/absent/trace/setting", 400, JSON),
        "Request for unknown model : absent",
    ),
    "a repository that is named, to load": Fact(
        *("POST", "/v2/repository/other/models/echo/load", 501, JSON),
        "'repository_name' specification is not supported",
    ),
    "a repository that is named, to unload": Fact(
        *("POST", "/v2/repository/other/models/echo/unload", 501, JSON),
        "'repository_name' specification is not supported",
    ),
    "the type of a request does not matter": Fact(
        *("POST", "/v2/models/echo/infer", 200, JSON, '"outputs"', request(X)),
        {"Content-Type": "image/png"},
    ),
}

METHODS = {
    "/v2/health/live": "GET",
    "/v2/health/ready": "GET",
    "/v2/models/echo/ready": "GET",
    "/v2": "GET",
    "/v2/models/echo": "GET",
    "/v2/models/echo/config": "GET",
    "/v2/models/stats": "GET",
    "/v2/models/echo/stats": "GET",
    "/v2/models/echo/infer": "POST",
    "/v2/models/echo/generate": "POST",
    "/v2/models/echo/generate_stream": "POST",
    "/v2/repository/index": "POST",
    "/v2/repository/models/echo/load": "POST",
    "/v2/repository/models/echo/unload": "POST",
    "/v2/systemsharedmemory/status": "GET",
    "/v2/systemsharedmemory/region/r/status": "GET",
    "/v2/systemsharedmemory/region/r/register": "POST",
    "/v2/systemsharedmemory/unregister": "POST",
    "/v2/cudasharedmemory/status": "GET",
    "/v2/cudasharedmemory/region/r/register": "POST",
    "/v2/cudasharedmemory/unregister": "POST",
    "/v2/trace/setting": "GET POST",
    "/v2/models/echo/trace/setting": "GET POST",
    "/v2/logging": "GET POST",
}
"""The methods that each path knows; any other is refused."""

CODES = {
    "UNKNOWN": 400,
    "INTERNAL": 500,
    "NOT_FOUND": 404,
    "INVALID_ARG": 400,
    "UNAVAILABLE": 503,
    "UNSUPPORTED": 501,
    "ALREADY_EXISTS": 400,
    "CANCELLED": 400,
}
"""The status of each class of error that a model may answer with, in the order of its codes."""


@pytest.mark.parametrize("fact", FACTS)
def test_answers(facts: Running, fact: str) -> None:
    FACTS[fact].check(facts)


@pytest.mark.parametrize("path", METHODS)
def test_other_methods_are_refused(facts: Running, path: str) -> None:
    known = METHODS[path].split()
    for method in {"GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"} - set(known):
        Fact(method, path, 405, TEXT, "Method Not Allowed").check(facts)
    assert ask(facts.http, "HEAD", path).status == 405


@pytest.mark.parametrize(("name", "status"), CODES.items())
def test_the_status_of_each_class_of_error(facts: Running, name: str, status: int) -> None:
    refused = {**A, "data": [-1 - list(CODES).index(name), 0, 0, 0]}
    found = facts.post("/v2/models/pair/infer", request(refused, B))
    assert (found.status, found.json) == (status, {"error": "the model refuses"})


def test_no_answer_speaks_of_other_origins(facts: Running) -> None:
    for method in ("GET", "OPTIONS"):
        headers = {"Origin": "https://example.com"}
        found = ask(facts.http, method, "/v2", headers=headers)
        assert not [name for name in found.headers if name.startswith("access-control-")]


def test_the_extensions_are_named_in_order(facts: Running) -> None:
    document = facts.get("/v2").json
    assert list(document) == ["name", "version", "extensions"]
    order = [
        *("classification", "sequence", "model_repository"),
        *("model_repository(unload_dependents)", "schedule_policy", "model_configuration"),
        *("system_shared_memory", "cuda_shared_memory", "binary_tensor_data", "parameters"),
        *("statistics", "trace", "logging"),
    ]
    assert document["extensions"] == [name for name in order if name in document["extensions"]]


def test_model_metadata(facts: Running) -> None:
    document = facts.get("/v2/models/echo").json
    assert list(document) == ["name", "versions", "platform", "inputs", "outputs"]
    assert document["versions"] == ["1"]
    assert document["platform"] == "python"
    # The batch dimension leads.
    assert document["inputs"] == [{"name": "X", "datatype": "FP32", "shape": [-1, -1]}]
    assert facts.get("/v2/models/grid").json["inputs"][0]["shape"] == [2, -1]


@pytest.mark.parametrize(
    ("part", "versions", "ran"),
    [("", ["1", "2"], "2"), ("/versions/1", ["1"], "1"), ("/versions/2", ["2"], "2")],
)
def test_versions(facts: Running, part: str, versions: list[str], ran: str) -> None:
    path = f"/v2/models/two{part}"
    assert facts.get(path).json["versions"] == versions
    assert facts.post(f"{path}/infer", request(X)).json["model_version"] == ran
    assert facts.post(f"{path}/generate", b'{"X": 1}').json["model_version"] == ran
    entries = facts.get(f"{path}/stats").json["model_stats"]
    assert [entry["version"] for entry in entries] == versions
    lines = [e for e in facts.post("/v2/repository/index").json if e["name"] == "two"]
    assert [line["version"] for line in lines] == ["1", "2"]


def test_data_types_are_named_as_on_the_wire(facts: Running) -> None:
    inputs = facts.get("/v2/models/kinds").json["inputs"]
    wire = ["BYTES" if name == "STRING" else name for name in TYPES]
    assert [entry["datatype"] for entry in inputs] == wire
    # That an input is optional shows in the configuration only.
    assert {frozenset(entry) for entry in inputs} == {frozenset({"name", "datatype", "shape"})}


def test_the_configuration_is_the_message_as_json(facts: Running) -> None:
    document = facts.get("/v2/models/many/config").json
    assert document["model_transaction_policy"] == {"decoupled": True}
    # What is simple is there although it is the default, what is a message only if it was given.
    assert (document["max_batch_size"], document["platform"]) == (0, "")
    assert document["input"][0]["optional"] is False
    assert document["input"][0]["data_type"] == "TYPE_INT32"
    assert document["instance_group"][0]["kind"] == "KIND_CPU"
    assert not {"dynamic_batching", "sequence_batching", "ensemble_scheduling"} & document.keys()


def test_64_bit_integers_are_numbers(facts: Running) -> None:
    dims = facts.get("/v2/models/grid/config").json["input"][0]["dims"]
    assert dims == [2, -1]


def test_every_model_has_statistics(facts: Running) -> None:
    names = [entry["name"] for entry in facts.get("/v2/models/stats").json["model_stats"]]
    assert names == sorted([*SERVED, "two"])  # once for each of its versions


def test_connections_are_kept(facts: Running) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", facts.http, timeout=30)
    for _ in range(2):
        connection.request("GET", "/v2/health/live")
        kept = connection.sock
        assert connection.getresponse().read() == b""
        assert connection.sock is kept is not None
    connection.close()


@pytest.fixture(scope="module")
def restricted(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    """A server of whose APIs two groups need a header each, under another name."""
    repository = tmp_path_factory.mktemp("restricted") / "models"
    write_python_model(repository, "m", "", "def execute(self, requests):\n    return []\n")
    return start_server(
        Path(repository),
        "--id=other",
        "--model-control-mode=explicit",
        "--http-restricted-api=health,metadata:Key=one",
        "--http-restricted-api=inference:Other=two",
    )


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v2", {}, 403),
        ("GET", "/v2", {"key": "one"}, 200),
        ("GET", "/v2", {"Key": "two"}, 403),
        ("POST", "/v2", {}, 403),
        ("POST", "/v2", {"Key": "one"}, 405),
        ("GET", "/v2/models/m/ready", {}, 403),
        ("GET", "/v2/health/live", {}, 403),
        ("POST", "/v2/models/m/infer", {}, 403),
        ("POST", "/v2/models/m/generate", {}, 403),
        ("POST", "/v2/models/m/generate_stream", {}, 403),
        ("POST", "/v2/models/m/infer", {"Other": "two"}, 404),
        ("GET", "/v2/models/m/config", {}, 404),
        ("POST", "/v2/repository/index", {}, 200),
    ],
)
def test_restricted_apis_come_first(
    restricted: Running, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    found = ask(restricted.http, method, path, headers=headers)
    assert found.status == status
    if status == 403:
        header = "Other" if "models/m/" in path and "ready" not in path else "Key"
        expected = f"This API is restricted, expecting header '{header}'"
        assert json.loads(found.body) == {"error": expected}


def test_the_name_of_the_server(restricted: Running) -> None:
    found = ask(restricted.http, "GET", "/v2", headers={"Key": "one"})
    assert found.json["name"] == "other"


def test_binary_answers_have_a_type_of_their_own(facts: Running) -> None:
    body = request(X, parameters={"binary_data_output": True})
    Fact("POST", "/v2/models/echo/infer", 200, OCTETS, '"binary_data_size":8', body).check(facts)
