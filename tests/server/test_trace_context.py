"""The trace of a request, as the model sees it in its worker."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_harness import ADDRESS, Running, write_python_model

CONFIG = """
input { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "Y" data_type: TYPE_STRING dims: [ 1 ] }
parameters { key: "WORKER" value { string_value: "%s" } }
"""
MODEL = """
def execute(self, requests):
    pb_utils.Logger.log_info("a line of the model")
    contexts = [str(request.trace().get_context()) for request in requests]
    return [answer(Y=np.array([context], np.object_)) for context in contexts]
"""
CALLER = "0af7651916cd43dd8448eb211c80319c"
NOBODY = "--trace-config=opentelemetry,url=http://127.0.0.1:9/v1/traces"

Start = Callable[..., Running]


def said(server: Running, model: str, **headers: str) -> Any:
    """The context that the model was given."""
    tensor = {"name": "X", "datatype": "INT32", "shape": [1], "data": [1]}
    body = json.dumps({"id": "mine", "inputs": [tensor]}).encode()
    answer = server.post(f"/v2/models/{model}/infer", body, **headers)
    assert answer.status == 200, answer.body
    return answer.json["outputs"][0]["data"][0]


def test_a_model_can_go_on_with_the_trace(start_server: Start, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra 'opentelemetry' is missing")
    for worker in ("instance", "thread"):
        write_python_model(tmp_path / "models", worker, CONFIG % worker, MODEL)
    flags = ["mode=opentelemetry", "level=TIMESTAMPS", "rate=0"]
    server = start_server(
        tmp_path / "models",
        *(f"--trace-config={flag}" for flag in flags),
        NOBODY,
        environment={"NO_PROXY": ADDRESS, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"},
    )
    for worker in ("instance", "thread"):
        assert said(server, worker) == "None"
        context = json.loads(said(server, worker, traceparent=f"00-{CALLER}-b7ad6b7169203331-01"))
        assert re.fullmatch(rf"00-{CALLER}-[0-9a-f]{{16}}-01", context["traceparent"])
    line = server.log.wait("a line of the model", count=2)
    assert (line["trace_ids"], line["request_ids"]) == ([CALLER], ["mine"])


def test_a_trace_of_another_mode_has_no_context(start_server: Start, tmp_path: Path) -> None:
    write_python_model(tmp_path / "models", "m", CONFIG % "instance", MODEL)
    file = tmp_path / "traces"
    flags = [f"triton,file={file}", "level=TIMESTAMPS", "rate=1"]
    server = start_server(tmp_path / "models", *(f"--trace-config={flag}" for flag in flags))
    assert said(server, "m") == "None"
    line = server.log.wait("a line of the model")
    assert line["request_ids"] == ["mine"]
    assert line["trace_ids"] == ["1"]
