"""Models that are loaded and unloaded over HTTP, and headers that are forwarded."""

import base64
import json
from collections.abc import Callable

import pytest
from facts_harness import (
    JSON,
    SERVED,
    TEXT,
    Fact,
    X,
    configurations,
    parameters,
    request,
    write_models,
)
from server_harness import Running, ask

REPOSITORY = "/v2/repository/models"
POLLED = "failed to load '{}', failed to poll from model repository"


def load(model: str, status: int, phrase: str | None, body: bytes = b"") -> Fact:
    """A request to load a model."""
    return Fact("POST", f"{REPOSITORY}/{model}/load", status, JSON, phrase, body)


ECHO_CONFIG = json.dumps({"backend": "python", "max_batch_size": 3})
LOADS = {
    "what is unchanged": load("echo", 200, None),
    "what is nowhere": load("absent", 500, POLLED.format("absent")),
    "no name": load("%20", 400, "Model name cannot be empty"),
    "a name that leaves": load("%2E%2E", 400, "must not contain path traversal characters"),
    "a name of a path": load("a%2Fb", 400, "must not contain path traversal characters"),
    "an unknown parameter": load("echo", 500, "unrecognized load parameter", parameters(other="1")),
    "a configuration that is none": load(
        "echo", 500, POLLED.format("echo"), parameters(config="{")
    ),
    "files without a configuration": load(
        "echo", 500, POLLED.format("echo"), parameters(**{"file:1/model.py": "AAAA"})
    ),
    "a file that leaves": load(
        *("echo", 500, POLLED.format("echo")),
        parameters(**{"config": ECHO_CONFIG, "file:../x": "AAAA"}),
    ),
    "a configuration of another kind": load("echo", 500, "config", parameters(config=1)),
}
FAILURES = {
    "what cannot be read": load("odd", 500, POLLED.format("odd")),
    "what has no version": load(
        *("empty", 400),
        "load failed for model 'empty': at least one version must be available under the version "
        "policy",
    ),
    "what fails": load(
        *("fails", 400),
        "load failed for model 'fails': version 1 is at UNAVAILABLE state: Internal: ",
    ),
}
INDEX = "/v2/repository/index"
CONTROL = {
    **{f"loading {name}": fact for name, fact in LOADS.items()},
    "unloading what is unknown": Fact("POST", f"{REPOSITORY}/absent/unload", 200, JSON, None),
    "unloading what is not loaded": Fact("POST", f"{REPOSITORY}/later/unload", 200, JSON, None),
    "unloading with dependents": Fact(
        *("POST", f"{REPOSITORY}/later/unload", 200, JSON, None),
        parameters(unload_dependents=True),
    ),
    "the index of what is ready": Fact("POST", INDEX, 200, JSON, "echo", b'{"ready": true}'),
    "an index of 1": Fact("POST", INDEX, 400, JSON, "", b'{"ready": 1}'),
}


@pytest.mark.parametrize("fact", CONTROL)
def test_control(facts: Running, fact: str) -> None:
    CONTROL[fact].check(facts)


def index(server: Running, body: bytes = b"") -> dict[str, dict[str, str]]:
    """The lines of the index by name."""
    lines = {entry["name"]: entry for entry in server.post(INDEX, body).json}
    assert list(lines) == sorted(lines)
    return lines


def test_the_life_of_a_model_in_the_index(facts: Running) -> None:
    path = "/v2/models/later"
    assert index(facts)["later"] == {"name": "later"}
    assert facts.get(path).error == "Request for unknown model: 'later' is not found"
    assert facts.post(f"{REPOSITORY}/later/load").body == b""
    assert index(facts)["later"] == {"name": "later", "version": "1", "state": "READY"}
    assert facts.get(path).status == 200
    facts.unload("later")
    assert index(facts)["later"] == {
        "name": "later",
        "version": "1",
        "state": "UNAVAILABLE",
        "reason": "unloaded",
    }
    for method, type_, tail in (
        ("GET", JSON, ""),
        ("GET", JSON, "/config"),
        ("POST", TEXT, "/infer"),
    ):
        phrase = "Request for unknown model: 'later' has no available versions"
        Fact(
            method, path + tail, 404, type_, phrase, request(X) if tail == "/infer" else b""
        ).check(facts)
    phrase = "Request for unknown model: 'later' version 1 is not at ready state"
    Fact("GET", f"{path}/versions/1", 503, JSON, phrase).check(facts)
    assert facts.get(f"{path}/stats").error == "requested model 'later' is not available"


def test_a_model_that_is_nowhere_leaves_no_trace(facts: Running) -> None:
    before = index(facts)
    assert facts.post(f"{REPOSITORY}/nowhere/load").status == 500
    assert index(facts) == before
    ready = index(facts, b'{"ready": true}')
    assert {entry["state"] for entry in ready.values()} == {"READY"}
    assert set(SERVED) <= set(ready)


def test_a_model_that_fails_stands_in_the_index(failing: Running) -> None:
    server = failing
    assert server.get("/v2/health/ready").status == 200
    assert {tuple(entry) for entry in index(server).values()} == {("name",)}
    assert load("later", 200, None).ask(server).status == 200
    server.unload("later")
    # What is unloaded on purpose does not keep the server from being ready, nor what is nowhere.
    LOADS["what is nowhere"].check(server)
    assert server.get("/v2/health/ready").status == 200
    for fact in FAILURES.values():
        fact.check(server)
    line = index(server)["fails"]
    assert (line["version"], line["state"]) == ("1", "UNAVAILABLE")
    assert line["reason"].startswith("Internal: ")
    assert "it cannot start" in line["reason"]
    assert server.get("/v2/health/ready").status == 400
    assert server.get("/v2/models/fails").error.endswith("'fails' has no available versions")


def test_a_configuration_and_files_that_come_along(facts: Running) -> None:
    config, _ = configurations()["later"]
    kept = facts.get("/v2/models/later").status
    source = "import triton_python_backend_utils as pb_utils\nclass TritonPythonModel:\n"
    source += "    def execute(self, requests):\n"
    source += (
        "        t = [pb_utils.get_input_tensor_by_name(r, 'X').as_numpy() for r in requests]\n"
    )
    source += "        return [pb_utils.InferenceResponse([pb_utils.Tensor('Y', -a)]) for a in t]\n"
    tensors = {"data_type": "TYPE_FP32", "dims": [2]}
    given = json.dumps(
        {
            "backend": "python",
            "max_batch_size": 3,
            "input": [{"name": "X", **tensors}],
            "output": [{"name": "Y", **tensors}],
        }
    )
    body = parameters(
        **{"config": given, "file:7/model.py": base64.b64encode(source.encode()).decode()}
    )
    load("later", 200, None, body).check(facts)
    try:
        assert facts.get("/v2/models/later").json["versions"] == ["7"]
        assert facts.get("/v2/models/later/config").json["max_batch_size"] == 3
        found = facts.post("/v2/models/later/infer", request(X)).json
        assert (found["model_version"], found["outputs"][0]["data"]) == ("7", [-1, -2])
        # Without overrides it comes from the repository again.
        load("later", 200, None).check(facts)
        assert facts.get("/v2/models/later").json["versions"] == ["1"]
        assert f"max_batch_size: {facts.get('/v2/models/later/config').json['max_batch_size']}" in (
            config
        )
    finally:
        facts.unload("later")
    assert kept == 404


def test_a_failed_reload_keeps_what_serves(facts: Running) -> None:
    load("echo", 500, POLLED.format("echo"), parameters(config="{")).check(facts)
    assert facts.post("/v2/models/echo/infer", request(X)).status == 200


@pytest.mark.parametrize("action", ["load", "unload"])
def test_control_needs_the_explicit_mode(polite: Running, action: str) -> None:
    phrase = "explicit model load / unload is not allowed if polling is enabled"
    Fact("POST", f"{REPOSITORY}/echo/{action}", 503, JSON, phrase).check(polite)


@pytest.fixture(scope="module")
def polite(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    """A server that loads what it finds at its start, whatever fails."""
    repository = write_models(tmp_path_factory.mktemp("polite") / "models")
    return start_server(repository, "--exit-on-error=false")


def test_the_index_of_what_was_loaded_at_the_start(polite: Running) -> None:
    states = {name: entry["state"] for name, entry in index(polite).items()}
    assert states == {
        **dict.fromkeys([*SERVED, "later"], "READY"),
        **dict.fromkeys(["empty", "fails", "odd"], "UNAVAILABLE"),
    }
    assert polite.get("/v2/health/live").status == 200
    assert polite.get("/v2/health/ready").status == 400


RESERVED = ("sequence_id", "sequence_start", "priority", "timeout", "headers", "triton_x")


@pytest.mark.parametrize("name", RESERVED)
def test_reserved_names_cannot_be_forwarded(facts: Running, name: str) -> None:
    found = ask(facts.http, "POST", "/v2/models/echo/infer", request(X), {name: "1"})
    assert found.status == 400
    assert f"'{name}'" in found.error
    assert "is reserved for Triton usage and cannot be forwarded" in found.error
