"""Decoupled Python models for tests, and the client of their responses."""

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from microkernel import (
    Batch,
    InferRequest,
    InferResponse,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Outcome,
    Tensor,
    TransactionPolicy,
)
from microkernel_python.instance import PythonInstance

LIMIT = 60
"""Seconds after which what a test waits for is given up."""
CONFIG = ModelConfig(
    name="m",
    backend="python",
    max_batch_size=8,
    input=(ModelInput("IN", "TYPE_INT32", dims=(1,)),),
    output=(ModelOutput("OUT", "TYPE_INT32", dims=(1,)),),
    model_transaction_policy=TransactionPolicy(decoupled=True),
)
HEAD = """
import asyncio
import threading
import numpy as np
import triton_python_backend_utils as pb_utils
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
GO = threading.Event()
THREADS = []
KEPT = []
ERRORS = []
def number(request):
    return int(request.inputs()[0].as_numpy()[0, 0])
def answer(value):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([[value]], np.int32))])
def spawn(work, *args):
    THREADS.append(threading.Thread(target=work, args=args))
    THREADS[-1].start()
"""
Start = Callable[[str], PythonInstance]
Answers = list[int | str | None]


class Client:
    """A sender of the kernel that keeps what it is given: numbers, texts of errors, and None for
    a final flag alone. Its data is read at once, as the kernel does."""

    def __init__(self) -> None:
        self.answers: Answers = []
        self.responses: list[Outcome | None] = []
        self.ended = threading.Event()
        self.gone = False

    def send(self, response: Outcome | None, *, final: bool) -> None:
        if self.ended.is_set():
            raise InvalidArgument("the final response was sent")
        self.responses.append(response)
        if isinstance(response, InferResponse) and response.outputs:
            self.answers.append(int(response.outputs[0].as_numpy().flat[0]))
        else:
            self.answers.append(str(response) if isinstance(response, Exception) else None)
        if final:
            self.ended.set()

    def cancelled(self) -> bool:
        return self.gone

    def all(self) -> Answers:
        """What came, when the final response has."""
        assert self.ended.wait(LIMIT)
        return self.answers


def model_module() -> Any:
    return sys.modules["1.model"]


def batch_of(*numbers: int, outputs: tuple[str, ...] = ()) -> Batch:
    requests = [
        InferRequest(
            "m",
            (Tensor.from_numpy("IN", np.array([[number]], np.int32)),),
            version=1,
            id=f"r{number}",
            outputs=outputs,
        )
        for number in numbers
    ]
    return Batch(requests, {}, [1] * len(numbers))


def stream(instance: PythonInstance, *numbers: int) -> list[Client]:
    clients = [Client() for _ in numbers]
    instance.stream(batch_of(*numbers), clients)
    return clients
