"""An ensemble as a graph: what feeds each step, and which steps an answer takes. Pure.

A decoupled step may answer any number of times, and the steps after it run once for each of its
responses. So every tensor and every step has an `origin`: the number of the decoupled step whose
responses it exists once for, None where it exists once per request.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from microkernel.tensor import Shape


@dataclass(frozen=True, slots=True)
class Feed:
    """A tensor on its way to an input of a step, or to an output of the ensemble.

    `leading` says whether its batch dimension has to be adapted: 1 where the taker batches and the
    giver does not, -1 the other way round, 0 where both agree. `dims` is what the taker expects,
    without a batch dimension.
    """

    name: str
    tensor: str
    leading: int = 0
    dims: Shape = ()

    def shaped(self, shape: Shape) -> Shape:
        """The shape as the taker sees it. What cannot be adapted stays, for the taker to refuse."""
        if self.leading > 0 and fits(shape, self.dims):
            return (1, *shape)
        if self.leading < 0 and shape[:1] == (1,) and not fits(shape, self.dims):
            return shape[1:]
        return shape


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the model it runs, what feeds the model's inputs, and which tensor each output of
    the model becomes. `asks` are the outputs to ask for, empty for all that the model has;
    `tensors` are those that the step waits for."""

    model: str
    version: int
    feeds: tuple[Feed, ...]
    outputs: Mapping[str, str]
    asks: tuple[str, ...] = ()
    decoupled: bool = False
    origin: int | None = None
    tensors: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", frozenset(feed.tensor for feed in self.feeds))


@dataclass(frozen=True, slots=True)
class Route:
    """What it takes to make some outputs: the steps, by number, that each tensor feeds."""

    outputs: tuple[Feed, ...]
    consumers: Mapping[str, tuple[int, ...]]
    steps: frozenset[int]


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole ensemble. `origins` knows every tensor; `outputs` are in the configuration's order,
    and `full` is the route to all of them."""

    steps: tuple[Step, ...]
    origins: Mapping[str, int | None]
    outputs: tuple[Feed, ...]
    full: Route

    @property
    def decoupled(self) -> bool:
        """Whether a request may have any number of responses."""
        return any(self.steps[number].decoupled for number in self.full.steps)

    def route(self, outputs: Sequence[str]) -> Route:
        """The route to the outputs of those names, to all where none is named."""
        if not outputs:
            return self.full
        return route(self.steps, tuple(feed for feed in self.outputs if feed.name in outputs))


def route(steps: Sequence[Step], outputs: Iterable[Feed]) -> Route:
    """The steps that some outputs need, and no others."""
    outputs = tuple(outputs)
    makers = {
        tensor: number for number, step in enumerate(steps) for tensor in step.outputs.values()
    }
    needed: set[int] = set()
    waiting = [feed.tensor for feed in outputs]
    while waiting:
        number = makers.get(waiting.pop())
        if number is not None and number not in needed:
            needed.add(number)
            waiting += steps[number].tensors
    consumers: dict[str, list[int]] = {}
    for number in sorted(needed):
        for tensor in steps[number].tensors:
            consumers.setdefault(tensor, []).append(number)
    fixed = {tensor: tuple(numbers) for tensor, numbers in consumers.items()}
    return Route(outputs, fixed, frozenset(needed))


def in_order(steps: Sequence[tuple[frozenset[str], Iterable[str]]]) -> list[int]:
    """The numbers of steps, given as what they wait for and what they make, so that each comes
    after those that feed it. Steps that go round in circles are left out."""
    made = set(chain.from_iterable(outputs for _, outputs in steps))
    lacking = [set(tensors & made) for tensors, _ in steps]
    consumers: dict[str, list[int]] = {}
    for number, tensors in enumerate(lacking):
        for tensor in tensors:
            consumers.setdefault(tensor, []).append(number)
    order = [number for number, tensors in enumerate(lacking) if not tensors]
    for number in order:  # which grows meanwhile
        for tensor in steps[number][1]:
            for consumer in consumers.pop(tensor, ()):
                lacking[consumer].discard(tensor)
                if not lacking[consumer]:
                    order.append(consumer)
    return order


def fits(shape: Shape, dims: Shape) -> bool:
    """Whether shapes agree, -1 in either of them with anything."""
    return len(shape) == len(dims) and all(
        a == b or -1 in (a, b) for a, b in zip(shape, dims, strict=True)
    )
