"""What the odd backend does with a batch of a decoupled model: the first number of the batch says
what, by `STREAM_DEEDS`.

A deed that sends a number of responses takes it from the second number of each request; they hold
the numbers from 0 on.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence

import numpy as np

from microkernel import (
    RESCHEDULE,
    Batch,
    Cancelled,
    InferRequest,
    InferResponse,
    Internal,
    InvalidArgument,
    Sender,
    Tensor,
    WorkerFailed,
)

_GO = threading.Event()
Deed = Callable[[Batch, Sequence[Sender], Callable[[str], None]], None]


def _response(*numbers: int) -> InferResponse:
    tensor = Tensor.from_numpy("Y", np.array([numbers], np.int32))
    return InferResponse("odd", 1, "", (tensor,))


def _numbers(request: InferRequest) -> list[int]:
    numbers: list[int] = np.frombuffer(request.inputs[0].data, np.int32).tolist()
    return numbers


def _count(batch: Batch, senders: Sequence[Sender], trace: object) -> None:
    """So many responses, the last of which is final; no response but the final flag for 0."""
    for request, sender in zip(batch, senders, strict=True):
        count = _numbers(request)[1]
        for number in range(count):
            sender.send(_response(number), final=number == count - 1)
        if count == 0:
            sender.send(None, final=True)


def _flagged(batch: Batch, senders: Sequence[Sender], trace: object) -> None:
    """So many responses from one buffer, and the final flag alone."""
    buffer = np.zeros((1, 1), np.int32)
    response = InferResponse("odd", 1, "", (Tensor.from_numpy("Y", buffer),))
    for request, sender in zip(batch, senders, strict=True):
        for number in range(_numbers(request)[1]):
            buffer[0, 0] = number
            sender.send(response, final=False)
        sender.send(None, final=True)


def _later(batch: Batch, senders: Sequence[Sender], trace: object) -> None:
    """What `count` does, in another thread, when `go` is asked for; and then the inputs again."""

    def send() -> None:
        _GO.wait()
        _GO.clear()
        for request, sender in zip(batch, senders, strict=True):
            for number in range(_numbers(request)[1]):
                sender.send(_response(number), final=False)
            sender.send(_response(*_numbers(request)), final=True)

    threading.Thread(target=send, daemon=True).start()


def _go(batch: Batch, senders: Sequence[Sender], trace: object) -> None:
    _GO.set()
    _count(batch, senders, trace)


def _backwards(batch: Batch, senders: Sequence[Sender], trace: object) -> None:
    """The last request is answered first."""
    for number in (0, 1):
        for place, sender in reversed(list(enumerate(senders))):
            sender.send(_response(place, number), final=number == 1)


def _error_and_more(batch: Batch, senders: Sequence[Sender], trace: object) -> None:
    for sender in senders:
        sender.send(InvalidArgument("not this time"), final=False)
        sender.send(_response(7), final=False)
        sender.send(Internal("never again"), final=True)


def _raise_midway(batch: Batch, senders: Sequence[Sender], trace: object) -> None:
    senders[0].send(_response(1), final=True)
    if len(senders) > 1:
        senders[1].send(_response(2), final=False)
    raise ValueError("it broke in the middle")


def _kill_midway(batch: Batch, senders: Sequence[Sender], trace: object) -> None:
    for sender in senders:
        sender.send(_response(1), final=False)
    os.kill(os.getpid(), signal.SIGKILL)


def _give_up(batch: Batch, senders: Sequence[Sender], trace: object) -> None:
    """The first request is answered, the others are not."""
    for place, sender in enumerate(senders):
        sender.send(_response(place), final=place == 0)
    raise WorkerFailed("the device is on fire")


def _never(batch: Batch, senders: Sequence[Sender], trace: object) -> None:
    """One response and no final one, ever; the instance is free."""
    for sender in senders:
        sender.send(_response(1), final=False)
    threading.Thread(target=_keep, args=(senders,), daemon=True).start()


def _keep(senders: Sequence[Sender]) -> None:
    threading.Event().wait()


def _after_final(batch: Batch, senders: Sequence[Sender], trace: Callable[[str], None]) -> None:
    """Leaves a trace of what it is told when it goes on after the final response."""
    senders[0].send(_response(1), final=True)
    for response in (_response(2), None):
        try:
            senders[0].send(response, final=response is None)
        except InvalidArgument as error:
            trace(str(error))


def _nothing(batch: Batch, senders: Sequence[Sender], trace: object) -> None:
    senders[0].send(None, final=False)


def _until_gone(batch: Batch, senders: Sequence[Sender], trace: Callable[[str], None]) -> None:
    """Sends as many numbers at once as the second says until nobody waits any more."""
    response = _response(*range(_numbers(batch[0])[1]))
    while not senders[0].cancelled():
        senders[0].send(response, final=False)
    trace("gone")
    senders[0].send(Cancelled("as you wish"), final=True)


def _wait_until_gone(batch: Batch, senders: Sequence[Sender], trace: Callable[[str], None]) -> None:
    """Sends one response, and waits until nobody waits any more."""
    senders[0].send(_response(1), final=False)
    while not senders[0].cancelled():
        threading.Event().wait(0.001)
    trace("gone")
    senders[0].send(None, final=True)


def _flood(batch: Batch, senders: Sequence[Sender], trace: Callable[[str], None]) -> None:
    """So many responses of so many numbers, each its place."""
    _, count, size = _numbers(batch[0])[:3]
    for number in range(count):
        senders[0].send(_response(*[number] * size), final=False)
    trace("flooded")
    senders[0].send(None, final=True)


def _come_again(batch: Batch, senders: Sequence[Sender], trace: Callable[[str], None]) -> None:
    """A response, and each request is to come again. Leaves a trace of what it is told when it says
    so without an end, or goes on after it."""
    for sender in senders:
        sender.send(_response(7), final=False)
        for response, final in ((RESCHEDULE, False), (RESCHEDULE, True), (None, True)):
            try:
                sender.send(response, final=final)
            except InvalidArgument as error:
                trace(str(error))


_DEEDS: tuple[Deed, ...] = (
    *(_count, _flagged, _later, _go, _backwards, _error_and_more, _raise_midway, _kill_midway),
    *(_never, _after_final, _nothing, _until_gone, _wait_until_gone, _flood, _come_again),
    *(_give_up,),
)
STREAM_DEEDS = {deed.__name__.removeprefix("_"): -100 - i for i, deed in enumerate(_DEEDS)}
"""What the first number of a batch asks for."""
STREAMS = {-100 - i: deed for i, deed in enumerate(_DEEDS)}
