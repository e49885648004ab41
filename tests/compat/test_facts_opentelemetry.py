"""The trace mode opentelemetry: what is sent to a collector, and what is told of its settings."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from facts_collector import Collector, attributes, collecting
from facts_grpc import echo, many, service_pb2, service_pb2_grpc
from facts_grpc import grpc as library
from facts_harness import A, B, request, write_models
from server_harness import ADDRESS, Running, launch

pytest.importorskip("opentelemetry.sdk", reason="the extra 'opentelemetry' is missing")

CALLER, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = f"00-{CALLER}-{PARENT}-01"
MODE = ("mode=opentelemetry", "level=TIMESTAMPS")
MODELS = ("echo", "pair", "many")
MODEL = ["REQUEST_START", "QUEUE_START", "REQUEST_END"]
COMPUTE = ["COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END"]
PAIR = request(A, B, id="mine")

Start = Callable[..., Running]


def started(
    folder: Path, start_server: Start, *config: str, environment: dict[str, str] | None = None
) -> Running:
    """A server in that mode."""
    flags = [*(f"--load-model={name}" for name in MODELS), "--model-control-mode=explicit"]
    flags += [f"--trace-config={value}" for value in (*MODE, *config)]
    given = {"NO_PROXY": ADDRESS, **(environment or {})}
    return start_server(write_models(folder / "models"), *flags, environment=given)


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory, start_server: Start) -> Iterator[Collector]:
    """What a server sends that traces no request but those whose callers do: one over HTTP, one
    over gRPC and one on a stream of them; others have no context, or none that is valid."""
    with collecting() as collector:
        options = f"opentelemetry,url={collector.url}", "opentelemetry,resource=zone=a"
        server = started(tmp_path_factory.mktemp("otel"), start_server, "rate=0", *options)
        path = "/v2/models/pair/infer"
        assert server.post(path, PAIR, traceparent=CONTEXT).status == 200
        assert server.post(path, PAIR, traceparent=CONTEXT.replace("00-", "ff-", 1)).status == 200
        assert server.post(path, PAIR).status == 200
        with library.insecure_channel(server.grpc_url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            metadata = (("traceparent", CONTEXT),)
            stub.ModelInfer(echo(), timeout=30, metadata=metadata)
            stub.ModelInfer(echo(id="untraced"), timeout=30)
            asked = iter([many(2, id="twice")])
            assert len(list(stub.ModelStreamInfer(asked, timeout=30, metadata=metadata))) == 2
        assert server.stop() == 0
        yield collector


def tree(sent: Collector, model: str) -> tuple[Any, Any, Any]:
    """The spans of the request of a model: its root, the model's own, the computation's."""
    spans = sent.spans()
    [own] = [span for span in spans if span.name == model]
    [root] = [span for span in spans if span.span_id == own.parent_span_id]
    [compute] = [span for span in spans if span.parent_span_id == own.span_id]
    return root, own, compute


def events(span: Any) -> list[str]:
    """The names of what happened in a span, in order of time."""
    assert list(span.events) == sorted(span.events, key=lambda event: event.time_unix_nano)
    return [event.name for event in span.events]


def test_it_is_otlp_over_http(sent: Collector) -> None:
    assert {about[:2] for about in sent.received} == {("/v1/traces", "application/x-protobuf")}


def test_the_sender_is_named(sent: Collector) -> None:
    for message in sent.messages():
        for entry in message.resource_spans:
            about = attributes(entry.resource)
            assert about["service.name"] == "triton-inference-server"
            assert about["zone"] == "a"


def test_only_requests_with_a_valid_context_are_traced_at_a_rate_of_zero(sent: Collector) -> None:
    names = sorted(span.name for span in sent.spans())
    assert names == sorted([*(["InferRequest", "compute"] * 3), "echo", "many", "pair"])


@pytest.mark.parametrize("model", MODELS)
def test_a_request_is_three_spans_below_its_callers(sent: Collector, model: str) -> None:
    root, own, compute = tree(sent, model)
    assert (root.name, compute.name) == ("InferRequest", "compute")
    assert {span.trace_id.hex() for span in (root, own, compute)} == {CALLER}
    assert root.parent_span_id.hex() == PARENT
    assert root.start_time_unix_nano <= own.start_time_unix_nano <= compute.start_time_unix_nano
    assert compute.end_time_unix_nano <= own.end_time_unix_nano <= root.end_time_unix_nano


@pytest.mark.parametrize(
    ("model", "identity"), [("pair", "mine"), ("echo", None), ("many", "twice")]
)
def test_what_the_span_of_a_model_says(sent: Collector, model: str, identity: str | None) -> None:
    root, own, _ = tree(sent, model)
    about = attributes(own)
    assert about.pop("triton.trace_id") > 0
    assert about.pop("triton.request_id", None) == identity
    assert about == {
        "triton.model_name": model,
        "triton.model_version": 1,
        "triton.trace_parent_id": 0,
    }
    assert attributes(root) == {}


@pytest.mark.parametrize(
    ("model", "begin", "end"),
    [
        ("pair", ["HTTP_RECV_START", "HTTP_RECV_END"], ["HTTP_SEND_START", "HTTP_SEND_END"]),
        (
            "echo",
            ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END"],
            ["GRPC_SEND_START", "GRPC_SEND_END"],
        ),
    ],
)
def test_what_happened_is_an_event_of_a_span(
    sent: Collector, model: str, begin: list[str], end: list[str]
) -> None:
    root, own, compute = tree(sent, model)
    assert events(root) == [*begin, "INFER_RESPONSE_COMPLETE", *end]
    assert (events(own), events(compute)) == (MODEL, COMPUTE)


DEFAULTS = {
    "url": "http://localhost:4318/v1/traces",
    "resource": "service.name=triton-inference-server",
    "bsp_max_queue_size": "2048",
    "bsp_schedule_delay": "5000",
    "bsp_max_export_batch_size": "512",
}


@pytest.mark.parametrize(
    ("config", "environment", "changed"),
    [
        ((), {}, {}),
        (
            ("opentelemetry,bsp_schedule_delay=70", "opentelemetry,resource=service.name=mine"),
            {"OTEL_BSP_SCHEDULE_DELAY": "80", "OTEL_BSP_MAX_QUEUE_SIZE": "1000"},
            {
                "resource": "service.name=mine",
                "bsp_schedule_delay": "70",
                "bsp_max_queue_size": "1000",
            },
        ),
        ((), {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "9"}, {"bsp_max_export_batch_size": "9"}),
    ],
)
def test_what_is_told_of_the_settings(
    tmp_path: Path,
    start_server: Start,
    config: tuple[str, ...],
    environment: dict[str, str],
    changed: dict[str, str],
) -> None:
    server = started(tmp_path, start_server, *config, environment=environment)
    told = server.get("/v2/trace/setting").json
    assert told == {
        "trace_level": ["TIMESTAMPS"],
        "trace_rate": "1000",
        "trace_count": "-1",
        "trace_mode": "opentelemetry",
        **DEFAULTS,
        **changed,
    }
    with library.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        over_grpc = stub.TraceSetting(service_pb2.TraceSettingRequest(), timeout=30).settings
    assert {key: list(value.value) for key, value in over_grpc.items()} == {
        key: value if isinstance(value, list) else [value] for key, value in told.items()
    }
    assert server.stop() == 0


def test_tensors_are_not_sent(tmp_path: Path) -> None:
    flags = [f"--trace-config={value}" for value in (*MODE, "level=TENSORS", "rate=1")]
    (tmp_path / "models").mkdir()
    running = launch(tmp_path / "models", *flags).wait_started()
    assert "level=TENSORS has no effect: spans carry no tensors" in running.log.text
    assert running.stop() == 0
