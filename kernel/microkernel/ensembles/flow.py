"""One request on its way through an ensemble: which steps may start, which answers are complete.

Pure: it is told what has come and says what follows. A tensor is let go of when the last one who
needs it has been given it, so that a long chain holds no more than its current step does.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from microkernel.ensembles.graph import Graph, Route
from microkernel.request import Sequence
from microkernel.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the ensemble, None for one that was left out, and the sequence to which what is
    made of it belongs, None for the one of the request."""

    tensor: Tensor | None
    sequence: Sequence | None = None


NOTHING = Value(None)


@dataclass(slots=True)
class Start:
    """A step that is to run, for which response of its origin, and the tensors that it waited
    for."""

    step: int
    iteration: int
    values: dict[str, Value]


@dataclass(slots=True)
class Progress:
    """What follows from something that has come: steps to start, and answers, each with the values
    of the outputs by the name of the tensor."""

    starts: list[Start] = field(default_factory=list)
    answers: list[dict[str, Value]] = field(default_factory=list)


@dataclass(slots=True)
class _Kept:
    """A value, and how many have not been given it yet."""

    value: Value
    claims: int


@dataclass(slots=True)
class _Count:
    """How often a step has started, how many of its runs are not over, how often it answered."""

    started: int = 0
    running: int = 0
    answered: int = 0


class Flow:
    """The state of one request. `running` is how many runs of steps are not over, those that are
    only about to start included."""

    def __init__(self, graph: Graph, route: Route) -> None:
        self._graph = graph
        self._route = route
        self._outputs = frozenset(feed.tensor for feed in route.outputs)
        self._kept: dict[str, dict[int, _Kept]] = {}
        self._counts = {number: _Count() for number in route.steps}
        self._shared = self._shares()
        self.running = 0

    def _shares(self) -> list[tuple[int, str]]:
        """The steps that run once per response of another and take tensors that are there once
        per request: these have to stay until the last run."""
        origins = self._graph.origins
        return [
            (number, tensor)
            for number in sorted(self._route.steps)
            if self._graph.steps[number].origin is not None
            for tensor in self._graph.steps[number].tensors
            if origins[tensor] is None
        ]

    def begin(self, inputs: Mapping[str, Value]) -> Progress:
        """The request's own tensors are there, those that it left out as NOTHING."""
        return self._put(inputs, 0)

    def arrived(self, start: Start, values: Mapping[str, Value], *, final: bool) -> Progress:
        """A run of a step has answered, with these values by the names of its model's outputs; one
        that is missing was not made. If it is `final`, the run is over."""
        step, count = self._graph.steps[start.step], self._counts[start.step]
        iteration = count.answered if step.decoupled else start.iteration
        count.answered += 1
        if final:
            self._finish(count)
        new = {tensor: values.get(name, NOTHING) for name, tensor in step.outputs.items()}
        progress = self._put(new, iteration)
        self._release_shared()
        return progress

    def ended(self, start: Start) -> None:
        """A run of a step is over without another answer."""
        self._finish(self._counts[start.step])
        self._release_shared()

    def _finish(self, count: _Count) -> None:
        count.running -= 1
        self.running -= 1

    def _put(self, new: Mapping[str, Value], iteration: int) -> Progress:
        consumers, begins, ends = self._route.consumers, dict[tuple[int, int], None](), False
        for tensor, value in new.items():
            claims = len(consumers.get(tensor, ())) + (tensor in self._outputs)
            if claims:
                self._kept.setdefault(tensor, {})[iteration] = _Kept(value, claims)
                ends |= tensor in self._outputs
        for tensor in new:
            for number in consumers.get(tensor, ()):
                for run in self._runs(self._graph.steps[number].tensors, tensor, iteration):
                    begins[number, run] = None
        progress = Progress([self._start(number, run) for number, run in begins])
        if ends:
            progress.answers = list(self._answers(new, iteration))
        return progress

    def _runs(self, together: frozenset[str], tensor: str, iteration: int) -> Iterable[int]:
        """For which iterations everything that is needed together is there, now that one tensor of
        it has come."""
        origins = self._graph.origins
        varying = next((t for t in together if origins[t] is not None), None)
        if varying is None or origins[tensor] is not None:
            candidates: Iterable[int] = (iteration,)
        else:
            candidates = sorted(self._kept.get(varying, ()))
        return [i for i in candidates if all(self._place(t, i) is not None for t in together)]

    def _place(self, tensor: str, iteration: int) -> _Kept | None:
        kept = self._kept.get(tensor)
        if kept is None:
            return None
        return kept.get(0 if self._graph.origins[tensor] is None else iteration)

    def _start(self, number: int, iteration: int) -> Start:
        step, count = self._graph.steps[number], self._counts[number]
        values = {
            tensor: self._take(tensor, iteration, once=step.origin is None)
            for tensor in step.tensors
        }
        count.started += 1
        count.running += 1
        self.running += 1
        return Start(number, iteration, values)

    def _take(self, tensor: str, iteration: int, *, once: bool) -> Value:
        """The value for one who needs it; the last one takes it away. What is there once per
        request stays unless the taker comes only `once`, too."""
        if self._graph.origins[tensor] is None:
            if not once:
                return self._kept[tensor][0].value
            iteration = 0
        kept = self._kept[tensor][iteration]
        self._give_up(tensor, iteration)
        return kept.value

    def _give_up(self, tensor: str, iteration: int) -> None:
        kept = self._kept[tensor][iteration]
        kept.claims -= 1
        if kept.claims == 0:
            del self._kept[tensor][iteration]

    def _answers(self, new: Mapping[str, Value], iteration: int) -> Iterator[dict[str, Value]]:
        runs: dict[int, None] = {}
        for tensor in self._outputs & new.keys():
            runs.update(dict.fromkeys(self._runs(self._outputs, tensor, iteration)))
        once = all(self._graph.origins[tensor] is None for tensor in self._outputs)
        for run in sorted(runs):
            yield {tensor: self._take(tensor, run, once=once) for tensor in self._outputs}

    def _release_shared(self) -> None:
        """Let go of what was kept for the runs of steps that will not run any more."""
        over = [pair for pair in self._shared if self._closed(pair[0])]
        for pair in over:
            self._shared.remove(pair)
            if 0 in self._kept.get(pair[1], ()):
                self._give_up(pair[1], 0)

    def _closed(self, number: int) -> bool:
        """Whether a step will not start any more."""
        origin, count = self._graph.steps[number].origin, self._counts[number]
        if origin is None:
            return count.started > 0
        source = self._counts[origin]
        return self._closed(origin) and source.running == 0 and count.started == source.answered
