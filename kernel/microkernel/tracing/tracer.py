"""Tracing as the server uses it: traces begin and end here, and the settings change here."""

import itertools
import time
from collections.abc import Iterable

from microkernel.port import TraceChanges, TraceContext, TraceSettings
from microkernel.request import InferRequest
from microkernel.trace import Trace
from microkernel.tracing.book import TraceBook
from microkernel.tracing.context import SpanId, continued, parse, state, traceparent
from microkernel.tracing.sampler import OPENTELEMETRY, Sampler
from microkernel.tracing.writer import Closed, Ended, Sink, TraceWriter

MOST_CHILDREN = 1024
"""How many requests that one request causes are traced with it."""


class Tracer:
    """Decides which requests are traced, by the settings in force, and hands ended traces on.

    `active` says whether any request that is not the child of a traced one may be traced: callers
    look at it first, so that tracing costs nothing where it is off.
    """

    def __init__(self, start: TraceSettings | None = None, sink: Sink | None = None) -> None:
        """`sink` is where traces go; None where the settings can never produce one."""
        start = start or TraceSettings()
        self._book = TraceBook(start)
        self._opentelemetry = start.trace_mode == OPENTELEMETRY
        self._writer = TraceWriter(sink) if sink is not None else None
        self._numbers = itertools.count(1)
        self._samplers: dict[int, Sampler] = {}  # those with open traces, by their groups
        self.active = self._book.active

    def settings(self, model: str) -> TraceSettings:
        """The settings in force for a model, "" for the global ones."""
        return self._book.sampler(model).settings

    def change(self, model: str, changes: TraceChanges) -> None:
        """Change settings; see `Port.trace_settings`. Counters start again."""
        self._close(self._book.change(model, changes))
        self.active = self._book.active

    def _close(self, replaced: Iterable[Sampler]) -> None:
        for sampler in replaced:
            sampler.retired = True
            if sampler.used and sampler.over:
                self._put(Closed(sampler.group, indexed=sampler.indexed))

    def begin(self, request: InferRequest, version: int, context: TraceContext) -> Trace | None:
        """A trace for a request of a model version, None where it is not sampled; see
        `Port.begin_trace`."""
        if request.trace is not None:
            return self._child(request, version, request.trace)
        sampler = self._book.sampler(request.model_name)
        if not sampler.active:
            return None
        caller = self._caller(context)
        if not sampler.sample(forced=caller is not None):
            return None
        if sampler.left == 0:
            self.active = self._book.active
        self._samplers[sampler.group] = sampler
        trace = Trace(next(self._numbers), request.model_name, version, request.id)
        trace.group = sampler.group
        trace.wants_timestamps = sampler.wants_timestamps
        trace.wants_tensors = sampler.wants_tensors
        if self._opentelemetry:
            trace.context = traceparent(continued(caller))
        if caller is not None:
            trace.caller = traceparent(caller)
            trace.caller_state = state(context.tracestate)
        return trace

    def _caller(self, context: TraceContext) -> SpanId | None:
        if not self._opentelemetry or not context.traceparent:
            return None
        return parse(context.traceparent)

    def _child(self, request: InferRequest, version: int, parent: Trace) -> Trace | None:
        if len(parent.children) >= MOST_CHILDREN:
            return None
        trace = Trace(next(self._numbers), request.model_name, version, request.id, parent.id)
        trace.group = parent.group
        trace.wants_timestamps = parent.wants_timestamps
        trace.wants_tensors = parent.wants_tensors
        if parent.context:
            trace.context = traceparent(continued(parse(parent.context)))
        parent.children.append(trace)
        return trace

    def end(self, trace: Trace) -> None:
        """Hand a trace in; a child goes with its parent. Ending one twice changes nothing."""
        if trace.ended_ns:
            return
        trace.ended_ns = time.monotonic_ns()
        sampler = self._samplers.get(trace.group)
        if trace.parent or sampler is None:
            return
        sampler.ended()
        self._put(Ended(trace, sampler.log_frequency))
        if sampler.complete or sampler.over:
            self._put(Closed(sampler.group, indexed=sampler.indexed))
        if sampler.idle:
            del self._samplers[trace.group]

    def _put(self, item: Ended | Closed) -> None:
        if self._writer is not None:
            self._writer.put(item)

    async def close(self, limit: float) -> None:
        """Write what has been handed in, for `limit` seconds at most."""
        if self._writer is not None:
            await self._writer.close(limit)
