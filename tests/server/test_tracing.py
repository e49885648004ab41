"""Tracing with a real server: the file it leaves, the collector it sends to, and its flags."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from server_harness import ADDRESS, Running, launch, write_python_model

TENSORS = """
input { name: "X" data_type: TYPE_FP32 dims: [ 3 ] }
output { name: "Y" data_type: TYPE_FP32 dims: [ 3 ] }
"""
ECHO = """
def execute(self, requests):
    return [answer(Y=read(r, "X")) for r in requests]
"""
REQUEST = ("X", "FP32", [1, 2, 3])
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
KERNEL = (
    *("REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END"),
    *("COMPUTE_OUTPUT_START", "COMPUTE_END", "INFER_RESPONSE_COMPLETE", "REQUEST_END"),
)

Start = Callable[..., Running]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_python_model(tmp_path / "models", "echo", TENSORS, ECHO)
    return tmp_path / "models"


def traced(file: Path) -> dict[int, list[str]]:
    """The names of the marks of every trace in a file, by its id."""
    found: dict[int, list[str]] = {}
    for record in json.loads(file.read_text()):
        names = found.setdefault(record["id"], [])
        names += [mark["name"] for mark in record.get("timestamps", [])]
    return found


def test_the_file_is_whole_after_a_signal(
    repository: Path, tmp_path: Path, start_server: Start
) -> None:
    file = tmp_path / "traces.json"
    flags = [f"--trace-config=triton,file={file}", "--trace-config", "rate=2"]
    server = start_server(repository, "--trace-config=level=TIMESTAMPS", *flags)
    for _ in range(4):
        assert server.infer("echo", REQUEST).status == 200
    assert not file.exists()
    assert server.stop() == 0
    marks = traced(file)
    assert len(marks) == 2
    for names in marks.values():
        assert set(names) == {
            *KERNEL,
            *(f"HTTP_{way}_{end}" for way in ("RECV", "SEND") for end in ("START", "END")),
        }


def test_clients_see_and_change_the_settings(
    repository: Path, tmp_path: Path, start_server: Start
) -> None:
    client_module = pytest.importorskip("tritonclient.http")
    file = tmp_path / "traces.json"
    server = start_server(repository, f"--trace-config=triton,file={file}")
    client = client_module.InferenceServerClient(server.http_url)
    settings = client.get_trace_settings()
    assert (settings["trace_level"], settings["trace_file"]) == (["OFF"], str(file))
    wanted = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "1"}
    changed = client.update_trace_settings("echo", settings=wanted)
    assert {key: changed[key] for key in wanted} == wanted
    for _ in range(2):
        server.infer("echo", REQUEST)
    assert client.get_trace_settings("echo")["trace_count"] == "0"
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    client.close()
    server.stop()
    assert len(traced(file.with_name("traces.json.0"))) == 1


def test_the_deprecated_flags_still_work(
    repository: Path, tmp_path: Path, start_server: Start
) -> None:
    file = tmp_path / "traces.json"
    flags = [f"--trace-file={file}", "--trace-level=TENSORS", "--trace-level=TIMESTAMPS"]
    server = start_server(repository, *flags, "--trace-rate=1", "--trace-log-frequency=1")
    server.log.wait("--trace-rate is deprecated; write --trace-config rate=<value>")
    server.infer("echo", REQUEST)
    server.stop()
    records = json.loads(file.with_name("traces.json.0").read_text())
    data = [record["tensor"]["data"] for record in records if "tensor" in record]
    assert data == ["1,2,3"] * 3


class Collector:
    """Keeps what a server sends to it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer((ADDRESS, 0), Handler)
        self.url = f"http://{ADDRESS}:{self.server.server_address[1]}/v1/traces"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def spans(self) -> dict[str, Any]:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb

        messages = [pb.ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return {
            span.name: span
            for message in messages
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.sdk", reason="the extra 'opentelemetry' is missing")
    made = Collector()
    yield made
    made.stop()


OPENTELEMETRY = ("--trace-config=mode=opentelemetry", "--trace-config=level=TIMESTAMPS")


def test_a_callers_trace_goes_on_in_the_server(
    repository: Path, start_server: Start, collector: Collector
) -> None:
    flags = [*OPENTELEMETRY, "--trace-config=rate=0"]
    url = f"--trace-config=opentelemetry,url={collector.url}"
    server = start_server(repository, *flags, url, environment={"NO_PROXY": ADDRESS})
    tensor = {"name": "X", "datatype": "FP32", "shape": [3], "data": [1, 2, 3]}
    body = json.dumps({"id": "mine", "inputs": [tensor]}).encode()
    assert server.infer("echo", REQUEST).status == 200
    sent = server.post("/v2/models/echo/infer", body, traceparent=f"00-{TRACE}-{SPAN}-01")
    assert sent.status == 200
    assert server.get("/v2/trace/setting").json["url"] == collector.url
    assert server.stop() == 0
    spans = collector.spans()
    assert set(spans) == {"InferRequest", "echo", "compute"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert spans["InferRequest"].parent_span_id.hex() == SPAN
    events = {name: [event.name for event in span.events] for name, span in spans.items()}
    assert events["echo"] == ["REQUEST_START", "QUEUE_START", "REQUEST_END"]
    assert events["InferRequest"][0] == "HTTP_RECV_START"
    assert events["InferRequest"][-1] == "HTTP_SEND_END"


@pytest.mark.slow
def test_a_collector_that_is_gone_does_not_keep_the_server(
    repository: Path, start_server: Start, collector: Collector
) -> None:
    flags = [*OPENTELEMETRY, "--trace-config=rate=1"]
    url = "--trace-config=opentelemetry,url=http://127.0.0.1:9/v1/traces"
    server = start_server(repository, *flags, url, environment={"NO_PROXY": ADDRESS})
    for _ in range(3):
        assert server.infer("echo", REQUEST).status == 200
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("flag", "phrase"),
    [
        ("rate=often", "--trace-config rate must be a number from 0 to 4294967295, got 'often'"),
        ("triton,fil=x", "--trace-config: unknown key 'fil' in mode 'triton'"),
    ],
)
def test_a_flag_that_is_wrong_ends_the_server(repository: Path, flag: str, phrase: str) -> None:
    running = launch(repository, f"--trace-config={flag}")
    assert running.wait_exit() == 1
    [error] = [line for line in running.log.lines if line.get("level") == "error"]
    assert error["event"].startswith(phrase)
