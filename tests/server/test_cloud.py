"""The front ends of cloud platforms, on a real server."""

import json
from collections.abc import Callable
from pathlib import Path

from server_harness import Answer, Running, ask, launch, write_python_model

CONFIG = """
name: "double"
input { name: "X" data_type: TYPE_INT32 dims: [ 2 ] }
output { name: "Y" data_type: TYPE_INT32 dims: [ 2 ] }
"""
BODY = 'def execute(self, requests):\n    return [answer(Y=2 * read(r, "X")) for r in requests]\n'
BROKEN = 'def initialize(self, args):\n    raise MemoryError("no room")\n' + BODY
INFER = {"inputs": [{"name": "X", "datatype": "INT32", "shape": [2], "data": [1, 2]}]}
REDIRECT = "X-Vertex-Ai-Triton-Redirect"


def port_of(server: Running, service: str) -> int:
    """The port of a front end, by the line it has logged."""
    return int(str(server.log.wait(f"Started {service} at ")["event"]).rpartition(":")[2])


def switched_on(folder: Path, plugin: str, *lines: str) -> str:
    """The flag that names a file with settings for a plug-in on a free port of this host."""
    file = folder / "plugins.toml"
    file.write_text("\n".join([f"[plugins.{plugin}]", 'address = "127.0.0.1"', "port = 0", *lines]))
    return f"--plugins={file}"


def data(answer: Answer) -> list[int]:
    """The data of the only output of an answer that must be good."""
    assert answer.status == 200, answer.body
    found: list[int] = answer.json["outputs"][0]["data"]
    return found


def test_sagemaker_loads_what_it_has_unpacked(
    start_server: Callable[..., Running], tmp_path: Path
) -> None:
    (tmp_path / "repository").mkdir()
    write_python_model(tmp_path / "unpacked", "double", CONFIG, BODY)
    write_python_model(tmp_path / "broken", "double", CONFIG, BROKEN)
    plugins = switched_on(tmp_path, "sagemaker", "allow_sagemaker = true")
    server = start_server(tmp_path / "repository", "--model-control-mode=explicit", plugins)
    port = port_of(server, "Sagemaker HTTPService")
    sent = json.dumps(INFER).encode()

    def load(name: str, url: str) -> Answer:
        body = json.dumps({"model_name": name, "url": str(tmp_path / url)}).encode()
        return ask(port, "POST", "/models", body)

    assert ask(port, "GET", "/ping").status == 200
    assert load("hash", "unpacked").status == 200  # the model's directory lies there
    assert load("other", "unpacked/double").status == 200  # that is the model's directory
    for name in ("hash", "other"):
        assert data(ask(port, "POST", f"/models/{name}/invoke", sent)) == [2, 4]
    assert load("hash", "unpacked").status == 409
    refused = load("broken", "broken")
    assert (refused.status, "no room" in refused.error) == (507, True)
    assert ask(port, "DELETE", "/models/hash").status == 200
    assert server.index()["hash"] == ("UNAVAILABLE", "unloaded")
    assert ask(port, "POST", "/models/hash/invoke", sent).status == 404
    listed = ask(port, "GET", "/models").json["models"]
    assert [model["modelName"] for model in listed] == ["other"]
    assert load("hash", "unpacked").status == 200
    assert data(ask(port, "POST", "/models/hash/invoke", sent)) == [2, 4]


def test_vertex_ai_predicts_with_the_only_model(
    start_server: Callable[..., Running], tmp_path: Path
) -> None:
    write_python_model(tmp_path / "repository", "double", CONFIG, BODY)
    plugins = switched_on(tmp_path, "vertex_ai")
    aip = {"MODE": "PREDICTION", "HEALTH_ROUTE": "/health", "PREDICT_ROUTE": "/predict"}
    environment = {f"AIP_{name}": value for name, value in aip.items()}
    server = start_server(tmp_path / "repository", plugins, environment=environment)
    port = port_of(server, "Vertex AI HTTPService")
    assert set(server.ports) == {"Metrics"}  # neither HTTP nor gRPC
    assert ask(port, "GET", "/health").status == 200
    sent = json.dumps(INFER).encode()
    assert data(ask(port, "POST", "/predict", sent)) == [2, 4]
    page = ask(port, "POST", "/predict", headers={REDIRECT: "metrics"}).body
    assert b'nv_inference_request_success{model="double",version="1"} 1' in page


def test_a_port_beside_the_safe_range_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    plugins = switched_on(tmp_path, "sagemaker", "allow_sagemaker = true")
    ports = [f"--{name}-port=2500" for name in ("grpc", "metrics")]
    flags = ["--sagemaker-safe-port-range=2000-3000", "--http-port=8000", *ports]
    server = launch(tmp_path / "repository", plugins, *flags)
    assert server.wait_exit() == 1
    assert "--http-port must be from 2000 to 3000, is 8000" in server.log.text
