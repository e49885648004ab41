"""The worker's end of a decoupled request: what a backend sends its responses through.

The same code runs in a child process and in a thread of the server; only the way out differs.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from microkernel.backend import Instance
from microkernel.batch import Batch
from microkernel.errors import InvalidArgument, MicrokernelError, WorkerFailed
from microkernel.request import InferRequest, Outcome, Reschedule
from microkernel.workers.descriptors import Schema
from microkernel.workers.flags import Slot
from microkernel.workers.parts import Moments, too_large
from microkernel.workers.runner import as_error, checked

log = logging.getLogger("microkernel.worker")


class WorkerSender(ABC):
    """Keeps the promises of `Sender`. Exactly one final response leaves it, and nothing after that;
    what is sent to a request that nobody waits for does not leave it, unless it is final."""

    def __init__(self, slot: Slot, request: InferRequest, schema: Schema) -> None:
        """The request must have been opened in the flags of its slot. The model works for its first
        response from now on."""
        self._slot = slot
        self._wanted = request.outputs or schema.outputs
        self._schema = schema
        self._order = threading.Lock()
        self._began = time.monotonic_ns()
        self._closed = False
        self._gone = False

    def send(self, response: Outcome | None, *, final: bool) -> None:
        """See `Sender.send`."""
        if response is None and not final:
            raise InvalidArgument("a response must be given unless it is the final one")
        if isinstance(response, Reschedule) and not final:
            raise InvalidArgument("a request is rescheduled with what is final")
        given = time.monotonic_ns()
        if not final:  # which would hold up its thread, and a client can be sent no more than one
            self._slot.flags.wait_for_client(self._slot.number)
        with self._order:
            if self._closed:
                raise InvalidArgument("the final response of the request has been sent")
            if final or not self.cancelled():
                self._send(response, given, final=final)

    def fail(self, error: MicrokernelError) -> bool:
        """End the request with an error, unless its final response has been sent; whether it was
        ended by this."""
        with self._order:
            if self._closed:
                return False
            self._send(error, time.monotonic_ns(), final=True)
            return True

    def _send(self, response: Outcome | None, given: int, *, final: bool) -> None:
        outcome = None if response is None else checked(response, self._wanted)
        outcome = too_large(outcome) or outcome
        if final:  # whatever happens next, there is no second attempt
            self._closed, self._gone = True, self.cancelled()
            self._slot.flags.close(self._slot.number)
        now = time.monotonic_ns()
        # The time spent waiting for the client is nobody's work.
        moments = Moments(self._began + now - given, now)
        self._began = self._deliver(outcome, moments, final=final)

    def cancelled(self) -> bool:
        """See `Sender.cancelled`."""
        return self._gone or self._slot.number in self._slot.flags.gone

    @abstractmethod
    def _deliver(self, outcome: Outcome | None, moments: Moments, *, final: bool) -> int:
        """Bring it to the server, whose moment of being copied is returned."""


def run_stream(instance: Instance, batch: Batch, senders: Sequence[WorkerSender]) -> None:
    """Run a batch of a decoupled model. Raises WorkerFailed where the backend does, and nothing
    else: what it raises ends those requests whose final response has not been sent, and is logged
    where there are none."""
    try:
        instance.stream(batch, senders)
    except WorkerFailed:
        raise
    except MicrokernelError as error:
        _fail(senders, error)
    except BaseException as error:
        log.exception("backend failed")
        _fail(senders, as_error(error))


def _fail(senders: Sequence[WorkerSender], error: MicrokernelError) -> None:
    failed = [sender.fail(error) for sender in senders]
    if not any(failed):
        log.error("backend failed after the final response of every request: %s", error)
