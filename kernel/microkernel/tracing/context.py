"""The W3C trace context: which trace a request belongs to. Pure."""

import random
import re
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_LONGEST = 512
"""The longest header that is looked at, in characters."""


@dataclass(frozen=True, slots=True)
class SpanId:
    """A span: its own number and that of its trace. Neither is 0."""

    trace: int
    span: int


def parse(traceparent: str) -> SpanId | None:
    """The span that a `traceparent` header names; None for one that is not valid."""
    if len(traceparent) > _LONGEST:
        return None
    found = _TRACEPARENT.fullmatch(traceparent.strip())
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    trace, span = int(found[2], 16), int(found[3], 16)
    return SpanId(trace, span) if trace and span else None


def traceparent(span: SpanId) -> str:
    """The header that names a sampled span."""
    return f"00-{span.trace:032x}-{span.span:016x}-01"


def state(tracestate: str) -> str:
    """A `tracestate` header, "" for one that is too long to be passed on."""
    return tracestate if len(tracestate) <= _LONGEST else ""


def continued(caller: SpanId | None) -> SpanId:
    """A new span in the trace of a caller, or in a new trace."""
    trace = caller.trace if caller else random.getrandbits(128) or 1
    return SpanId(trace, new_span())


def new_span() -> int:
    """The number of a new span."""
    return random.getrandbits(64) or 1
