"""Requests of sequences on their way through the model: what they look like there, and what of the
model's answers is for their callers."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from math import inf

from microkernel.errors import MicrokernelError
from microkernel.request import Answer, InferRequest, InferResponse
from microkernel.scheduling.controls import Controls
from microkernel.scheduling.pending import Outcome, Pending
from microkernel.scheduling.slots import Line, Slot, Slots
from microkernel.scheduling.states import States, blank
from microkernel.tensor import Tensor


@dataclass(slots=True, eq=False)
class Turn:
    """A request that has left its line, as the client sent it; `gone` when nobody waits for it."""

    line: Line
    slot: Slot
    request: InferRequest
    key: Hashable
    gone: bool = False


class _Nobody:
    """The reply of a row that belongs to nobody."""

    def done(self) -> bool:
        return True

    def set_result(self, response: InferResponse, /) -> None: ...

    def set_exception(self, error: MicrokernelError, /) -> None: ...


_NOBODY = _Nobody()


class Turns:
    """Takes requests out of slots and gives them what the model wants to see besides the client's
    inputs: controls and states."""

    def __init__(self, slots: Slots, controls: Controls, states: States) -> None:
        self._slots = slots
        self._controls = controls
        self._states = states
        self._null = controls.null()
        self._running: dict[Pending, Turn] = {}

    def __len__(self) -> int:
        """How many requests are on their way."""
        return len(self._running)

    def get(self, pending: Pending) -> Turn | None:
        """The turn of a request that was taken and is not released."""
        return self._running.get(pending)

    def pop(self, pending: Pending) -> Turn | None:
        """The same, and it is over."""
        return self._running.pop(pending, None)

    def key(self, slot: Slot) -> Hashable:
        """The key that the next request of a slot, in which one waits, would have: states of
        different shapes cannot share a batch."""
        assert slot.line is not None
        pending = slot.line.queue[0]
        if not self._states.varies:
            return pending.key
        return (pending.key, _shapes(self._before(slot.line, pending.request)))

    def take(self, slot: Slot, now: float) -> Pending:
        """The next request of a slot, in which one waits, ready for the model."""
        key = self.key(slot)
        pending, line = self._slots.take(slot, now)
        slot.busy = True
        request = pending.request
        self._running[pending] = Turn(line, slot, request, pending.key)
        line.states = self._before(line, request)
        pending.key = key
        if self._null or line.states:
            controls = self._controls.tensors(request.sequence)
            inputs = (*request.inputs, *controls, *line.states)
            outputs = self._states.asked(request.outputs)
            pending.request = replace(request, inputs=inputs, outputs=outputs)
        return pending

    def _before(self, line: Line, request: InferRequest) -> tuple[Tensor, ...]:
        """The states that a request finds; one that starts a sequence finds the first ones."""
        if line.states is None or request.sequence.start:
            return self._states.first
        return line.states

    def null(self, like: Pending) -> Pending:
        """A row that is no request, in the shapes of one that is. It holds zeros, for what other
        clients sent is not for a model that forgets to look whether a row is ready."""
        given = like.request
        controls = {tensor.name: tensor for tensor in self._null}
        inputs = tuple(
            [controls.get(t.name) or blank(t.name, t.datatype, t.shape) for t in given.inputs]
        )
        request = InferRequest(given.model_name, inputs, given.version, outputs=given.outputs)
        return Pending(request, 1, like.key, _NOBODY, like.arrived, like.arrived_ns, inf, null=True)

    def advanced(self, pending: Pending, outcome: Outcome) -> Outcome:
        """See `SequenceKeeper.advanced`."""
        turn = self._running.get(pending)
        if turn is None or not self._states or not isinstance(outcome, Answer):
            return outcome
        assert turn.line.states is not None
        try:
            turn.line.states = self._states.after(turn.line.states, outcome)
        except MicrokernelError as error:
            return error
        return self._states.without(outcome, turn.request.outputs)


def _shapes(tensors: tuple[Tensor, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple([tensor.shape for tensor in tensors])
