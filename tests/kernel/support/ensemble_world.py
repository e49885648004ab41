"""Ensembles on virtual time, of models that come, change and go."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from ensemble_calls import varying
from ensemble_models import Site
from ensemble_sketches import Line, Sketch
from ensemble_steps import Path, StepModel, Steps

from microkernel import responses as streams
from microkernel.models.ensemble import EnsembleVersion
from microkernel.testing import VirtualTimeLoop

PLENTY = 10_000
"""So many turns of the loop that nothing happens any more without somebody's doing; fewer where it
comes to rest before."""


class World:
    """The ensemble `e`, maybe with another one, `i`, in it, and their models, all by the `texts` of
    their configurations. `ensembles` are all that there ever were, and `retiring` those that are
    taken down, by the task which does it. Streams hold back when four responses are unread."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr(streams, "HIGH_COUNT", 3)
        self.patched.setattr(streams, "LOW_COUNT", 1)
        self.site = Site()
        self.steps = Steps()
        self.texts: dict[str, str] = {}
        self.ensembles: list[EnsembleVersion] = []
        self.retiring: dict[asyncio.Task[None], Any] = {}
        self.settled = False

    def close(self) -> None:
        """Undo what the process shares."""
        self.patched.undo()
        self.loop.close()

    def build(self, sketch: Sketch, lines: Sequence[Line], limit: int) -> EnsembleVersion:
        """An ensemble and its models, all of which serve."""
        self.texts[sketch.name] = sketch.text(lines, limit)
        self.texts |= sketch.models
        for name in (*sketch.models, sketch.name):
            self.load(name)
        served = self.site.models[sketch.name]
        assert isinstance(served, EnsembleVersion)
        return served

    def load(self, name: str) -> None:
        """Have a model or an ensemble serve, in place of what served under its name."""

        async def load() -> None:
            if name in "ei":
                self.ensembles.append(self.site.ensemble(self.texts[name]))
            else:
                self.site.models[name] = StepModel(self.texts[name], self.steps)

        self.run(load())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What a coroutine returns."""
        return self.loop.run_until_complete(coroutine)

    def call(self, function: Callable[[], object], turns: int) -> None:
        """Do something, and let so many turns of the loop pass."""

        async def called() -> None:
            function()
            for _ in range(turns):
                await asyncio.sleep(0)
                if turns == PLENTY and not self._busy():
                    return
            assert turns < PLENTY, "the loop does not come to rest"

        self.run(called())
        self.settled = turns == PLENTY

    def _busy(self) -> bool:
        """Whether anything beside the one who asks is to run in the next turn."""
        return bool(self.loop._ready)  # type: ignore[attr-defined]  # it says so in no other way

    def below(self, served: Any) -> set[Any] | None:
        """What a request holds beside an ensemble; None where something of it is missing."""
        found: set[Any] = set()
        for step in served.graph.steps:
            other = self.site.models.get(step.model)
            if other is None:
                return None
            further = self.below(other) if isinstance(other, EnsembleVersion) else set()
            if further is None or not other.ready:
                return None
            found |= {other, *further}
        return found

    def may_load(self, name: str) -> bool:
        """An ensemble needs all models of its steps to be there."""
        if name not in "ei":
            return True
        return all(
            other in self.site.models
            for other in self.texts
            if f'"{other}"' in self.texts[name] and other != name
        )

    def retire(self, served: Any) -> None:
        """Let what was accepted finish, as the catalogue does; asked on the loop."""

        async def retire() -> None:
            await served.drain()
            served.gone = True

        self.retiring[self.loop.create_task(retire())] = served

    def expected(
        self, served: EnsembleVersion, outputs: tuple[str, ...], number: int
    ) -> list[Path] | None:
        """The paths of all answers to a call, from what was sent so far; None where that cannot be
        told."""
        origins = varying(served.graph, outputs)
        if len(origins) != 1:
            return None if origins else [()]
        name = served.graph.steps[origins.pop()].model
        if name != "i":
            return sorted(self.steps.sent.get((number, name), []))
        inner = next(e for e in self.ensembles if e.config.name == "i")
        return self.expected(inner, (), number)


def runs(made: EnsembleVersion, name: str) -> bool:
    """Whether a step of an ensemble runs that model."""
    return any(step.model == name for step in made.graph.steps)
