"""Response senders: their rules, and models that answer once with them."""

import contextlib
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import (
    Batch,
    Cancelled,
    InferRequest,
    InferResponse,
    Internal,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Outcome,
    Placement,
)
from microkernel_python.backend import PythonBackend
from microkernel_python.errors import TritonModelException
from microkernel_python.instance import PythonInstance
from microkernel_python.reply import Reply, SingleReply, StreamReply
from microkernel_python.request import ReceivedRequest
from microkernel_python.response import InferenceResponse, TritonError
from microkernel_python.sender import InferenceResponseSender

LIMIT = 60
"""Seconds after which what a test waits for is given up."""
ONE = np.array([1.0], dtype=np.float32)
CONFIG = ModelConfig(
    name="m",
    backend="python",
    input=(ModelInput("A", "TYPE_FP32", dims=(-1,)),),
    output=(ModelOutput("B", "TYPE_FP32", dims=(-1,)),),
)
HEAD = """
import threading
import numpy as np
import triton_python_backend_utils as pb_utils
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
GO = threading.Event()
THREADS = []
ERRORS = []
def answer(value):
    return pb_utils.InferenceResponse([pb_utils.Tensor("B", np.array([value], np.float32))])
def later(sender, value, flags=FINAL):
    def send():
        GO.wait()
        try:
            sender.send(answer(value), flags)
        except pb_utils.TritonModelException as error:
            ERRORS.append(str(error))
    THREADS.append(threading.Thread(target=send))
    THREADS[-1].start()
"""
MakeBatch = Callable[..., Batch]
Start = Callable[[str], PythonInstance]

CLOSED = "Unable to send response. Response sender has been closed."
FLAG = "Unable to send response. Unsupported flag provided."
NOTHING = "Inference Response object must be provided when the response flags is set to zero."
SECOND = "Unable to send response. Non-decoupled model cannot send more than one response."
EARLY = (
    "Unable to send response. Non-decoupled model cannot send complete final before sending a "
    "response."
)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """`start(body)`: an instance of a model whose `execute` has this body."""

    def make(body: str) -> PythonInstance:
        folder = tmp_path / "m" / "1"
        folder.mkdir(parents=True)
        lines = textwrap.indent(textwrap.dedent(body).strip(), " " * 8)
        method = f"class TritonPythonModel:\n    def execute(self, requests):\n{lines}\n"
        (folder / "model.py").write_text(HEAD + method)
        return PythonBackend().load(CONFIG, folder).instance(Placement("m_0_0", "KIND_CPU"))

    return make


def model_module() -> Any:
    return sys.modules["1.model"]


def values(outcomes: Sequence[Outcome]) -> list[float | str]:
    """Each request's number, or the last line of its error."""
    return [
        float(outcome.outputs[0].as_numpy()[0])
        if isinstance(outcome, InferResponse)
        else str(outcome).removeprefix("Failed to process the request(s) for model 'm_0_0', ")
        for outcome in outcomes
    ]


# What a model does with its requests, and what each of them gets.

UNANSWERED = "message: execute returned no response for the request, and none was sent"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a.send(answer(1), FINAL); b.send(answer(2), FINAL); return [None, None]", [1.0, 2.0]),
        ("a.send(answer(1), FINAL); b.send(answer(2), FINAL)", [1.0, 2.0]),
        ("b.send(answer(2)); a.send(answer(1)); b.send(flags=FINAL); a.send(flags=1)", [1.0, 2.0]),
        ("a.send(answer(1)); b.send(answer(2), 0)", [1.0, 2.0]),
        ("a.send(answer(1)); return [None, answer(2)]", [1.0, 2.0]),
        ("return [answer(1), answer(2)]", [1.0, 2.0]),
        ("a.send(answer(1)); return [answer(3), answer(2)]", [1.0, f"message: {SECOND}"]),
        ("b.send(answer(2), FINAL); return [answer(3), answer(4)]", [f"message: {SECOND}", 2.0]),
        ("return [answer(1), None]", [1.0, UNANSWERED]),
        ("pass", [UNANSWERED, UNANSWERED]),
        (
            "a.send(answer(1)); return ['x', None]",
            [1.0, "message: Expected an 'InferenceResponse'"],
        ),
        ("a.send(answer(1)); return [None]", [1.0, "message: Number of InferenceResponse objects"]),
        ("a.send(answer(1)); raise ValueError('no')", [1.0, "message: ValueError: no\n\nAt:"]),
        (
            "a.send(answer(1)); a.send(answer(2))",
            [1.0, f"message: TritonModelException: {SECOND}\n\nAt:"],
        ),
        (
            "b.send(answer(1)); a.send(flags=FINAL)",
            [f"message: TritonModelException: {EARLY}\n\nAt:", 1.0],
        ),
    ],
)
def test_what_is_sent_and_what_is_returned(
    start: Start, make_batch: MakeBatch, body: str, expected: list[float | str]
) -> None:
    senders = "a, b = [request.get_response_sender() for request in requests]\n"
    outcomes = start(senders + body).execute(make_batch([{"A": ONE}, {"A": ONE}]))
    for found, wanted in zip(values(outcomes), expected, strict=True):
        assert str(found).startswith(str(wanted))


def test_nothing_sent_and_something_raised_fails_the_batch(
    start: Start, make_batch: MakeBatch
) -> None:
    instance = start("requests[0].get_response_sender().send(flags=FINAL)")
    with pytest.raises(Internal, match=f"message: TritonModelException: {EARLY}\n\nAt:"):
        instance.execute(make_batch([{"A": ONE}]))


def test_execute_waits_for_what_is_sent_later(
    start: Start, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three requests one is answered at once, one by what is returned, and one when `execute`
    has returned; the array that was returned may be used again by then."""

    class Waiting(SimpleQueue[None]):
        def get(self, block: bool = True, timeout: float | None = None) -> None:
            model.ARRAY[0] = 9
            model.GO.set()
            super().get(block, timeout)

    monkeypatch.setattr("microkernel_python.reply.SimpleQueue", Waiting)
    instance = start(
        """
        first, _, last = [request.get_response_sender() for request in requests]
        first.send(answer(1), FINAL)
        later(last, 3)
        return [None, pb_utils.InferenceResponse([pb_utils.Tensor("B", ARRAY)]), None]
        """
    )
    model = model_module()
    model.ARRAY = np.array([2], np.float32)
    assert values(instance.execute(make_batch([{"A": ONE}] * 3))) == [1.0, 2.0, 3.0]
    assert (model.ARRAY[0], model.ERRORS) == (9, [])


def test_what_is_sent_is_taken_at_once(start: Start, make_batch: MakeBatch) -> None:
    instance = start(
        """
        array = np.zeros(1, np.float32)
        for request in requests:
            array[0] += 1
            response = pb_utils.InferenceResponse([pb_utils.Tensor("B", array)])
            request.get_response_sender().send(response)
        """
    )
    assert values(instance.execute(make_batch([{"A": ONE}] * 2))) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("return [answer(1)]", SECOND),
        ("raise ValueError", CLOSED),
        ("return []", CLOSED),
    ],
)
def test_what_is_sent_after_the_answer_is_refused_in_the_thread_that_sends(
    start: Start, make_batch: MakeBatch, body: str, error: str
) -> None:
    instance = start(f"later(requests[0].get_response_sender(), 2)\n{body}")
    with contextlib.suppress(Internal):
        assert values(instance.execute(make_batch([{"A": ONE}]))) == [1.0]
    model = model_module()
    model.GO.set()
    model.THREADS[0].join(LIMIT)
    assert [error] == model.ERRORS


def test_a_sender_that_is_made_after_the_answer_is_closed(
    start: Start, make_batch: MakeBatch
) -> None:
    instance = start("KEPT.extend(requests)\nreturn [answer(1)]")
    model = model_module()
    model.KEPT = []
    assert values(instance.execute(make_batch([{"A": ONE}]))) == [1.0]
    assert refusal(model.KEPT[0].get_response_sender(), given=True, flags=1) == CLOSED


def test_a_sender_that_dies_unused_after_execute_returned_ends_the_wait(
    start: Start, make_batch: MakeBatch, caplog: pytest.LogCaptureFixture
) -> None:
    instance = start(
        """
        def hold(sender):
            GO.wait()
        THREADS.append(threading.Thread(target=hold, args=(requests[0].get_response_sender(),)))
        THREADS[0].start()
        """
    )
    model = model_module()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(instance.execute, make_batch([{"A": ONE}]))
        model.GO.set()
        assert values(running.result(LIMIT)) == [UNANSWERED]
    assert "[request id: 0] request to 'm_0_0': execute returned no response" in caplog.text


def test_an_async_model_may_answer_from_a_task_it_leaves_behind(
    start: Start, make_batch: MakeBatch
) -> None:
    instance = start(
        """
        import asyncio
        async def send(sender):
            sender.send(answer(1), FINAL)
        async def run():
            self.task = asyncio.create_task(send(requests.pop().get_response_sender()))
        return run()
        """
    )
    assert values(instance.execute(make_batch([{"A": ONE}]))) == [1.0]
    instance.close()


def test_errors_parameters_and_wanted_outputs(start: Start, make_batch: MakeBatch) -> None:
    instance = start(
        """
        good, bad = [request.get_response_sender() for request in requests]
        tensors = [pb_utils.Tensor(name, np.zeros(1, np.int8)) for name in ("B", "C")]
        good.send(pb_utils.InferenceResponse(tensors, parameters={"k": 1}), FINAL)
        error = pb_utils.TritonError("gone", pb_utils.TritonError.CANCELLED)
        bad.send(pb_utils.InferenceResponse(error=error), FINAL)
        """
    )
    good, bad = instance.execute(make_batch([{"A": ONE}] * 2, outputs=("C",)))
    assert isinstance(good, InferResponse)
    assert ([t.name for t in good.outputs], good.parameters) == (["C"], {"k": 1})
    assert isinstance(bad, Cancelled)
    assert str(bad) == "gone"


def test_a_cancelled_request_is_seen_while_its_batch_runs(
    start: Start, make_batch: MakeBatch
) -> None:
    """Nobody is asked once it was seen, nor when the batch is over."""
    instance = start(
        """
        ASKED.append([request.is_cancelled() for request in requests])
        GONE.add(6)
        ASKED.append([request.get_response_sender().is_cancelled() for request in requests])
        GONE.clear()
        ASKED.append([request.is_cancelled() for request in requests])
        KEPT.extend(requests)
        return [answer(1)] * 2
        """
    )
    model = model_module()
    model.ASKED, model.GONE, model.KEPT = [], set(), []
    batch = replace(make_batch([{"A": ONE}] * 2), first=5, gone=model.GONE)
    assert values(instance.execute(batch)) == [1.0, 1.0]
    assert model.ASKED == [[False, False], [False, True], [False, True]]
    model.GONE.add(5)
    assert [request.is_cancelled() for request in model.KEPT] == [False, True]


# The rules


@dataclass
class Collected:
    """A sender of the kernel that collects what it is given."""

    sent: list[tuple[Outcome | None, bool]] = field(default_factory=list)
    gone: bool = False
    asked: int = 0

    def send(self, response: Outcome | None, *, final: bool) -> None:
        if self.sent and self.sent[-1][1]:
            raise InvalidArgument("after the final response")
        self.sent.append((response, final))

    def cancelled(self) -> bool:
        self.asked += 1
        return self.gone


def single() -> SingleReply:
    return SingleReply(Batch([InferRequest("m", ())], {}, [1]), 0, ["B"])


def streamed(sender: Collected) -> StreamReply:
    return StreamReply(InferRequest("m", ()), ["B"], sender, lambda _: None)


def refusal(sender: InferenceResponseSender, given: bool, flags: int) -> str:
    try:
        sender.send(InferenceResponse([]) if given else None, flags)
    except TritonModelException as error:
        return str(error)
    return ""


Call = tuple[bool, int]
R, RF, F, N, BAD = (True, 0), (True, 1), (False, 1), (False, 0), (True, 2)


@pytest.mark.parametrize(
    ("calls", "once", "many"),
    [
        ([BAD], FLAG, FLAG),
        ([(False, -1)], FLAG, FLAG),
        ([N], NOTHING, NOTHING),
        ([RF], "", ""),
        ([R, F], "", ""),
        ([R, F, F], CLOSED, CLOSED),
        ([RF, F], CLOSED, CLOSED),
        ([RF, N], NOTHING, NOTHING),
        ([R, R], SECOND, ""),
        ([R, RF], SECOND, ""),
        ([RF, R], SECOND, CLOSED),
        ([F], EARLY, ""),
        ([F, R], "", CLOSED),
        ([R, R, RF, R], SECOND, CLOSED),
    ],
)
def test_the_rules(calls: list[Call], once: str, many: str) -> None:
    """What the last call is refused with, by a model that answers once and by a decoupled one."""
    for reply, expected in ((single(), once), (streamed(Collected()), many)):
        sender = InferenceResponseSender(reply)
        assert [refusal(sender, *call) for call in calls][-1] == expected


@given(st.lists(st.sampled_from([R, RF, F, N, BAD])))
def test_any_calls_give_a_kernel_what_it_may_get(calls: list[Call]) -> None:
    kernel, reply = Collected(), single()
    many, once = InferenceResponseSender(streamed(kernel)), InferenceResponseSender(reply)
    accepted = [call for call in calls if not refusal(many, *call)]
    assert [(response is not None, int(final)) for response, final in kernel.sent] == accepted
    assert all(not final for _, final in kernel.sent[:-1])
    first = next((call for call in calls if call in (R, RF)), None)
    assert sum(given and not refusal(once, given, flags) for given, flags in calls) == bool(first)
    assert (reply.outcome is not None) == bool(first)


@pytest.mark.parametrize(
    "arguments", [("text",), (3, 0), (InferenceResponse([]), "1"), (InferenceResponse([]), None)]
)
def test_arguments_of_another_type(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        InferenceResponseSender(single()).send(*arguments)


@pytest.mark.parametrize("make", [single, lambda: streamed(Collected())])
def test_a_request_has_one_sender(make: Callable[[], Reply]) -> None:
    request = ReceivedRequest(make())
    barrier = threading.Barrier(8)

    def ask(_: int) -> InferenceResponseSender:
        barrier.wait(LIMIT)
        return request.get_response_sender()

    with ThreadPoolExecutor(8) as threads:
        senders = set(threads.map(ask, range(8)))
    assert senders == {request.get_response_sender()}
    assert not hasattr(request.get_response_sender(), "__dict__")


def test_a_response_may_be_sent_twice_to_one_sender() -> None:
    kernel = Collected()
    sender = InferenceResponseSender(streamed(kernel))
    response = InferenceResponse([], TritonError("again"))
    sender.send(response)
    sender.send(response, 1)
    assert [str(outcome) for outcome, _ in kernel.sent] == ["again", "again"]


def test_cancellation_is_asked_for_until_it_is_true() -> None:
    kernel = Collected()
    request = ReceivedRequest(streamed(kernel))
    sender = request.get_response_sender()
    assert not request.is_cancelled()
    assert not sender.is_cancelled()
    kernel.gone = True
    assert sender.is_cancelled()
    kernel.gone = False
    assert request.is_cancelled()
    assert kernel.asked == 3
