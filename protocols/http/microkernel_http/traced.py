"""The marks of HTTP on the trace of a request."""

import time
from collections.abc import Awaitable

from aiohttp import web

from microkernel import NO_CONTEXT, InferRequest, Port, Trace, TraceContext
from microkernel_http.exchange import Exchange
from microkernel_http.routes import Endpoint
from microkernel_http.served import error_type, settled

now_ns = time.monotonic_ns
"""The clock of traces."""
_SEND_START = "HTTP_SEND_START"


async def begin(
    server: Port, decoded: InferRequest, request: web.BaseRequest, start: int, end: int
) -> Trace | None:
    """Put a trace on a decoded request where it is to be traced. `start` and `end` say when its
    receiving began and ended."""
    parent = request.headers.get("traceparent")
    if parent is None:
        context = NO_CONTEXT
    else:
        context = TraceContext(parent, request.headers.get("tracestate", ""))
    trace = await server.begin_trace(decoded, context)
    if trace is not None:
        trace.mark("HTTP_RECV_START", start)
        trace.mark("HTTP_RECV_END", end)
        decoded.trace = trace
        if isinstance(request, Exchange):
            request.trace_id = trace.shown_id
    return trace


def sending(decoded: InferRequest) -> None:
    """The first bytes of the answer are sent next; said by those who send it themselves."""
    if decoded.trace is not None:
        decoded.trace.mark(_SEND_START)


async def finish(
    server: Port,
    trace: Trace,
    request: web.BaseRequest,
    answering: Awaitable[web.StreamResponse],
    endpoint: Endpoint,
) -> web.StreamResponse:
    """Wait for the answer of a traced request, an error where answering fails, send all of it, and
    hand the trace in, whatever becomes of the answer."""
    try:
        response = await settled(answering, request, error_type(endpoint))
        if all(name != _SEND_START for name, _ in trace.timestamps):
            trace.mark(_SEND_START)
        await response.prepare(request)
        await response.write_eof()
        trace.mark("HTTP_SEND_END")
        return response
    finally:
        await server.end_trace(trace)
