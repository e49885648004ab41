"""A trace as a tree of spans, as OpenTelemetry shows it. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from microkernel.trace import Trace

Mark: TypeAlias = tuple[str, int]

_OF_MODEL = frozenset({"REQUEST_START", "QUEUE_START", "REQUEST_END"})
_OF_COMPUTE = frozenset(
    {"COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END"}
)
_OF_ROOT = frozenset({"INFER_RESPONSE_COMPLETE"})
_PROTOCOLS = ("HTTP_", "GRPC_")
_START, _END = "_START", "_END"


@dataclass(slots=True)
class Span:
    """A span between two moments of the monotonic clock. `context` is the `traceparent` that names
    it, "" where nobody has been told one. A root has a `parent` outside the tree, "" for none, and
    that one's `tracestate`."""

    name: str
    start: int
    end: int
    events: list[Mark] = field(default_factory=list)
    attributes: dict[str, str | int] = field(default_factory=dict)
    children: list["Span"] = field(default_factory=list)
    context: str = ""
    is_root: bool = False
    parent: str = ""
    parent_state: str = ""


def tree(trace: Trace) -> Span:
    """`InferRequest`, with the span of the model below it, and in that one `compute`, the spans of
    the model's own events `X_START` and `X_END`, and those of the trace's children."""
    marks = sorted(trace.timestamps, key=lambda mark: mark[1])
    end = max([trace.ended_ns, *(ns for _, ns in marks)])
    root = Span("InferRequest", marks[0][1] if marks else end, end, is_root=True)
    root.parent, root.parent_state = trace.caller, trace.caller_state
    root.events = [mark for mark in marks if _is_root(mark[0])]
    root.children = list(_models(trace, marks, end))
    return root


def _is_root(name: str) -> bool:
    return name in _OF_ROOT or name.startswith(_PROTOCOLS)


def _models(trace: Trace, marks: list[Mark], end: int) -> Iterator[Span]:
    """The span of the trace's model; none for a request that never reached it."""
    at = dict(marks)
    if "REQUEST_START" not in at:
        return
    model = Span(trace.model_name, at["REQUEST_START"], at.get("REQUEST_END", end))
    model.context = trace.context
    model.attributes = _attributes(trace)
    model.events = [mark for mark in marks if mark[0] in _OF_MODEL]
    inner = model
    if "COMPUTE_START" in at:
        inner = Span("compute", at["COMPUTE_START"], at.get("COMPUTE_END", model.end))
        inner.events = [mark for mark in marks if mark[0] in _OF_COMPUTE]
        model.children.append(inner)
    _nest(model, inner, [m for m in marks if m[0] not in _OF_MODEL | _OF_COMPUTE])
    for child in trace.children:
        model.children += _child(child)
    yield model


def _child(trace: Trace) -> Iterator[Span]:
    """The span of a request that another one caused. It has no root, so the root's events are
    its."""
    marks = sorted(trace.timestamps, key=lambda mark: mark[1])
    end = max([trace.ended_ns, *(ns for _, ns in marks)])
    for span in _models(trace, marks, end):
        span.events += [mark for mark in marks if _is_root(mark[0])]
        span.events.sort(key=lambda mark: mark[1])
        yield span


def _attributes(trace: Trace) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "triton.model_name": trace.model_name,
        "triton.model_version": trace.version,
        "triton.trace_id": trace.id,
        "triton.trace_parent_id": trace.parent,
    }
    if trace.request_id:
        attributes["triton.request_id"] = trace.request_id
    return attributes


def _nest(model: Span, inner: Span, marks: Iterable[Mark]) -> None:
    """Put the events that are not ours into the span in which they happened: `X_START` opens a span
    X in it, `X_END` closes it with all that were opened since. What is never closed ends with the
    span it is in."""
    opened: list[Span] = []
    for name, ns in marks:
        if _is_root(name):
            continue
        around = inner if inner.start <= ns <= inner.end else model
        if name.endswith(_START) and name != _START:
            span = Span(name.removesuffix(_START), ns, max(ns, around.end))
            (opened[-1] if opened else around).children.append(span)
            opened.append(span)
        current = opened[-1] if opened else around
        if name.endswith(_END) and (closed := _open(opened, name.removesuffix(_END))):
            while opened[-1] is not closed:
                opened.pop().end = ns
            opened.pop().end = ns
            current = closed
        current.events.append((name, ns))


def _open(opened: list[Span], name: str) -> Span | None:
    """The innermost open span of that name."""
    return next((span for span in reversed(opened) if span.name == name), None)
