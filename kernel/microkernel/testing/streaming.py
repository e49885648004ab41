"""The contract of a backend's decoupled models, as checks."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from microkernel.errors import InvalidArgument, MicrokernelError
from microkernel.request import InferRequest, InferResponse, Outcome
from microkernel.testing.served import Outputs, Served, same
from microkernel.workers.runner import as_error

FINAL_LIMIT = 30.0
"""Seconds in which a request must get its final response."""

_Said: TypeAlias = list[Outputs | MicrokernelError]
"""What a request was answered, in order; an end without anything else is left out."""


class _Listener:
    """The sender of one request, which keeps what is sent and what is wrong about it."""

    def __init__(self, served: Served, request: InferRequest, *, gone: bool) -> None:
        self._served = served
        self._request = request
        self._gone = gone
        self._order = threading.Lock()
        self.said: _Said = []
        self.faults: list[str] = []
        self.ended = threading.Event()

    def send(self, response: Outcome | None, *, final: bool) -> None:
        """See `Sender.send`."""
        with self._order:
            if self.ended.is_set():
                raise self._fault("something was sent after the final response")
            if response is None and not final:
                raise self._fault("nothing was sent, and not as the final response")
            if isinstance(response, MicrokernelError):
                self.said.append(response)
            elif isinstance(response, InferResponse):
                self._keep(response)
            elif response is not None:
                raise self._fault(f"{response!r} was sent, which is no response")
            if final:
                self.ended.set()

    def _keep(self, response: InferResponse) -> None:
        try:
            self.said.append(self._served.kept(self._request, response))
        except AssertionError as error:
            self.faults.append(str(error))

    def _fault(self, text: str) -> InvalidArgument:
        self.faults.append(f"request '{self._request.id}': {text}")
        return InvalidArgument(text)

    def cancelled(self) -> bool:
        """See `Sender.cancelled`."""
        return self._gone


def check_streams(
    first: Served,
    second: Served,
    requests: Sequence[InferRequest],
    failing: InferRequest | None,
    rtol: float,
) -> None:
    """Check what `check_backend` promises of decoupled models, with two instances of one."""
    check = _Check(rtol)
    alone = [check.good(first, request) for request in requests]
    for request, expected in zip(requests, alone, strict=True):
        check.same(check.good(second, request), expected, "an instance")
    chosen = first.can_share(requests)
    together = check.streamed(first, [requests[index] for index in chosen]) if chosen else []
    for index, said in zip(chosen, together, strict=True):
        check.same(_without_errors(said), alone[index], "a larger batch")
    check.selection(first, requests[0], alone[0])
    if failing is not None:
        (said,) = check.streamed(first, [failing])
        assert said, "expected an error, got no response"
        assert isinstance(said[-1], MicrokernelError), f"expected an error, got {said[-1]!r}"
        assert str(said[-1]), "an error without a message"
    check.streamed(first, [requests[0]], gone=True)
    check.same(check.good(first, requests[0]), alone[0], "the same instance, later,")
    check.no_faults()  # what came late, too


def _without_errors(said: _Said) -> list[Outputs]:
    for entry in said:
        assert not isinstance(entry, MicrokernelError), f"a good request got {entry!r}"
    return [entry for entry in said if not isinstance(entry, MicrokernelError)]


class _Check:
    """What was heard so far."""

    def __init__(self, rtol: float) -> None:
        self._rtol = rtol
        self._listeners: list[_Listener] = []

    def no_faults(self) -> None:
        """Raise what is wrong about something that was sent."""
        faults = [fault for listener in self._listeners for fault in listener.faults]
        assert not faults, "; ".join(faults)

    def good(self, served: Served, request: InferRequest) -> list[Outputs]:
        """What a good request gets that runs alone."""
        return _without_errors(self.streamed(served, [request])[0])

    def selection(self, served: Served, request: InferRequest, alone: Sequence[Outputs]) -> None:
        """A request that asks for one output gets that one wherever it comes."""
        for name in sorted({name for outputs in alone for name in outputs}):
            got = self.good(served, replace(request, outputs=(name,)))
            wanted = [{name: outputs[name]} for outputs in alone if name in outputs]
            self.same([each for each in got if each], wanted, f"asking for '{name}' alone")

    def streamed(
        self, served: Served, requests: Sequence[InferRequest], *, gone: bool = False
    ) -> list[_Said]:
        """What each request of a batch was answered; what the backend raises ends those that are
        open, as in the kernel."""
        batch = served.batch(requests)
        listeners = [_Listener(served, request, gone=gone) for request in requests]
        self._listeners += listeners
        running = served.thread.submit(served.instance.stream, batch, listeners)
        if (error := running.exception()) is not None:
            for listener in listeners:
                if not listener.ended.is_set():
                    listener.send(as_error(error), final=True)
        for request, listener in zip(requests, listeners, strict=True):
            assert listener.ended.wait(FINAL_LIMIT), (
                f"request '{request.id}' got no final response in {FINAL_LIMIT:g} seconds"
            )
        self.no_faults()
        return [listener.said for listener in listeners]

    def same(self, got: Sequence[Outputs], expected: Sequence[Outputs], where: str) -> None:
        """As many responses, with the same outputs."""
        assert len(got) == len(expected), (
            f"{where} gives {len(got)} responses in place of {len(expected)}"
        )
        same(got, expected, self._rtol, where)
