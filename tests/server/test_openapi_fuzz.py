"""Requests made from the OpenAPI document of a real server: it answers each as the document says,
and never with an error that it did not expect itself."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from identity_models import write_identity
from server_harness import Running, write_python_model

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is missing")

from schemathesis import GenerationMode  # noqa: E402 - after the check above
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

SHORT, LONG = 3, 40
"""Examples of each operation and way to make them."""
FLAGS = ("--allow-client-shm=true",)
EVENTS = "text/event-stream"
UNEXPECTED = "internal error, see the server's log"
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
REVERSED = """
def execute(self, requests):
    return [answer(OUT=read(request, "IN")[::-1]) for request in requests]
"""
REVERSED_CONFIG = """
input { name: "IN" data_type: TYPE_STRING dims: [ -1 ] }
output { name: "OUT" data_type: TYPE_STRING dims: [ -1 ] }
"""


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    repository = tmp_path_factory.mktemp("described") / "models"
    write_identity(repository, "identity", "python", "batching", ("FP32", "INT64", "BOOL"))
    write_python_model(repository, "reversed", REVERSED_CONFIG, REVERSED)
    return start_server(repository, "--model-control-mode=explicit", "--load-model=*", *FLAGS)


def operations(server: Running) -> Iterator[Any]:
    url = f"http://{server.http_url}/openapi.json"
    for result in schemathesis.openapi.from_url(url).get_all_operations():
        yield result.ok()


def aim(operation: Any, case: Any) -> None:
    """Let calls that change no model be about one that there is, where the path names any."""
    given = case.path_parameters
    if given and "model" in given and "repository" not in operation.path:
        case.path_parameters = {**given, "model": "identity", "version": "1"}
        if "version" not in given:
            del case.path_parameters["version"]


def check(operation: Any, case: Any) -> int:
    """Make a call and hold its answer, whose status it gives, against the document."""
    answer = case.call()
    documented: Mapping[str, Any] = operation.definition.raw["responses"]
    if answer.status_code >= 500:
        assert str(answer.status_code) in documented, (answer.status_code, answer.text)
    assert UNEXPECTED not in answer.text
    events = answer.headers["content-type"][0].startswith(EVENTS)
    # As Triton's, answers hold numbers that JSON has no word for, which schemathesis reads as null.
    odd = any(word in answer.content for word in (b"Infinity", b"NaN"))
    case.validate_response(answer, checks=CHECKS[:-1] if events or odd else CHECKS)
    if events:
        check_events(answer.content.decode())
    return int(answer.status_code)


def check_events(text: str) -> None:
    """Each event is a response or an error. Schemathesis holds each against the schema of the whole
    stream."""
    *events, rest = text.split("\n\n")
    assert rest == ""
    for event in events:
        name, _, data = event.partition(": ")
        assert name == "data"
        assert json.loads(data).keys() & {"model_name", "error"}


def try_operation(operation: Any, mode: Any, examples: int) -> None:
    """Make calls of one operation, with requests that fit the document or with others."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        aim(operation, case)
        check(operation, case)

    # No request can be wrong where there is nothing in it.
    nothing = (Unsatisfiable,) if mode is GenerationMode.NEGATIVE else ()
    with contextlib.suppress(*nothing):
        run()


def try_all(server: Running, examples: int) -> int:
    """Try every operation: how many there are."""
    found = list(operations(server))
    for operation in found:
        for mode in GenerationMode:
            try_operation(operation, mode, examples)
    return len(found)


def test_the_server_answers_as_its_document_says(server: Running) -> None:
    assert try_all(server, SHORT) > 30
    assert server.get("/v2/models/identity/ready").status == 200


def test_the_examples_of_the_document_are_answered(server: Running) -> None:
    tried = 0
    for operation in operations(server):
        asked = operation.definition.raw.get("requestBody", {}).get("content", {})
        example = asked.get("application/json", {}).get("example")
        if example is not None:
            case = operation.Case(body=example, media_type="application/json")
            assert check(operation, case) == 200
            tried += 1
    assert tried == 6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_server_answers_many_requests_as_its_document_says(server: Running) -> None:
    assert try_all(server, LONG) > 30
    assert server.get("/v2/models/identity/ready").status == 200
