"""What SageMaker and Vertex AI ask for, of a real server: rows of a path, and what it answers."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from facts_harness import EVENTS, JSON, OCTETS, A, B, X, an_input, parameters, request, write_models
from server_harness import Answer, Running, ask

SAGEMAKER = "application/vnd.sagemaker-triton.binary+json;json-header-size="
VERTEX = "application/vnd.vertex-ai-triton.binary+json;json-header-size="
REDIRECT = "X-Vertex-Ai-Triton-Redirect"
PAIR = request(A, B)
BINARY = request(
    an_input("X", "FP32", [1, 2], parameters={"binary_data_size": 8}),
    parameters={"binary_data_output": True},
)
NUMBERS = struct.pack("<2f", 1, 2)

Start = Callable[..., Running]


def port_of(server: Running, service: str) -> int:
    """The port of a front end, by the line that it has logged."""
    return int(str(server.log.wait(f"Started {service} at ")["event"]).rpartition(":")[2])


def started(
    folder: Path, start_server: Start, plugin: str, switch: str, environment: dict[str, str]
) -> Running:
    """A server of the models of facts whose front end for a platform is on a free port."""
    settings = folder / "plugins.toml"
    settings.write_text(f'[plugins.{plugin}]\naddress = "127.0.0.1"\nport = 0\n{switch} = true\n')
    loaded = ("echo", "pair", "text", "many", "kinds")
    flags = [f"--plugins={settings}", "--model-control-mode=explicit"]
    flags += [f"--load-model={name}" for name in loaded]
    flags += ["--vertex-ai-default-model=pair"] if plugin == "vertex_ai" else []
    return start_server(write_models(folder / "models"), *flags, environment=environment)


def sagemaker(folder: Path, start_server: Start, **variables: str) -> int:
    """The port of SageMaker's front end, with variables of its environment."""
    environment = {f"SAGEMAKER_TRITON_{name}": value for name, value in variables.items()}
    server = started(folder, start_server, "sagemaker", "allow_sagemaker", environment)
    return port_of(server, "Sagemaker HTTPService")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory, start_server: Start) -> int:
    """SageMaker's front end, which invokes pair and has unpacked and loaded echo as `h`."""
    folder = tmp_path_factory.mktemp("sagemaker")
    port = sagemaker(folder, start_server, DEFAULT_MODEL_NAME="pair")
    body = json.dumps({"model_name": "h", "url": str(folder / "models" / "echo")}).encode()
    assert ask(port, "POST", "/models", body).status == 200
    return port


Row = tuple[str, str, bytes, dict[str, str], int, str]

SAGEMAKER_ROWS: dict[str, Row] = {
    "a ping": ("GET", "/ping", b"", {}, 200, ""),
    "an invocation": ("POST", "/invocations", PAIR, {}, 200, '"data":[2,4,6,8]'),
    "a model": ("GET", "/models/h", b"", {}, 200, '{"modelName":"h","modelUrl":"'),
    "the models": ("GET", "/models", b"", {}, 200, '{"models":[{"modelName":"h","modelUrl":"'),
    "a model that was not loaded here": ("GET", "/models/pair", b"", {}, 404, ""),
    "an unknown model": ("GET", "/models/absent", b"", {}, 404, ""),
    "to unload an unknown model": ("DELETE", "/models/absent", b"", {}, 404, ""),
    "to invoke a model": ("POST", "/models/h/invoke", request(X), {}, 200, '"data":[1.0,2.0]'),
    "to invoke an unknown model": ("POST", "/models/absent/invoke", request(X), {}, 404, ""),
    "what is no JSON": (
        *("POST", "/models/h/invoke", b"{", {}, 400),
        "failed to parse the request JSON buffer",
    ),
    "an input that is missing": (
        *("POST", "/models/h/invoke", request(), {}, 400),
        "expected 1 inputs but got 0 inputs",
    ),
    "an error of the model": (
        *("POST", "/invocations", request({**A, "data": [-1, 0, 0, 0]}, B), {}, 400),
        "the model refuses",
    ),
    "an unknown encoding": (
        *("POST", "/models/h/invoke", request(X), {"Content-Encoding": "br"}, 415, ""),
    ),
    "a name that is taken": (
        *("POST", "/models", b'{"model_name": "h", "url": "/tmp"}', {}, 409),
        "model 'h' already exists",
    ),
    "a directory that is not there": (
        *("POST", "/models", b'{"model_name": "n", "url": "/absent/model"}', {}, 400),
        "cannot read '/absent/model'",
    ),
    "an unknown path": ("GET", "/v2", b"", {}, 400, ""),
}


def check(port: int, row: Row) -> None:
    """Ask and compare; an answer without a phrase that is unknown to the path is empty."""
    method, path, body, headers, status, phrase = row
    found = ask(port, method, path, body, headers)
    assert (found.status, phrase in found.body.decode()) == (status, True), found.body
    if (status, phrase) == (400, ""):
        assert found.body == b""


@pytest.mark.parametrize("row", SAGEMAKER_ROWS)
def test_sagemaker(endpoint: int, row: str) -> None:
    check(endpoint, SAGEMAKER_ROWS[row])


def check_binary(found: Answer, kind: str) -> None:
    """An answer whose JSON part is as long as its type says, followed by the two numbers."""
    assert found.status == 200, found.body
    assert found.headers["content-type"].startswith(kind)
    length = int(found.headers["content-type"].removeprefix(kind))
    assert json.loads(found.body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert found.body[length:] == NUMBERS
    assert "inference-header-content-length" not in found.headers


def test_sagemaker_tells_the_length_of_json_in_the_content_type(endpoint: int) -> None:
    headers = {"Content-Type": f"{SAGEMAKER}{len(BINARY)}"}
    found = ask(endpoint, "POST", "/models/h/invoke", BINARY + NUMBERS, headers)
    check_binary(found, SAGEMAKER)


@pytest.mark.parametrize(("mode", "status"), [("ready", 400), ("live", 200)])
def test_what_a_ping_of_sagemaker_asks(
    tmp_path: Path, start_server: Start, mode: str, status: int
) -> None:
    """A model that cannot be loaded keeps a server from being ready, not from being live."""
    settings = tmp_path / "plugins.toml"
    lines = 'allow_sagemaker = true\naddress = "127.0.0.1"\nport = 0\n'
    settings.write_text(f"[plugins.sagemaker]\n{lines}")
    flags = ["--model-control-mode=explicit", "--load-model=fails", "--exit-on-error=false"]
    server = start_server(
        write_models(tmp_path / "models"),
        *(*flags, f"--plugins={settings}"),
        environment={"SAGEMAKER_TRITON_PING_MODE": mode},
    )
    assert ask(port_of(server, "Sagemaker HTTPService"), "GET", "/ping").status == status


@pytest.mark.parametrize(
    ("kind", "model", "body", "content_type", "phrase"),
    [
        ("infer", "pair", PAIR, JSON, '"data":[2,4,6,8]'),
        ("generate", "text", b'{"X": "hello"}', JSON, '"Y":"hello"'),
        ("generate_stream", "many", b'{"COUNT": 2}', EVENTS, '"Y":1}\n\n'),
    ],
)
def test_what_an_invocation_of_sagemaker_does(
    tmp_path: Path,
    start_server: Start,
    kind: str,
    model: str,
    body: bytes,
    content_type: str,
    phrase: str,
) -> None:
    port = sagemaker(tmp_path, start_server, DEFAULT_MODEL_NAME=model, INFERENCE_TYPE=kind)
    found = ask(port, "POST", "/invocations", body)
    assert (found.status, found.headers["content-type"]) == (200, content_type)
    assert phrase in found.body.decode()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, start_server: Start) -> int:
    """The front end of Vertex AI, which predicts with pair."""
    environment = {"AIP_HEALTH_ROUTE": "/health", "AIP_PREDICT_ROUTE": "/predict"}
    folder = tmp_path_factory.mktemp("vertex")
    server = started(folder, start_server, "vertex_ai", "allow_vertex_ai", environment)
    return port_of(server, "Vertex AI HTTPService")


def to(target: str, status: int, phrase: str, body: bytes = b"") -> Row:
    """A prediction that is redirected."""
    return "POST", "/predict", body, {REDIRECT: target}, status, phrase


FORBIDDEN = (
    *("v2/repository/models/echo/unload", "v2/repository/models/echo/load"),
    *("v2/systemsharedmemory/region/r/register", "v2/systemsharedmemory/unregister"),
    *("v2/cudasharedmemory/region/r/register", "v2/cudasharedmemory/unregister"),
)
UNREACHABLE = (
    *("v2/models/text/generate", "v2/models/text/generate_stream", "v2/trace/setting"),
    *("v2/logging", "/v2", "health"),
)
VERTEX_ROWS: dict[str, Row] = {
    "health": ("GET", "/health", b"", {}, 200, ""),
    "a prediction": ("POST", "/predict", PAIR, {}, 200, '"data":[2,4,6,8]'),
    "a prediction that fails": ("POST", "/predict", b"{", {}, 500, "failed to parse the request"),
    "an unknown path": ("GET", "/v2/health/ready", b"", {}, 400, ""),
    "metadata": to("v2", 200, '"name":"triton"'),
    "another model": to("v2/models/echo/infer", 200, '"data":[1.0,2.0]', request(X)),
    "a version": to("v2/models/pair/versions/1/infer", 200, '"model_version":"1"', PAIR),
    "an unknown model": to("v2/models/absent", 404, "Request for unknown model: 'absent'"),
    "the index": to("v2/repository/index", 200, '"name":"echo"'),
    "the metrics": to("metrics", 200, "nv_inference_request_success{"),
    **{f"not {path}": to(path, 403, "", parameters()) for path in FORBIDDEN},
    **{f"no {path}": to(path, 400, "", b"{}") for path in UNREACHABLE},
}


@pytest.mark.parametrize("row", VERTEX_ROWS)
def test_vertex_ai(platform: int, row: str) -> None:
    check(platform, VERTEX_ROWS[row])


def test_vertex_ai_tells_the_length_of_json_in_the_content_type(platform: int) -> None:
    headers = {"Content-Type": f"{VERTEX}{len(BINARY)}", REDIRECT: "v2/models/echo/infer"}
    found = ask(platform, "POST", "/predict", BINARY + NUMBERS, headers)
    check_binary(found, VERTEX)
    assert found.headers["content-type"] != OCTETS
