"""Steps of ensembles that a test ends when and how it likes, in models that can be replaced."""

import asyncio
import weakref
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from ensemble_models import Model, answer, parsed

from microkernel import InferRequest, InferResponse, MicrokernelError, Tensor
from microkernel.request import Parameters

Path: TypeAlias = tuple[int, ...]
"""Which response of each decoupled step on the way something was made of."""

Outcome: TypeAlias = InferResponse | MicrokernelError


@dataclass(eq=False)
class Open:
    """A request that a step waits for; `number` is that of the call that it serves, `path` that of
    what it was fed. `parts` is how many responses a decoupled model has given."""

    model: "StepModel"
    request: InferRequest
    number: int
    path: Path
    outcomes: asyncio.Queue[Outcome] = field(default_factory=asyncio.Queue)
    parts: int = 0

    def __repr__(self) -> str:
        return f"{self.model.config.name} for call {self.number}"


@dataclass
class Steps:
    """What all models of a test share: the requests under way, what was found to be wrong, the
    paths that decoupled models have sent by call and model, and the arrays that were made, by call,
    model and output."""

    open: list[Open] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    sent: dict[tuple[int, str], list[Path]] = field(default_factory=lambda: defaultdict(list))
    arrays: list[tuple[int, str, str, weakref.ref[Any]]] = field(default_factory=list)

    def row(self, number: int, model: str, name: str, path: Path) -> Tensor:
        """A tensor that says of which call it is, and how it came about."""
        array = np.array([number, *path], np.int32)
        self.arrays.append((number, model, name, weakref.ref(array)))
        return Tensor.from_numpy(name, array)

    def taken(self, request: InferRequest) -> Path:
        """The path of what a step was fed; notes where that does not belong together."""
        return longest(self.faults, int(request.parameters["number"]), request.inputs)


def longest(faults: list[str], number: int, tensors: tuple[Tensor, ...]) -> Path:
    """The longest path of some tensors, of which all others are to be the beginning."""
    rows = [tuple(tensor.as_numpy().tolist()) for tensor in tensors]
    top = max(rows, key=len, default=(number,))
    if any(row != top[: len(row)] for row in rows) or top[0] != number:
        faults.append(f"call {number} met {rows}")
    return tuple(top[1:])


class StepModel(Model):
    """A model whose requests stay open until `reply`; it keeps none of them."""

    def __init__(self, text: str, steps: Steps) -> None:
        super().__init__(parsed(text), self._wait, self._wait_often)
        self.requests = _Forgetful()
        self.gone = False
        self._steps = steps

    def _opened(self, request: InferRequest) -> Open:
        steps, name = self._steps, self.config.name
        if self.gone or not self.held:
            steps.faults.append(f"{name} is asked, and is not held or gone")
        number = int(request.parameters["number"])
        opened = Open(self, request, number, steps.taken(request))
        steps.open.append(opened)
        return opened

    async def _wait(self, request: InferRequest) -> InferResponse:
        opened = self._opened(request)
        try:
            outcome = await opened.outcomes.get()
        finally:
            self._close(opened)
        if isinstance(outcome, MicrokernelError):
            raise outcome
        return outcome

    async def _wait_often(self, request: InferRequest) -> AsyncIterator[InferResponse]:
        opened = self._opened(request)
        try:
            final = False
            while not final:
                outcome = await opened.outcomes.get()
                if isinstance(outcome, MicrokernelError):
                    raise outcome
                final = outcome.final
                yield outcome
                del outcome
        finally:
            self._close(opened)

    def _close(self, opened: Open) -> None:
        if opened in self._steps.open:
            self._steps.open.remove(opened)

    def reply(
        self, opened: Open, *, final: bool = True, bare: bool = False, **more: Parameters
    ) -> None:
        """Give a response, of a decoupled model a `bare` one, too, which has no outputs."""
        path, name = opened.path, self.config.name
        if bare:
            self._put(opened, answer(opened.request, flag_only=True))
            return
        if self.config.decoupled:
            path = (*path, opened.parts)
            opened.parts += 1
            self._steps.sent[opened.number, name].append(path)
        outputs = [
            self._steps.row(opened.number, name, output.name, path) for output in self.config.output
        ]
        self._put(opened, answer(opened.request, *outputs, final=final, **more))

    def fail(self, opened: Open, error: MicrokernelError) -> None:
        """End a request with an error."""
        self._put(opened, error)

    def _put(self, opened: Open, outcome: Outcome) -> None:
        opened.outcomes.put_nowait(outcome)
        if isinstance(outcome, MicrokernelError) or outcome.final:
            self._close(opened)


class _Forgetful(list[InferRequest]):
    """Keeps nothing."""

    def append(self, request: InferRequest) -> None:
        pass
