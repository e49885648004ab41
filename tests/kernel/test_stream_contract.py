"""The contract suite with decoupled models: it passes a backend that keeps its promises, and names
the one that another breaks."""

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from microkernel import (
    Backend,
    BackendType,
    Batch,
    InferRequest,
    InferResponse,
    Instance,
    Internal,
    InvalidArgument,
    Model,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Outcome,
    Placement,
    Sender,
    Tensor,
    TransactionPolicy,
)
from microkernel.testing import check_backend, streaming

KIND = BackendType("counter", f"{__name__}:Counter")
CONFIG = ModelConfig(
    name="count",
    backend="counter",
    max_batch_size=4,
    input=(ModelInput("N", "TYPE_INT32", dims=(1,)),),
    output=(ModelOutput("I", "TYPE_INT32", (1,)), ModelOutput("LEFT", "TYPE_INT32", (1,))),
    model_transaction_policy=TransactionPolicy(decoupled=True),
)


def response(index: int, left: int) -> InferResponse:
    values = {"I": index, "LEFT": left}
    outputs = [Tensor.from_numpy(k, np.array([[v]], np.int32)) for k, v in values.items()]
    return InferResponse("count", 1, "", tuple(outputs))


class Counting(Instance):
    """Counts up to N, from a thread; breaks the promise that it was told to break."""

    def __init__(self, promise: str) -> None:
        self._promise = promise
        self._runs = 0

    def execute(self, batch: Batch) -> Sequence[Outcome]:
        raise NotImplementedError

    def stream(self, batch: Batch, senders: Sequence[Sender]) -> None:
        self._runs += 1
        if self._promise == "raises":
            raise ValueError("not today")
        work = (batch, senders, self._runs)
        threading.Thread(target=self._answer, args=work, daemon=True).start()

    def _answer(self, batch: Batch, senders: Sequence[Sender], run: int) -> None:
        for request, sender in zip(batch, senders, strict=True):
            count = int(request.inputs[0].as_numpy().item())
            if count < 0:
                self._fail(sender)
                continue
            for index in range(count):
                if sender.cancelled() and self._promise == "gone":
                    return
                sender.send(response(index, count - index), final=False)
            break_it = BREAKS.get(self._promise)
            if break_it is not None:
                break_it(sender, run, len(batch))
            if self._promise != "final":
                sender.send(None, final=True)
            if self._promise == "after":
                tried(lambda sender=sender: sender.send(response(0, 0), final=False))  # type: ignore[misc]

    def _fail(self, sender: Sender) -> None:
        if self._promise == "failure":
            sender.send(response(0, 0), final=True)
        else:
            sender.send(Internal("" if self._promise == "silence" else "negative"), final=True)


def tried(call: Callable[[], None]) -> None:
    try:
        call()
    except InvalidArgument:
        return
    raise AssertionError("it could be sent")


LAST_RUN = 9
"""Three requests alone, one batch, two outputs alone, one that fails, one that nobody waits for,
and the first again."""

BREAKS: dict[str, Callable[[Sender, int, int], None]] = {
    "error": lambda sender, run, size: sender.send(Internal("oh"), final=False),
    "shape": lambda sender, run, size: sender.send(
        InferResponse("", 1, "", (Tensor.from_numpy("I", np.zeros((1, 2), np.int32)),)),
        final=False,
    ),
    "type": lambda sender, run, size: sender.send(
        InferResponse("", 1, "", (Tensor.from_numpy("I", np.zeros((1, 1), np.float32)),)),
        final=False,
    ),
    "object": lambda sender, run, size: tried(lambda: sender.send("x", final=False)),  # type: ignore[arg-type]
    "nothing": lambda sender, run, size: tried(lambda: sender.send(None, final=False)),
    "number": lambda sender, run, size: (
        sender.send(response(9, 9), final=False) if run == LAST_RUN else None
    ),
    "batch": lambda sender, run, size: (
        sender.send(response(9, 9), final=False) if size > 1 else None
    ),
}


class Counter(Backend, Model):
    """Breaks the promise that the parameter BREAK names."""

    promise = ""

    def load(self, config: ModelConfig, files: Path) -> Model:
        self.promise = config.parameter("BREAK")
        return self

    def instance(self, placement: Placement) -> Instance:
        return Counting(self.promise)


def request(number: int, count: int) -> InferRequest:
    tensor = Tensor.from_numpy("N", np.array([[count]], np.int32))
    return InferRequest("count", (tensor,), version=1, id=str(number))


REQUESTS = [request(1, 3), request(2, 0), request(3, 1)]
FAILING = request(4, -1)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> BackendType:
    monkeypatch.setitem(sys.modules, "counter_backend", sys.modules[__name__])
    return replace(KIND, factory="counter_backend:Counter")


def test_a_backend_that_keeps_its_promises(counter: BackendType, tmp_path: Path) -> None:
    check_backend(counter, CONFIG, tmp_path, REQUESTS, failing=FAILING)


@pytest.mark.parametrize(
    ("promise", "complaint"),
    [
        ("final", "request '1' got no final response in 0.2 seconds"),
        ("gone", "request '1' got no final response in 0.2 seconds"),
        ("after", "request '1': something was sent after the final response"),
        ("nothing", "request '1': nothing was sent, and not as the final response"),
        ("object", "request '1': 'x' was sent, which is no response"),
        ("error", "a good request got Internal('oh')"),
        ("raises", "a good request got Internal('ValueError: not today')"),
        ("shape", "output 'I' has shape (1, 2), configured is (-1, 1)"),
        ("type", "output 'I' is FP32, configured is INT32"),
        ("batch", "a larger batch gives 4 responses in place of 3"),
        ("number", "the same instance, later, gives 4 responses in place of 3"),
        ("failure", "expected an error, got {"),
        ("silence", "an error without a message"),
    ],
)
def test_a_broken_promise_is_named(
    counter: BackendType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    promise: str,
    complaint: str,
) -> None:
    if promise in ("final", "gone"):
        monkeypatch.setattr(streaming, "FINAL_LIMIT", 0.2)
    config = replace(CONFIG, parameters={"BREAK": ModelParameter(promise)})
    with pytest.raises(AssertionError) as caught:
        check_backend(counter, config, tmp_path, REQUESTS, failing=FAILING)
    assert str(caught.value).startswith(complaint)
