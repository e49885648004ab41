"""The OpenAPI document says what the server does, and the page that shows it is safe."""

import base64
import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import (
    ModelConfig,
    ModelInput,
    ModelMetadata,
    ModelOutput,
    NotFound,
    ServerMetadata,
    TensorMetadata,
    TransactionPolicy,
)
from microkernel.testing import FakeModel, FakeServer
from microkernel_http import openapi_models as of_model
from microkernel_http.openapi import Guards, document
from microkernel_http.openapi_models import MOST_ELEMENTS, ModelEntry, scalar
from microkernel_http.routes import Endpoint, find

aiohttp = pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
validator = pytest.importorskip("openapi_spec_validator", reason="a tool of developers is missing")
jsonschema = pytest.importorskip("jsonschema", reason="a tool of developers is missing")

from microkernel_http.documentation import docs_page, policy  # noqa: E402 - after the checks above
from microkernel_http.frontend import HttpFrontend  # noqa: E402
from microkernel_http.settings import HttpSettings  # noqa: E402

ABOUT = ServerMetadata("triton", "1.0", ["statistics", "trace"])
OPEN = Guards({})
GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "http.jsonl"


def tensor(name: str, datatype: str = "FP32", *shape: int) -> TensorMetadata:
    return TensorMetadata(name, datatype, shape)


def entry(
    name: str = "m", *inputs: TensorMetadata, outputs: tuple[TensorMetadata, ...] = (), **rest: Any
) -> ModelEntry:
    return ModelEntry(ModelMetadata(name, ["1"], "python", inputs, outputs), **rest)


def described(*models: ModelEntry, guards: Guards = OPEN) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(document(ABOUT, models, guards)))
    return made


def checked(*models: ModelEntry, guards: Guards = OPEN) -> dict[str, Any]:
    made = described(*models, guards=guards)
    validator.validate(made)
    return made


def operations(made: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, item[method])
        for path, item in made["paths"].items()
        for method in ("get", "post")
        if method in item
    ]


def resolved(made: Mapping[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in value:
        found: Any = made
        for step in value["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        value = found
    return value


def fits(made: Mapping[str, Any], schema: dict[str, Any], value: Any) -> bool:
    whole = {**schema, "components": made["components"]}
    return bool(jsonschema.Draft202012Validator(whole).is_valid(value))


def body_of(made: Mapping[str, Any], path: str) -> dict[str, Any]:
    body = made["paths"][path]["post"]["requestBody"]
    asked: dict[str, Any] = body["content"]["application/json"]
    return asked


def test_the_document_is_valid_and_names_every_endpoint() -> None:
    made = checked(entry("a b/{c}%", tensor("x", "FP32", -1, 4)), entry("none"))
    assert made["info"] == {
        "title": "triton",
        "version": "1.0",
        "description": "Extensions of the V2 protocol: statistics, trace",
    }
    found = set()
    for method, path, _ in operations(made):
        filled = path.replace("{version}", "3").replace("{", "").replace("}", "")
        route = find(method.upper(), filled)
        assert route is not None, path
        assert route.allowed, (method, path)
        found.add(route.endpoint)
    assert found == set(Endpoint)
    route = find("POST", "/v2/models/a%20b%2F%7Bc%7D%25/infer")
    assert route is not None
    assert route.model == "a b/{c}%"
    assert "/v2/models/a%20b%2F%7Bc%7D%25/infer" in made["paths"]


def test_every_method_of_a_route_is_described() -> None:
    made = described()
    for path, item in made["paths"].items():
        filled = path.replace("{version}", "3").replace("{", "").replace("}", "")
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
            route = find(method, filled)
            assert route is not None
            assert route.allowed is (method.lower() in item), (method, path)


PATHS = described()["paths"].keys()
names = st.text(min_size=1, max_size=8)
tensors = st.lists(
    st.builds(
        TensorMetadata,
        names | st.sampled_from(["id", "parameters", "required", "model_name", "self"]),
        st.sampled_from(["BOOL", "UINT64", "INT8", "FP16", "FP32", "BF16", "BYTES"]),
        st.lists(st.integers(-1, 3), max_size=3).map(tuple),
    ),
    max_size=3,
)


@given(
    st.builds(
        ModelEntry,
        st.builds(ModelMetadata, names, st.just(["1"]), st.just("p"), tensors, tensors),
        st.frozensets(names, max_size=2),
        st.booleans(),
    )
)
def test_any_model_has_schemas_that_its_examples_fit(given_entry: ModelEntry) -> None:
    for schema, example in (
        (of_model.infer_request(given_entry), of_model.infer_example(given_entry)),
        (of_model.generate_request(given_entry), of_model.generate_example(given_entry)),
        (of_model.infer_response(given_entry), None),
        (of_model.generate_response(given_entry), None),
    ):
        jsonschema.Draft202012Validator.check_schema(schema)
        assert example is None or jsonschema.Draft202012Validator(schema).is_valid(example)


@given(names)
def test_any_name_of_a_model_makes_a_path(name: str) -> None:
    made = document(ABOUT, [entry(name)], OPEN)
    (path,) = (path for path in made["paths"].keys() - PATHS if path.endswith("/infer"))
    route = find("POST", path)
    assert route is not None
    assert route.model == name


@pytest.mark.parametrize(
    ("datatype", "good", "bad"),
    [
        ("BOOL", [True, False], [0, "x", None]),
        ("UINT8", [0, 255], [-1, 256, True, "1"]),
        ("INT8", [-128, 127], [-129, 128]),
        ("UINT64", [2**64 - 1], [2**64]),
        ("INT64", [-(2**63), 2**63 - 1], [2**63]),
        ("FP32", [1, 0.5, float("nan")], ["1", True]),
        ("BYTES", ["text", ""], [1, None]),
        ("FP16", [], [1, "x"]),
        ("BF16", [], [1]),
    ],
)
def test_what_an_element_is(datatype: str, good: list[Any], bad: list[Any]) -> None:
    check = jsonschema.Draft202012Validator(scalar(datatype))
    assert [value for value in good if not check.is_valid(value)] == []
    assert [value for value in bad if check.is_valid(value)] == []


PAIR = entry(
    "pair",
    tensor("A", "INT32", -1, 2),
    tensor("B", "BYTES", -1, 1),
    outputs=(tensor("SUM", "INT32", -1, 2),),
    optional=frozenset({"B"}),
)
A = {"name": "A", "datatype": "INT32", "shape": [1, 2], "data": [1, 2]}
B = {"name": "B", "datatype": "BYTES", "shape": [1, 1], "data": ["b"]}


@pytest.mark.parametrize(
    ("request_body", "good"),
    [
        ({"inputs": [A]}, True),
        ({"inputs": [B, A], "id": "7", "parameters": {"priority": 1, "mine": "x"}}, True),
        ({"inputs": [{**A, "data": [[1, 2]]}]}, True),
        ({"inputs": [A], "outputs": [{"name": "SUM"}]}, True),
        ({"inputs": []}, False),
        ({}, False),
        ({"inputs": [{**A, "name": "C"}]}, False),
        ({"inputs": [{**A, "datatype": "FP32"}]}, False),
        ({"inputs": [{**A, "shape": [2]}]}, False),
        ({"inputs": [{**A, "shape": [1, 3]}]}, False),
        ({"inputs": [{**A, "data": ["1"]}]}, False),
        ({"inputs": [A, B, B]}, False),
        ({"inputs": [A], "outputs": [{"name": "DIFF"}]}, False),
        ({"inputs": [A], "parameters": {"mine": None}}, False),
    ],
)
def test_the_schema_of_a_models_requests(request_body: object, good: bool) -> None:
    made = described(PAIR)
    schema = body_of(made, "/v2/models/pair/infer")["schema"]
    assert fits(made, schema, request_body) is good


@pytest.mark.parametrize(
    ("request_body", "good"),
    [
        ({"A": 1, "B": "x"}, True),
        ({"A": [1, 2], "temperature": 0.5, "parameters": {"B": "x"}}, True),
        ({"A": "1"}, False),
        ({"B": [[1]]}, False),
    ],
)
def test_the_schema_of_a_models_generate_requests(request_body: object, good: bool) -> None:
    made = described(PAIR)
    schema = body_of(made, "/v2/models/pair/generate")["schema"]
    assert fits(made, schema, request_body) is good


def test_examples_are_small() -> None:
    small, large = tensor("x", "FP32", -1, MOST_ELEMENTS), tensor("x", "FP32", MOST_ELEMENTS + 1)
    for model, given_example in ((entry("m", small), True), (entry("m", large), False)):
        asked = body_of(described(model), "/v2/models/m/infer")
        assert ("example" in asked) is given_example


def test_what_guards_an_endpoint_is_told() -> None:
    guards = Guards({Endpoint.LOGGING: "X-Admin", Endpoint.INFER: "X-Run"}, keys=True)
    made = checked(entry("m"), guards=guards)
    assert made["security"] == [{"bearer": []}, {"key": []}]
    for method, path, operation in operations(made):
        route = find(method.upper(), path.replace("{version}", "1"))
        assert route is not None
        free = route.endpoint in (Endpoint.LIVE, Endpoint.READY, Endpoint.DOCS)
        assert ("401" in operation["responses"]) is not free
        assert operation.get("security") == ([] if free else None)
        header = guards.headers.get(route.endpoint)
        assert ("403" in operation["responses"]) is (header is not None)
        needed = [p["name"] for p in operation.get("parameters", []) if p["required"]]
        assert needed == ([] if header is None else [header])
    assert "security" not in checked()


async def fetch(port: int, path: str = "/openapi.json") -> dict[str, Any]:
    async with aiohttp.request("GET", f"http://127.0.0.1:{port}{path}") as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
        made: dict[str, Any] = await answer.json()
        return made


async def test_the_document_follows_the_models(
    server: FakeServer, http_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await fetch(http_port)
    validator.validate(made)
    assert "/v2/models/identity/infer" in made["paths"]
    assert await fetch(http_port) == made
    inputs = (ModelInput(name="X", data_type="TYPE_FP32", dims=(1,), optional=True),)
    server.models["new"] = FakeModel(
        ModelConfig(
            name="new",
            backend="python",
            input=inputs,
            output=(ModelOutput(name="Y", data_type="TYPE_FP32", dims=(1,)),),
            model_transaction_policy=TransactionPolicy(decoupled=True),
        )
    )
    server.models["identity"].ready = False
    paths = (await fetch(http_port))["paths"]
    assert "/v2/models/identity/infer" not in paths
    told = paths["/v2/models/new/infer"]["post"]
    assert told["summary"] == "Run a model (answers any number of times)"
    assert told["requestBody"]["content"]["application/json"]["example"] == {"inputs": []}

    async def gone(name: str, version: int = -1) -> ModelMetadata:
        raise NotFound(name)

    monkeypatch.setattr(server, "model_metadata", gone)
    assert "/v2/models/new/infer" not in (await fetch(http_port))["paths"]


async def test_the_documents_of_a_restricted_server(server: FakeServer) -> None:
    settings = HttpSettings(
        address="127.0.0.1", port=0, restricted_api=("metadata:X-Key=secret-value",)
    )
    frontend = HttpFrontend(server, settings)
    await frontend.start()
    for path in ("/openapi.json", "/docs"):
        url = f"http://127.0.0.1:{frontend.port}{path}"
        async with aiohttp.request("GET", url) as answer:
            assert answer.status == 403
        async with aiohttp.request("GET", url, headers={"X-Key": "secret-value"}) as answer:
            assert answer.status == 200
            assert b"secret-value" not in await answer.read()
    await frontend.stop(5)


def documented(made: Mapping[str, Any], method: str, path: str) -> dict[str, Any]:
    """The operation of a request, with a concrete path before one with names."""
    path = path.partition("?")[0]
    patterns = {
        template: re.sub(r"\\\{version\\\}", "[0-9]+", re.escape(template))
        for template in made["paths"]
    }
    found = [
        template
        for template, pattern in patterns.items()
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", pattern), path)
        and method.lower() in made["paths"][template]
    ]
    best = min(found, key=lambda template: template.count("{"))
    operation: dict[str, Any] = made["paths"][best][method.lower()]
    return operation


async def check_answer(made: dict[str, Any], port: int, pair: dict[str, Any]) -> bool:
    """Whether a request is described; if so, its answer must be too: status, type and form. What
    the kernel would have refused is canned here and has any form."""
    request = pair["request"]
    method, path = request["method"], request["path"]
    route = find(method, path)
    if route is None or not route.allowed:
        return False
    operation = documented(made, method, path)
    body = base64.b64decode(request["body"])
    url = f"http://127.0.0.1:{port}{path}"
    call = aiohttp.request(method, url, data=body, headers=request["headers"])
    async with call as answer:
        content = await answer.read()
        about = resolved(made, operation["responses"][str(answer.status)])
        kind = answer.headers["Content-Type"].partition(";")[0]
        assert kind in about["content"], (method, path, answer.status, kind)
        schema = about["content"][kind].get("schema")
        if schema and kind == "application/json" and answer.status == pair["answer"]["status"]:
            value = json.loads(content)
            whole = {**schema, "components": made["components"]}
            jsonschema.validate(value, whole, cls=jsonschema.Draft202012Validator)
    return True


@pytest.mark.skipif(
    not GOLDEN.exists(), reason="the recorded conversation is not beside the repository"
)
async def test_answers_are_as_the_document_says(server: FakeServer, http_port: int) -> None:
    made = await fetch(http_port)
    pairs = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    described = [await check_answer(made, http_port, pair) for pair in pairs]
    assert sum(described) > 130


async def test_the_requests_of_examples_are_answered(http_port: int) -> None:
    made = await fetch(http_port)
    tried = 0
    for method, path, operation in operations(made):
        asked = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        if "example" not in asked or "stream" in path:
            continue
        url = f"http://127.0.0.1:{http_port}{path}"
        async with aiohttp.request(method, url, json=asked["example"]) as answer:
            assert answer.status == 200, (path, await answer.read())
            tried += 1
    assert tried >= 6


async def test_the_page_runs_its_own_code_only(http_port: int) -> None:
    async with aiohttp.request("GET", f"http://127.0.0.1:{http_port}/docs") as answer:
        page = await answer.text()
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        rules = dict(
            rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; ")
        )
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["connect-src"] == "'self'"
    for kind in ("script", "style"):
        (code,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(sha256(code.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"


def test_the_page_works_offline_and_makes_no_markup_of_names() -> None:
    page = docs_page()
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\("
    assert re.findall(forbidden, page) == []
    assert re.findall(r"https?://|src=|href=|@import|url\(| style=| on\w+=\"", page) == []
    assert page.count("fetch(") == 2


def test_the_policy_follows_the_page() -> None:
    assert policy("<script>1</script>") != policy("<script>2</script>")
    assert "script-src" not in policy("<p>no code</p>")
