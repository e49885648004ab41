"""Python models that ask to see a request again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from decoupled_models import CONFIG, LIMIT, Client, batch_of, model_module, stream

from microkernel import RESCHEDULE, InferResponse, Internal, Outcome
from microkernel_python.instance import PythonInstance

Start = Callable[..., PythonInstance]
SINGLE = replace(CONFIG, model_transaction_policy=None)
AGAIN = "requests[0].set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)\n"
SENDER = "sender = requests[0].get_response_sender()\n"


def said(outcomes: Sequence[Outcome]) -> list[Any]:
    """Numbers, the last lines of errors, and RESCHEDULE as it is."""
    return [
        int(outcome.outputs[0].as_numpy().item())
        if isinstance(outcome, InferResponse)
        else (outcome if outcome is RESCHEDULE else str(outcome))
        for outcome in outcomes
    ]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"{AGAIN}return [None, answer(7)]", [RESCHEDULE, 7]),
        (f"{AGAIN}requests[1].set_release_flags(2)", [RESCHEDULE, RESCHEDULE]),
        (f"{AGAIN}requests[0].set_release_flags(1)\nreturn [answer(1), answer(2)]", [1, 2]),
        (
            f"{AGAIN}error = pb_utils.InferenceResponse(error=pb_utils.TritonError('odd'))\n"
            "return [error, answer(7)]",
            ["odd", 7],
        ),
        (f"{AGAIN}{SENDER}sender.send(answer(5), FINAL)\nreturn [None, answer(7)]", [5, 7]),
    ],
)
def test_a_request_that_comes_again_is_not_answered(
    start: Start, body: str, expected: list[Any], asynchronous: bool
) -> None:
    instance = start(body, SINGLE, asynchronous)
    assert said(instance.execute(batch_of(1, 2))) == expected


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_exception_overrules_rescheduling(start: Start, asynchronous: bool) -> None:
    instance = start(f"{AGAIN}raise ValueError('no')", SINGLE, asynchronous)
    with pytest.raises(Internal, match="ValueError: no"):
        instance.execute(batch_of(1))


def test_nothing_can_be_sent_for_a_request_that_comes_again(start: Start) -> None:
    instance = start(f"{AGAIN}{SENDER}KEPT.append(sender)\nreturn [None]", SINGLE)
    assert said(instance.execute(batch_of(1))) == [RESCHEDULE]
    with pytest.raises(Exception, match="Response sender has been closed"):
        model_module().KEPT[0].send(model_module().answer(1))


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("body", "answers", "last"),
    [
        (AGAIN, [], RESCHEDULE),
        (f"{SENDER}sender.send(answer(4))\nsender.send(answer(5))\n{AGAIN}", [4, 5], RESCHEDULE),
        (f"{AGAIN}{SENDER}sender.send(answer(4), FINAL)", [], 4),
    ],
)
def test_a_decoupled_request_comes_again(
    start: Start, body: str, answers: list[int], last: Any, asynchronous: bool
) -> None:
    """Also where the model keeps nothing of it, so that nobody could answer it any more."""
    (client,) = stream(start(body, asynchronous=asynchronous), 1)
    assert client.ended.wait(LIMIT)
    assert said([r for r in client.responses if r is not None]) == [*answers, last]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_exception_of_a_decoupled_model_overrules_rescheduling(
    start: Start, asynchronous: bool
) -> None:
    instance = start(f"{AGAIN}raise ValueError('no')", asynchronous=asynchronous)
    client = Client()
    if not asynchronous:  # the kernel answers then
        with pytest.raises(Internal, match="ValueError: no"):
            instance.stream(batch_of(1), [client])
        assert client.responses == []
        return
    instance.stream(batch_of(1), [client])
    (error,) = client.all()
    assert "ValueError: no" in str(error)
