"""Spans as a collector receives them over OTLP, and collectors that do not."""

import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from structlog.testing import capture_logs

from microkernel import InferRequest, InvalidArgument, Trace, TraceContext
from microkernel.settings import ServerSettings
from microkernel.tracing.starting import start_tracing
from microkernel.tracing.tracer import Tracer

pytest.importorskip("opentelemetry.sdk", reason="the extra 'opentelemetry' is missing")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

CALLER = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", "vendor=7")
REQUEST = InferRequest("m", (), id="mine")


class Collector:
    """A collector on a free port, which keeps what it is sent and answers with `status`."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.status = 200
        self.asked = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.received.append((self.path, body))
                collector.asked.set()
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def resources(self) -> list[dict[str, Any]]:
        """The attributes of the sender, per message."""
        return [
            {a.key: a.value.string_value for a in entry.resource.attributes}
            for message in self._messages()
            for entry in message.resource_spans
        ]

    def spans(self) -> dict[str, Any]:
        """Every span, by name."""
        return {
            span.name: span
            for message in self._messages()
            for entry in message.resource_spans
            for scope in entry.scope_spans
            for span in scope.spans
        }

    def _messages(self) -> Iterator[Any]:
        for path, body in self.received:
            assert path == "/v1/traces"
            yield ExportTraceServiceRequest.FromString(body)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Collector()
    library = logging.getLogger("opentelemetry")
    handlers, propagate = library.handlers[:], library.propagate
    yield made
    library.handlers[:], library.propagate = handlers, propagate
    made.stop()


def start(url: str, *more: str, level: str = "TIMESTAMPS") -> Tracer:
    config = ("mode=opentelemetry", f"level={level}", f"opentelemetry,url={url}", *more)
    return start_tracing(ServerSettings(trace_config=config), {})


def begin(tracer: Tracer, context: TraceContext = CALLER, request: InferRequest = REQUEST) -> Trace:
    trace = tracer.begin(request, 3, context)
    assert trace is not None
    return trace


def run(trace: Trace) -> None:
    """Record what is recorded of a request."""
    for name in (
        *("HTTP_RECV_START", "REQUEST_START", "QUEUE_START", "COMPUTE_START"),
        *("COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END", "INFER_RESPONSE_COMPLETE"),
        *("REQUEST_END", "HTTP_SEND_END"),
    ):
        trace.mark(name)


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


async def test_a_request_continues_its_callers_trace(collector: Collector) -> None:
    tracer = start(collector.url, "rate=0", "opentelemetry,resource=zone=a")
    trace = begin(tracer)
    run(trace)
    tracer.end(trace)
    await tracer.close(30)
    spans = collector.spans()
    root, model, compute = spans["InferRequest"], spans["m"], spans["compute"]
    assert {s.trace_id.hex() for s in (root, model, compute)} == {CALLER.traceparent[3:35]}
    assert root.parent_span_id.hex() == CALLER.traceparent[36:52]
    assert model.parent_span_id == root.span_id
    assert compute.parent_span_id == model.span_id
    assert trace.context == f"00-{model.trace_id.hex()}-{model.span_id.hex()}-01"
    assert root.trace_state == CALLER.tracestate
    assert (root.kind, model.kind) == (root.SPAN_KIND_SERVER, root.SPAN_KIND_INTERNAL)
    assert attributes(model) == {
        "triton.model_name": "m",
        "triton.model_version": 3,
        "triton.trace_id": 1,
        "triton.trace_parent_id": 0,
        "triton.request_id": "mine",
    }
    [resource] = collector.resources()
    assert (resource["service.name"], resource["zone"]) == ("triton-inference-server", "a")


async def test_times_are_those_of_the_wall_clock(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 5_000)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 1_000)
    tracer = start(collector.url, "rate=1")
    trace = begin(tracer, TraceContext())
    trace.mark("REQUEST_START", 200)
    trace.mark("QUEUE_START", 300)
    trace.mark("REQUEST_END", 400)
    tracer.end(trace)
    assert trace.ended_ns == 1_000
    await tracer.close(30)
    root, model = collector.spans()["InferRequest"], collector.spans()["m"]
    assert (root.start_time_unix_nano, root.end_time_unix_nano) == (4_200, 5_000)
    assert (model.start_time_unix_nano, model.end_time_unix_nano) == (4_200, 4_400)
    assert [(event.name, event.time_unix_nano) for event in model.events] == [
        ("REQUEST_START", 4_200),
        ("QUEUE_START", 4_300),
        ("REQUEST_END", 4_400),
    ]


async def test_a_request_without_a_caller_opens_a_trace(collector: Collector) -> None:
    tracer = start(collector.url, "rate=1")
    for _ in range(2):
        trace = begin(tracer, TraceContext())
        tracer.end(trace)
        assert trace.caller == ""
    await tracer.close(30)
    messages = [ExportTraceServiceRequest.FromString(body) for _, body in collector.received]
    roots = [s for m in messages for e in m.resource_spans for c in e.scope_spans for s in c.spans]
    assert [span.name for span in roots] == ["InferRequest"] * 2
    assert len({span.trace_id for span in roots}) == 2
    assert {span.parent_span_id for span in roots} == {b""}


async def test_work_on_behalf_of_a_request_lies_below_it(collector: Collector) -> None:
    tracer = start(collector.url)
    trace = begin(tracer)
    run(trace)
    nested = begin(tracer, TraceContext(), InferRequest("step", (), trace=trace))
    run(nested)
    tracer.end(nested)
    tracer.end(trace)
    await tracer.close(30)
    spans = collector.spans()
    step = spans["step"]
    assert step.parent_span_id == spans["m"].span_id
    assert step.trace_id == spans["m"].trace_id
    assert nested.context == f"00-{step.trace_id.hex()}-{step.span_id.hex()}-01"
    assert attributes(step)["triton.trace_parent_id"] == trace.id


@pytest.mark.parametrize(
    "context",
    [TraceContext(), TraceContext("00-what-is-this"), replace(CALLER, traceparent="")],
)
def test_a_rate_of_zero_traces_only_what_callers_trace(
    collector: Collector, context: TraceContext
) -> None:
    tracer = start(collector.url, "rate=0")
    assert tracer.active
    assert tracer.begin(REQUEST, 3, context) is None
    assert tracer.begin(REQUEST, 3, CALLER) is not None


def test_a_level_of_off_traces_nothing(collector: Collector) -> None:
    tracer = start(collector.url, level="OFF")
    assert not tracer.active
    assert tracer.begin(REQUEST, 3, CALLER) is None


async def test_a_state_that_cannot_be_read_is_left_out(collector: Collector) -> None:
    tracer = start(collector.url)
    trace = begin(tracer, replace(CALLER, tracestate="=,\x00 what"))
    tracer.end(trace)
    await tracer.close(30)
    assert collector.spans()["InferRequest"].trace_state == ""


async def test_a_collector_that_is_gone_costs_spans_and_few_lines(
    collector: Collector,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    tracer = start(f"http://127.0.0.1:{port}/v1/traces", "opentelemetry,bsp_schedule_delay=1")
    others = set(threading.enumerate())
    with capture_logs() as lines:
        for _ in range(3000):
            tracer.end(begin(tracer))
        await tracer.close(0.1)
        for thread in set(threading.enumerate()) - others:
            if thread.name == "traces":
                thread.join(100)
                assert not thread.is_alive()
    events = [line["event"] for line in lines]
    assert (
        events.count("traces may be lost") == 1
    )  # of the collector, whatever the library has to say
    assert events.count("not all traces could be written in time") == 1
    assert len(events) <= 4


async def test_a_collector_that_refuses_costs_a_line(collector: Collector) -> None:
    collector.status = 400
    tracer = start(collector.url)
    tracer.end(begin(tracer))
    with capture_logs() as lines:
        await tracer.close(30)
    assert collector.received
    assert [line["event"] for line in lines] == ["traces may be lost"]


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "microkernel.tracing.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InvalidArgument, match=r"pip install 'microkernel\[opentelemetry\]'"):
        start("http://127.0.0.1:1")
