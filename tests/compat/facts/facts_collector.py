"""A collector of OpenTelemetry for the tables of facts: it keeps what a server sends to it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from server_harness import ADDRESS


class _Handler(BaseHTTPRequestHandler):
    """Takes what is sent and thanks for it."""

    def do_POST(self) -> None:
        """Keep the path, the type and the body."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kept: Any = self.server
        kept.received.append((self.path, self.headers["Content-Type"], body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Collector(ThreadingHTTPServer):
    """A collector on a free port; `received` are the path, type and body of each message."""

    def __init__(self) -> None:
        super().__init__((ADDRESS, 0), _Handler)
        self.received: list[tuple[str, str, bytes]] = []

    @property
    def url(self) -> str:
        """Where it wants to be sent to."""
        return f"http://{ADDRESS}:{self.server_address[1]}/v1/traces"

    def messages(self) -> list[Any]:
        """What was sent."""
        service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        return [service.ExportTraceServiceRequest.FromString(body) for *_, body in self.received]

    def spans(self) -> list[Any]:
        """Every span in the order in which they came."""
        return [
            span
            for message in self.messages()
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that runs."""
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


def attributes(owner: Any) -> dict[str, Any]:
    """The attributes of a span or of a sender."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in owner.attributes}
