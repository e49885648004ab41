"""What callers ask of ensembles, and what they are to get."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from ensemble_steps import Path, longest

from microkernel import InferResponse, MicrokernelError
from microkernel.ensembles.graph import Graph
from microkernel.models.ensemble import EnsembleVersion
from microkernel.responses import ResponseStream


@dataclass(eq=False)
class Call:
    """A request of a caller. `below` is everything that it holds. `must_fail` once a step has given
    an error to it, `may_fail` once it was given up, `gone` once its caller has left."""

    number: int
    target: EnsembleVersion
    outputs: tuple[str, ...]
    below: frozenset[Any]
    task: "asyncio.Task[InferResponse] | None" = None
    stream: ResponseStream | None = None
    paths: list[Path] = field(default_factory=list)
    error: MicrokernelError | None = None
    answered: bool = False
    must_fail: bool = False
    may_fail: bool = False
    gone: bool = False

    def __repr__(self) -> str:
        return f"call {self.number}"

    @property
    def over(self) -> bool:
        """Whether nothing more is to come, read or not."""
        return self.answered or self.gone or (self.stream is not None and self.stream.ended)

    def take(self, faults: list[str], response: InferResponse) -> None:
        """Note a response."""
        if response.error is not None:
            self.error = bare(response.error)
        elif not response.flag_only:
            # What comes of several decoupled steps goes together by number only.
            several = len(varying(self.target.graph, self.outputs)) > 1
            shown = () if several else response.outputs
            self.paths.append(longest(faults, self.number, shown))
        self.answered = response.final


def bare(error: MicrokernelError) -> MicrokernelError:
    """An error without the frames that it came through, which hold tensors."""
    return type(error)(str(error))


def varying(graph: Graph, outputs: tuple[str, ...]) -> set[int]:
    """The decoupled steps that some outputs come from."""
    found = {graph.origins[feed.tensor] for feed in graph.route(outputs).outputs}
    return {origin for origin in found if origin is not None}
