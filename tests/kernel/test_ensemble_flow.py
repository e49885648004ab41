"""Which steps may start and which answers are complete, whatever comes in which order."""

from dataclasses import dataclass, field

import pytest
from ensemble_models import row
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.ensembles.dependencies import circle, closure, levels, users_of
from microkernel.ensembles.flow import NOTHING, Flow, Start, Value
from microkernel.ensembles.graph import Feed, Graph, Step, in_order, route

A = row("a", 1)


def graph(outputs: str, *steps: str, decoupled: tuple[int, ...] = ()) -> Graph:
    """Steps as `a b > t u`, what they wait for and what they make; the ensemble's input is `a`."""
    flow = [tuple(part.split() for part in text.split(">")) for text in steps]
    origins: dict[str, int | None] = {"a": None}
    made: list[Step] = []
    for number, (waits, makes) in enumerate(flow):
        origin = next((origins[t] for t in waits if origins[t] is not None), None)
        is_decoupled = number in decoupled
        made.append(
            Step(
                f"m{number}",
                -1,
                tuple(Feed(t, t) for t in waits),
                {t: t for t in makes},
                decoupled=is_decoupled,
                origin=origin,
            )
        )
        origins.update(dict.fromkeys(makes, number if is_decoupled else origin))
    feeds = tuple(Feed(name, name) for name in outputs.split())
    return Graph(tuple(made), origins, feeds, route(made, feeds))


@dataclass
class Play:
    """A flow, what waits to be run and what came out."""

    graph: Graph
    flow: Flow = field(init=False)
    waiting: list[Start] = field(default_factory=list)
    answers: list[set[str]] = field(default_factory=list)
    started: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.flow = Flow(self.graph, self.graph.full)
        self._took(self.flow.begin({"a": Value(A)}))

    def _took(self, progress: object) -> None:
        starts, answers = progress.starts, progress.answers  # type: ignore[attr-defined]  # brief
        self.waiting += starts
        self.started += [(start.step, start.iteration) for start in starts]
        self.answers += [set(answer) for answer in answers]

    def run(self, step: int, *, final: bool = True) -> list[int]:
        """The first waiting run of a step answers; the steps that start."""
        before = len(self.waiting)
        start = next(start for start in self.waiting if start.step == step)
        values = {name: Value(A) for name in self.graph.steps[step].outputs}
        self._took(self.flow.arrived(start, values, final=final))
        found = [start.step for start in self.waiting[before:]]
        if final:
            self.waiting.remove(start)
        return found

    @property
    def kept(self) -> set[str]:
        """The tensors that are still held."""
        return {name for name, kept in self.flow._kept.items() if kept}


def test_a_chain_holds_one_tensor_at_a_time() -> None:
    play = Play(graph("y", "a > t", "t > u", "u > y"))
    assert [s.step for s in play.waiting] == [0]
    assert play.kept == set()
    assert play.run(0) == [1]
    assert play.kept == set()
    assert play.run(1) == [2]
    assert play.run(2) == []
    assert play.answers == [{"y"}]
    assert (play.flow.running, play.kept) == (0, set())


def test_a_diamond() -> None:
    play = Play(graph("y", "a > l", "a > r", "l r > y"))
    assert [s.step for s in play.waiting] == [0, 1]
    assert play.run(1) == []
    assert play.kept == {"r"}
    assert play.run(0) == [2]
    assert play.kept == set()


def test_what_nobody_needs_does_not_run() -> None:
    whole = graph("y z", "a > y", "a > t", "t > z")
    flow = Flow(whole, whole.route(["y"]))
    assert [start.step for start in flow.begin({"a": NOTHING}).starts] == [0]


def test_a_tensor_on_two_inputs_is_one_tensor() -> None:
    feeds = (Feed("X", "a"), Feed("Z", "a"))
    one = Step("m", -1, feeds, {"Y": "y"})
    made = Graph((one,), {"a": None, "y": None}, (Feed("y", "y"),), route([one], [Feed("y", "y")]))
    flow = Flow(made, made.full)
    (start,) = flow.begin({"a": Value(A)}).starts
    assert start.values == {"a": Value(A)}
    assert flow.arrived(start, {}, final=True).answers == [{"y": NOTHING}]


def test_every_answer_of_a_decoupled_step_goes_its_own_way() -> None:
    play = Play(graph("y", "a > s t", "s > u", "t u > y", decoupled=(0,)))
    assert play.run(0, final=False) == [1]
    assert play.run(0) == [1]
    assert play.run(1) == [2]
    assert play.run(1) == [2]
    assert play.started == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
    play.run(2)
    assert play.flow.running == 1
    play.run(2)
    assert play.answers == [{"y"}] * 2
    assert (play.flow.running, play.kept) == (0, set())


def test_what_is_there_once_stays_until_the_last_answer() -> None:
    play = Play(graph("y", "a > t", "a > r", "t r > y", decoupled=(0,)))
    assert play.run(0, final=False) == []
    assert play.run(0, final=False) == []
    assert play.run(1) == [2, 2]
    assert play.kept == {"r"}
    assert play.run(0) == [2]
    assert play.kept == set()


def test_what_is_there_once_goes_also_where_no_answer_comes() -> None:
    play = Play(graph("y", "a > t", "a > r", "t r > y", decoupled=(0,)))
    play.run(1)
    assert play.kept == {"r"}
    play.flow.ended(play.waiting[0])
    assert (play.flow.running, play.kept, play.answers) == (0, set(), [])


def test_an_output_that_is_there_once_goes_with_every_answer() -> None:
    play = Play(graph("y z", "a > y", "a > z", decoupled=(0,)))
    play.run(0, final=False)
    play.run(0)
    play.run(1)
    assert play.answers == [{"y", "z"}] * 2


def test_outputs_of_two_decoupled_steps_go_pair_by_pair() -> None:
    play = Play(graph("y z", "a > y", "a > z", decoupled=(0, 1)))
    play.run(0, final=False)
    play.run(0)
    play.run(1)
    assert play.answers == [{"y", "z"}]
    assert play.flow.running == 0


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A graph of which every step takes tensors that were there before it; at most one step is
    decoupled, so that everything meets what it may meet."""
    tensors, steps = ["a"], []
    for number in range(draw(st.integers(1, 7))):
        waits = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3, unique=True))
        makes = [f"t{number}_{i}" for i in range(draw(st.integers(1, 2)))]
        steps.append(f"{' '.join(waits)} > {' '.join(makes)}")
        tensors += makes
    outputs = draw(st.lists(st.sampled_from(tensors[1:]), min_size=1, max_size=3, unique=True))
    decoupled = draw(st.one_of(st.just(()), st.tuples(st.integers(0, len(steps) - 1))))
    return graph(" ".join(outputs), *steps, decoupled=decoupled)


@settings(max_examples=300)
@given(graphs(), st.data())
def test_whatever_comes_first_each_step_runs_once_and_nothing_stays(
    whole: Graph, data: st.DataObject
) -> None:
    play = Play(whole)
    answered = 0
    while play.waiting:
        start = data.draw(st.sampled_from(play.waiting))
        step_ = whole.steps[start.step]
        final = not step_.decoupled or data.draw(st.booleans()) or answered > 3
        answered += step_.decoupled
        play.run(start.step, final=final)
    assert play.flow.running == 0
    expected = {
        (number, iteration)
        for number in whole.full.steps
        for iteration in range(answered if whole.steps[number].origin is not None else 1)
    }
    assert sorted(play.started) == sorted(expected)
    outputs = {feed.tensor for feed in whole.outputs}
    varying = any(whole.origins[tensor] is not None for tensor in outputs)
    assert play.answers == [outputs] * (answered if varying else 1)
    left = {tensor for tensor in outputs if varying and whole.origins[tensor] is None}
    assert play.kept == left


@pytest.mark.parametrize(
    ("steps", "order"),
    [
        ([("t", "y"), ("a", "t")], [1, 0]),
        ([("a", "t"), ("t a", "u"), ("u t", "y")], [0, 1, 2]),
        ([("a", "t"), ("u", "v"), ("v", "u")], [0]),
    ],
)
def test_the_order_of_steps(steps: list[tuple[str, str]], order: list[int]) -> None:
    assert in_order([(frozenset(a.split()), b.split()) for a, b in steps]) == order


NEEDS = {"m": (), "n": (), "e": ("m", "n"), "f": ("e", "n"), "p": ("q",), "q": ("p",), "r": ("p",)}


def test_the_order_of_loading() -> None:
    assert levels(NEEDS) == [["m", "n"], ["e"], ["f"], ["p", "q", "r"]]
    assert levels({}) == []


@pytest.mark.parametrize(
    ("name", "users"),
    [("m", ["e", "f"]), ("n", ["e", "f"]), ("e", ["f"]), ("f", []), ("p", ["q", "r"])],
)
def test_who_needs_a_model(name: str, users: list[str]) -> None:
    assert users_of(name, NEEDS) == users


@pytest.mark.parametrize(
    ("name", "last"), [("m", ""), ("f", ""), ("p", "q"), ("q", "p"), ("r", "")]
)
def test_ways_back(name: str, last: str) -> None:
    assert circle(name, NEEDS) == last
    assert circle("s", {"s": ("s",)}) == "s"


def test_what_a_model_is_composed_of() -> None:
    assert closure(["f"], lambda name: NEEDS[name]) == {n: NEEDS[n] for n in "fenm"}
