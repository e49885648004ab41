"""A stranger's code, called: whatever it raises or returns, there is one outcome per request."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from microkernel import (
    Batch,
    InferRequest,
    InferResponse,
    Instance,
    Internal,
    InvalidArgument,
    MicrokernelError,
    Outcome,
    Tensor,
)
from microkernel.tensor import INT32
from microkernel.workers.descriptors import Schema
from microkernel.workers.runner import as_error, run

SCHEMA = Schema(inputs=(("X", INT32),), outputs=("Y", "Z"), batches=True)
ONE = np.ones((1, 2), np.int32)


class Mute(Exception):
    """Cannot tell its message."""

    def __str__(self) -> str:
        raise ValueError("nothing to say")


class Acting(Instance):
    """Executes by calling a function."""

    def __init__(self, act: Callable[[Batch], Any]) -> None:
        self._act = act

    def execute(self, batch: Batch) -> Sequence[Outcome]:
        outcomes: Sequence[Outcome] = self._act(batch)
        return outcomes


def batch_of(*outputs: tuple[str, ...]) -> Batch:
    """A request per tuple of wanted outputs."""
    x = Tensor.from_numpy("X", ONE)
    requests = [InferRequest("m", (x,), id=str(i), outputs=o) for i, o in enumerate(outputs)]
    stacked = Tensor.from_numpy("X", np.ones((len(outputs), 2), np.int32))
    return Batch(requests, {"X": stacked}, [1] * len(outputs))


def respond(*tensors: Tensor, **parameters: Any) -> InferResponse:
    return InferResponse("m", 1, "", tensors, parameters)


def y(name: str = "Y") -> Tensor:
    return Tensor.from_numpy(name, ONE)


def raiser(error: BaseException) -> Callable[[Batch], Any]:
    def act(batch: Batch) -> Any:
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (raiser(InvalidArgument("bad")), "bad"),
        (raiser(ZeroDivisionError("by zero")), "ZeroDivisionError: by zero"),
        (raiser(SystemExit(3)), "SystemExit: 3"),
        (raiser(KeyboardInterrupt("no")), "KeyboardInterrupt: no"),
        (raiser(Mute()), "Mute"),
        (lambda batch: None, "TypeError: object of type 'NoneType' has no len()"),
        (lambda batch: [], "the backend gave 0 outcomes for a batch of 2 requests"),
        (lambda batch: [None, None], "AttributeError: 'NoneType' object has no attribute"),
        (
            lambda batch: [respond(Tensor("Y", INT32, (3,), b"1234"))] * 2,
            "output 'Y' of shape [3] should hold 12 bytes, the backend gave 4",
        ),
        (
            lambda batch: [respond(Tensor("Y", INT32, (2,), [1, 2]))] * 2,  # type: ignore[arg-type]
            "output 'Y' should hold a flat buffer of bytes, the backend gave [1, 2]",
        ),
        (
            lambda batch: [respond(Tensor("Y", INT32, (1, 2), ONE.data))] * 2,
            "output 'Y' should hold a flat buffer of bytes, the backend gave <memory at",
        ),
        (
            lambda batch: [respond(y(), when=np.int64(3))] * 2,
            "response parameter 'when' must be a boolean, a number or text, got np.int64(3)",
        ),
        (
            lambda batch: [respond(y(), half="\ud800")] * 2,
            "response parameter 'half' must be a boolean, a number or text, got '\\ud800'",
        ),
        (
            lambda batch: [respond(y(), **{"\ud800": 1})] * 2,
            "response parameter '\\ud800' must be a boolean, a number or text, got 1",
        ),
    ],
)
def test_what_is_wrong_becomes_an_error_per_request(
    act: Callable[[Batch], Any], message: str
) -> None:
    outcomes = run(Acting(act), batch_of((), ()), SCHEMA)
    assert len(outcomes) == 2
    for outcome in outcomes:
        assert isinstance(outcome, MicrokernelError)
        assert str(outcome).startswith(message)


def test_one_of_our_errors_keeps_its_class() -> None:
    (outcome,) = run(Acting(raiser(InvalidArgument("bad"))), batch_of(()), SCHEMA)
    assert type(outcome) is InvalidArgument


def test_one_request_may_fail_alone() -> None:
    outcomes = run(Acting(lambda b: [respond(y()), Internal("x")]), batch_of((), ()), SCHEMA)
    assert isinstance(outcomes[0], InferResponse)
    assert isinstance(outcomes[1], Internal)


@pytest.mark.parametrize(
    ("wanted", "kept"), [((), ["Y", "Z"]), (("Z",), ["Z"]), (("Z", "Y"), ["Y", "Z"])]
)
def test_a_response_keeps_what_was_asked_for(wanted: tuple[str, ...], kept: list[str]) -> None:
    acting = Acting(lambda batch: [respond(y("Y"), y("Z"), y("UNKNOWN"), p=True)])
    (outcome,) = run(acting, batch_of(wanted), SCHEMA)
    assert isinstance(outcome, InferResponse)
    assert [tensor.name for tensor in outcome.outputs] == kept
    assert outcome.parameters == {"p": True}


def test_a_response_that_fits_is_handed_on_as_it_is() -> None:
    response = respond(y())
    assert run(Acting(lambda batch: [response]), batch_of(()), SCHEMA)[0] is response


def test_our_errors_stay_and_others_become_internal() -> None:
    ours = InvalidArgument("bad")
    assert as_error(ours) is ours
    assert (type(as_error(KeyError("k"))), str(as_error(KeyError("k")))) == (
        Internal,
        "KeyError: 'k'",
    )
