"""The way back of one request, and Triton's rules for what may take it."""

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import SimpleQueue

from microkernel import (
    Batch,
    InferRequest,
    InferResponse,
    MicrokernelError,
    Outcome,
    Reschedule,
    Sender,
)
from microkernel_python.errors import TritonModelException
from microkernel_python.response import InferenceResponse, outcome
from microkernel_python.tensor import ReceivedTensor

FINAL = 1
"""The flag of the last thing that is sent for a request."""

_CLOSED = "Unable to send response. Response sender has been closed."
_FLAG = "Unable to send response. Unsupported flag provided."
_NOTHING = "Inference Response object must be provided when the response flags is set to zero."
_SECOND = "Unable to send response. Non-decoupled model cannot send more than one response."
_EARLY = (
    "Unable to send response. Non-decoupled model cannot send complete final before sending a "
    "response."
)


class Reply(ABC):
    """What is known of a request while it may still be answered: the kernel's request (`source`),
    its inputs as the model sees them (`tensors`) and the outputs that are wanted (`names`).

    `outputs` are the model's, for a client that names none. `lent` says whether a response sender
    was made, through which the model may answer later, and `rescheduled` whether the model wants to
    see the request again. Raises InvalidArgument or Internal where an
    input's data does not fit its shape.
    """

    __slots__ = (
        *("_cancelled", "_closed", "_order", "_sent"),
        *("lent", "names", "rescheduled", "source", "tensors"),
    )

    def __init__(self, source: InferRequest, outputs: Sequence[str]) -> None:
        self.source = source
        self.tensors = [ReceivedTensor(tensor) for tensor in source.inputs]
        self.names = frozenset(source.outputs or outputs)
        self.lent = False
        self.rescheduled = False
        self._order = threading.Lock()  # held while sending: what is sent first arrives first
        self._sent = False
        self._closed = False
        self._cancelled = False

    def lend(self) -> None:
        """A response sender is made."""
        self.lent = True

    def send(self, response: InferenceResponse | None, flags: int) -> None:
        """Send a response, `FINAL` alone, or both. Raises TritonModelException for what Triton's
        rules forbid, and what the model's objects raise when their text is asked for."""
        if flags not in (0, FINAL):
            raise TritonModelException(_FLAG)
        if response is None and not flags:
            raise TritonModelException(_NOTHING)
        # Encoding may run code of the model, so not under the lock.
        answer = None if response is None else self.encoded(response)
        with self._order:
            self._check(response is not None)
            self._deliver(answer, final=flags == FINAL)
            self._sent = True
            if flags == FINAL:
                self._closed = True

    def encoded(self, response: InferenceResponse) -> Outcome:
        """The response as the kernel takes it, a view on the model's arrays. One that is an error
        ends the request: it is not rescheduled."""
        if response.has_error():
            self.rescheduled = False
        return outcome(self.source, self.names, response)

    def is_cancelled(self) -> bool:
        """Whether the client gave the request up; once it did, nobody is asked again."""
        if not self._cancelled:
            self._cancelled = self._ask()
        return self._cancelled

    def abort(self) -> None:
        """Nothing may be sent any more: the kernel answers the request in another way."""
        self._closed = True

    def release(self) -> None:
        """Let go of the kernel's memory."""
        for tensor in self.tensors:
            tensor.release()

    @abstractmethod
    def abandon(self) -> None:
        """Nobody can answer any more: the request and its sender are garbage. Called by the garbage
        collector on any thread, whatever locks that holds."""

    def _check(self, given: bool) -> None:
        """Raise where this may not be sent now; `given` says whether there is a response."""
        if self._closed:
            raise TritonModelException(_CLOSED)

    @abstractmethod
    def _deliver(self, answer: Outcome | None, *, final: bool) -> None: ...

    @abstractmethod
    def _ask(self) -> bool: ...


class SingleReply(Reply):
    """The way back of a request of a model that answers once: what is sent is collected in
    `outcome`."""

    __slots__ = ("_abandoned", "_batch", "_index", "_news", "outcome")

    def __init__(self, batch: Batch, index: int, outputs: Sequence[str]) -> None:
        super().__init__(batch.requests[index], outputs)
        self.outcome: Outcome | None = None
        self._batch: Batch | None = batch
        self._index = index
        # One of these, unlike an event, may be put into in the middle of anything.
        self._news: SimpleQueue[None] | None = None
        self._abandoned = False

    @property
    def awaited(self) -> bool:
        """Whether the answer may still come through the sender."""
        return self.lent and self.outcome is None and not (self._closed or self._abandoned)

    def lend(self) -> None:
        """As `Reply.lend`."""
        self._news = SimpleQueue()
        super().lend()

    def wait(self) -> Outcome | None:
        """What was sent, when it has been; None where nobody can send it any more."""
        while self._news is not None and self.awaited:
            self._news.get()
        return self.outcome

    def claim(self) -> None:
        """`execute` returned the request's response. Raises TritonModelException where it was
        answered already; nothing more can be sent then."""
        with self._order:
            self._check(given=True)
            self._sent = self._closed = True

    def abort(self) -> None:
        """As `Reply.abort`; `outcome` does not change after it."""
        with self._order:
            super().abort()

    def release(self) -> None:
        """As `Reply.release`; the batch is over, and what was not sent by now never is."""
        self._batch = None
        if self.outcome is None:
            self._closed = True
        super().release()

    def abandon(self) -> None:
        """Wake who waits for the answer."""
        self._abandoned = True
        self._tell()

    def _check(self, given: bool) -> None:
        if given and self._sent:
            raise TritonModelException(_SECOND)
        if not (given or self._sent):
            raise TritonModelException(_EARLY)
        super()._check(given)

    def _deliver(self, answer: Outcome | None, *, final: bool) -> None:
        if answer is not None:
            self.outcome = captured(answer)
            self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.put(None)

    def _ask(self) -> bool:
        batch = self._batch
        return batch is not None and batch.cancelled(self._index)


class StreamReply(Reply):
    """The way back of a request of a decoupled model: what is sent goes to the kernel at once.
    `abandoned` is told when the request is abandoned; `reason` is why that came to pass, "" where
    nobody knows."""

    __slots__ = ("_abandoned", "_sender", "reason")

    def __init__(
        self,
        source: InferRequest,
        outputs: Sequence[str],
        sender: Sender,
        abandoned: "Callable[[StreamReply], None]",
    ) -> None:
        super().__init__(source, outputs)
        self._sender = sender
        self._abandoned = abandoned
        self.reason = ""

    def send(self, response: InferenceResponse | None, flags: int) -> None:
        """As `Reply.send`. Waits while the client reads too slowly."""
        super().send(response, flags)
        if flags == FINAL:
            self.release()

    def finish(self, outcome: MicrokernelError | Reschedule) -> None:
        """End with an error, or to come again, unless the request is at its end."""
        with self._order:
            if self._closed:
                return
            self._closed = True
            # The kernel may have ended the request by itself.
            with contextlib.suppress(MicrokernelError):
                self._sender.send(outcome, final=True)
        self.release()

    def abort(self) -> None:
        """As `Reply.abort`, at once: another thread may be waiting for a slow client."""
        super().abort()
        self.release()

    def abandon(self) -> None:
        """Have the request finished by somebody else. One that comes again may be let go of."""
        if not (self._closed or self.rescheduled):
            self._abandoned(self)

    def _deliver(self, answer: Outcome | None, *, final: bool) -> None:
        try:
            self._sender.send(answer, final=final)
        except MicrokernelError as error:
            refused = _CLOSED if self._closed else f"Unable to send response. {error}"
            raise TritonModelException(refused) from error

    def _ask(self) -> bool:
        return self._sender.cancelled()


def captured(answer: Outcome) -> Outcome:
    """An answer whose outputs are copies, since the model may change its arrays from now on."""
    if isinstance(answer, InferResponse):
        outputs = tuple(replace(tensor, data=bytes(tensor.data)) for tensor in answer.outputs)
        return replace(answer, outputs=outputs)
    return answer
