"""The W3C header, and a trace as a tree of spans."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import Trace
from microkernel.tracing.context import SpanId, continued, parse, state, traceparent
from microkernel.tracing.spans import Span, tree

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "valid"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", True),  # not sampled by the caller, which forces nevertheless
        (f" 00-{TRACE}-{SPAN}-01 ", True),
        (f"cc-{TRACE}-{SPAN}-01-what-comes", True),
        (f"00-{TRACE}-{SPAN}-01-what-comes", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{SPAN}-01", False),
        (f"00-{TRACE}-{SPAN}", False),
        (f"cc-{TRACE}-{SPAN}-01-{'x' * 600}", False),
        ("", False),
        ("x", False),
    ],
)
def test_which_headers_are_valid(header: str, valid: bool) -> None:
    found = parse(header)
    assert (found is not None) == valid
    if found is not None:
        assert found == SpanId(int(TRACE, 16), int(SPAN, 16))


@given(st.text(alphabet="0123456789abcdef-. ", max_size=80) | st.text(max_size=80))
def test_no_header_raises(header: str) -> None:
    parse(header)


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1))
def test_a_header_comes_back(trace: int, span: int) -> None:
    assert parse(traceparent(SpanId(trace, span))) == SpanId(trace, span)


def test_a_span_continues_the_callers_trace() -> None:
    caller = SpanId(5, 6)
    assert continued(caller).trace == 5
    assert continued(caller).span != 6
    assert continued(None).trace != continued(None).trace


def test_a_state_that_is_too_long_is_not_passed_on() -> None:
    assert state("a=b") == "a=b"
    assert state("a=" + "b" * 600) == ""


def shape(span: Span) -> Any:
    """Name, start, end, names of the events, and the children."""
    events = [name for name, _ in span.events]
    return (span.name, span.start, span.end, events, [shape(child) for child in span.children])


KERNEL = [
    ("REQUEST_START", 20),
    ("QUEUE_START", 21),
    ("COMPUTE_START", 30),
    ("COMPUTE_INPUT_END", 31),
    ("COMPUTE_OUTPUT_START", 50),
    ("COMPUTE_END", 51),
    ("INFER_RESPONSE_COMPLETE", 55),
    ("REQUEST_END", 55),
]
HTTP = [
    ("HTTP_RECV_START", 10),
    ("HTTP_RECV_END", 12),
    ("HTTP_SEND_START", 60),
    ("HTTP_SEND_END", 70),
]
OWN = ["COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END"]


def test_a_request_is_three_spans() -> None:
    made = tree(Trace(1, "m", 2, timestamps=[*KERNEL, *HTTP], ended_ns=71))
    root = [
        *("HTTP_RECV_START", "HTTP_RECV_END", "INFER_RESPONSE_COMPLETE"),
        *("HTTP_SEND_START", "HTTP_SEND_END"),
    ]
    compute: Any = ("compute", 30, 51, OWN, [])
    model = ("m", 20, 55, ["REQUEST_START", "QUEUE_START", "REQUEST_END"], [compute])
    assert shape(made) == ("InferRequest", 10, 71, root, [model])


def test_what_a_request_is_said_to_be() -> None:
    header = traceparent(SpanId(5, 7))
    caller = traceparent(SpanId(5, 6))
    trace = Trace(9, "m", 2, "mine", context=header, timestamps=KERNEL, ended_ns=60)
    trace.caller, trace.caller_state = caller, "a=b"
    made = tree(trace)
    [model] = made.children
    assert (made.is_root, made.parent, made.parent_state) == (True, caller, "a=b")
    assert made.attributes == {}
    assert (model.is_root, model.context) == (False, header)
    assert model.attributes == {
        "triton.model_name": "m",
        "triton.model_version": 2,
        "triton.trace_id": 9,
        "triton.trace_parent_id": 0,
        "triton.request_id": "mine",
    }


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([], ("InferRequest", 90, 90, [], [])),
        (HTTP, ("InferRequest", 10, 90, [name for name, _ in HTTP], [])),
        (
            KERNEL[:1],
            ("InferRequest", 20, 90, [], [("m", 20, 90, ["REQUEST_START"], [])]),
        ),
        (
            KERNEL[:3],
            (
                *("InferRequest", 20, 90, []),
                [
                    (
                        *("m", 20, 90, ["REQUEST_START", "QUEUE_START"]),
                        [("compute", 30, 90, ["COMPUTE_START"], [])],
                    )
                ],
            ),
        ),
    ],
)
def test_a_request_that_did_not_get_far(marks: list[tuple[str, int]], expected: Any) -> None:
    assert shape(tree(Trace(1, "m", 2, timestamps=marks, ended_ns=90))) == expected


@pytest.mark.parametrize(
    ("marks", "inside", "children"),
    [
        ([("NOTE", 40)], ["NOTE"], []),
        (
            [("X_START", 35), ("NOTE", 36), ("X_END", 40)],
            [],
            [("X", 35, 40, ["X_START", "NOTE", "X_END"], [])],
        ),
        (
            [("X_START", 33), ("Y_START", 34), ("Y_END", 35), ("X_END", 36)],
            [],
            [("X", 33, 36, ["X_START", "X_END"], [("Y", 34, 35, ["Y_START", "Y_END"], [])])],
        ),
        (
            [("X_START", 33), ("Y_START", 34), ("X_END", 36)],
            [],
            [("X", 33, 36, ["X_START", "X_END"], [("Y", 34, 36, ["Y_START"], [])])],
        ),
        ([("X_START", 33)], [], [("X", 33, 51, ["X_START"], [])]),
        ([("X_END", 33)], ["X_END"], []),
        ([("_START", 33), ("_END", 34)], ["_START", "_END"], []),
    ],
)
def test_the_events_of_a_model(
    marks: list[tuple[str, int]], inside: list[str], children: list[Any]
) -> None:
    made = tree(Trace(1, "m", 2, timestamps=[*KERNEL, *marks], ended_ns=71))
    compute = shape(made.children[0].children[0])
    assert compute == ("compute", 30, 51, [*OWN, *inside], children)


def test_an_event_outside_of_compute_is_the_models() -> None:
    made = tree(Trace(1, "m", 2, timestamps=[*KERNEL, ("NOTE", 25)], ended_ns=71))
    assert [name for name, _ in made.children[0].events][-1] == "NOTE"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["X_START", "X_END", "Y_START", "Y_END", "N"]), st.integers(1, 80)
        )
    )
)
def test_every_event_is_in_one_span_and_no_span_ends_before_it_starts(
    marks: list[tuple[str, int]],
) -> None:
    made = tree(Trace(1, "m", 2, timestamps=[*KERNEL, *marks], ended_ns=81))
    spans, events = [made], []
    for span in spans:
        spans += span.children
        events += span.events
    assert sorted(events) == sorted([*KERNEL, *marks])
    assert all(span.start <= span.end for span in spans)


def test_a_childs_span_lies_in_its_parents() -> None:
    child = Trace(2, "step", 1, parent=1, timestamps=[(n, ns + 1) for n, ns in KERNEL])
    made = tree(Trace(1, "m", 2, timestamps=KERNEL, children=[child], ended_ns=71))
    step = made.children[0].children[1]
    assert (step.name, step.start, step.end) == ("step", 21, 56)
    assert step.attributes["triton.trace_parent_id"] == 1
    assert "INFER_RESPONSE_COMPLETE" in [name for name, _ in step.events]
    assert [span.name for span in step.children] == ["compute"]
