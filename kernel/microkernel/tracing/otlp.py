"""Sends traces to a collector, by OTLP over HTTP.

Imports OpenTelemetry's SDK, which an extra brings, so this module is imported only where its mode
is chosen.
"""

import logging
import time

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from microkernel.tracing.context import SpanId, continued, parse
from microkernel.tracing.options import OtlpOptions
from microkernel.tracing.spans import Span, tree
from microkernel.tracing.writer import Ended, Item

log = structlog.get_logger()

SCOPE = "triton-server"
"""The instrumentation scope, by Triton's name."""
MOST_EVENTS = 4096
"""How many events of a span are sent; the first ones are left out where there are more."""
_QUIET_SECONDS = 60.0


class _Ids(IdGenerator):
    """Gives out the numbers of the span that is made next, which were chosen when its request
    came."""

    def __init__(self) -> None:
        self.next = SpanId(1, 1)

    def generate_trace_id(self) -> int:
        return self.next.trace

    def generate_span_id(self) -> int:
        return self.next.span


class OtlpSink:
    """Turns traces into spans and hands them to a batch processor.

    A collector that does not answer costs the spans beyond the processor's queue, and one line of
    the log a minute.
    """

    def __init__(self, options: OtlpOptions) -> None:
        _quieten()
        self._ids = _Ids()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create(dict(options.resource)),
            shutdown_on_exit=False,
            id_generator=self._ids,
            span_limits=SpanLimits(max_events=MOST_EVENTS),
        )
        self._exporter = OTLPSpanExporter(endpoint=options.url)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=options.bsp_max_queue_size,
                schedule_delay_millis=options.bsp_schedule_delay,
                max_export_batch_size=options.bsp_max_export_batch_size,
            )
        )
        self._tracer = self._provider.get_tracer(SCOPE)

    def write(self, item: Item) -> None:
        """See `Sink.write`."""
        if not isinstance(item, Ended):
            return
        root = tree(item.trace)
        caller = parse(root.parent)
        outside = Context() if caller is None else _context(caller, root.parent_state)
        to_epoch = time.time_ns() - time.monotonic_ns()
        self._emit(root, continued(parse(item.trace.context)), outside, to_epoch)

    def _emit(self, span: Span, number: SpanId, parent: Context, to_epoch: int) -> None:
        self._ids.next = number
        made = self._tracer.start_span(
            span.name,
            parent,
            kind=SpanKind.SERVER if span.is_root else SpanKind.INTERNAL,
            attributes=span.attributes,
            start_time=span.start + to_epoch,
        )
        for name, ns in span.events:
            made.add_event(name, timestamp=ns + to_epoch)
        below = set_span_in_context(made, Context())
        for child in span.children:
            self._emit(child, parse(child.context) or continued(number), below, to_epoch)
        made.end(max(span.end, span.start) + to_epoch)

    def close(self) -> None:
        """See `Sink.close`."""
        self._provider.shutdown()

    def give_up(self) -> None:
        """See `Sink.give_up`."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK leaves it so


def _context(caller: SpanId, state: str) -> Context:
    span = SpanContext(
        caller.trace,
        caller.span,
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
        trace_state=TraceState.from_header([state]) if state else TraceState(),
    )
    return set_span_in_context(NonRecordingSpan(span), Context())


class _Seldom(logging.Handler):
    """Forwards what the libraries say to our log, one line a minute at most: a collector that is
    down would fill it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._after = 0.0
        self._kept_back = 0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now < self._after:
            self._kept_back += 1
            return
        self._after = now + _QUIET_SECONDS
        kept_back, self._kept_back = self._kept_back, 0
        log.warning("traces may be lost", reason=record.getMessage(), more_since_last=kept_back)


def _quieten() -> None:
    library = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _Seldom) for handler in library.handlers):
        library.addHandler(_Seldom())
    library.propagate = False
