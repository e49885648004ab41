"""Whose turn it is among instances that share resources: tables, and whatever may happen."""

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduling_machines import SHORT, RunLong

from microkernel import InvalidArgument
from microkernel.config.model import RateLimiter as Limits
from microkernel.config.model import Resource
from microkernel.scheduling.rate_limiter import RateLimiter, Turn
from microkernel.scheduling.resources import Need, Pools, Sizes, need_of, parse_sizes


def of_server(**counts: int) -> Need:
    """A need of resources of the whole server."""
    return {(name, None): count for name, count in counts.items()}


def on(device: int, **counts: int) -> Need:
    """A need of resources of a device."""
    return {(name, device): count for name, count in counts.items()}


@pytest.mark.parametrize(
    ("resources", "device", "need"),
    [
        ((), 0, {}),
        ((Resource("R", False, 2),), 0, {("R", 0): 2}),
        ((Resource("R", False, 2),), 3, {("R", 3): 2}),
        ((Resource("R", True, 2),), 3, {("R", None): 2}),
        ((Resource("R", False, 2), Resource("R", False, 5)), 0, {("R", 0): 5}),
        ((Resource("R", False, 0),), 0, {}),
    ],
)
def test_what_an_instance_needs(
    resources: tuple[Resource, ...], device: int, need: dict[object, int]
) -> None:
    assert need_of(Limits(resources), device) == need


def test_an_instance_without_a_limiter_needs_nothing() -> None:
    assert need_of(None, 0) == {}


@pytest.mark.parametrize(
    ("entries", "sizes"),
    [
        ([], {}),
        (["R1:10"], {"R1": {None: 10}}),
        (["R1:10", "R1:3:1", "R2:0:0"], {"R1": {None: 10, 1: 3}, "R2": {0: 0}}),
        (["R1:10", "R1:11"], {"R1": {None: 11}}),
    ],
)
def test_sizes_that_an_operator_gives(entries: list[str], sizes: Sizes) -> None:
    assert parse_sizes(entries) == sizes


@pytest.mark.parametrize("entry", ["", "R", "R:", ":1", "R:x", "R:1:", "R:1:x", "R:-1", "R:1:2:3"])
def test_a_size_has_a_form(entry: str) -> None:
    with pytest.raises(InvalidArgument, match="--rate-limit-resource must be <name>:<count> or"):
        parse_sizes([entry])


TOO_LITTLE = (
    'Resource count for "R1" is limited to {} which will prevent scheduling of one or more model '
    "instances, the minimum required count is {}"
)
BOTH = (
    'Resource "R1" is present as both global and device-specific resource in the model '
    "configuration."
)


@pytest.mark.parametrize(
    ("sizes", "needs", "fault"),
    [
        ([], [on(0, R1=4), on(1, R1=9)], ""),
        (["R1:4"], [on(0, R1=4), on(1, R1=4)], ""),
        (["R1:3"], [on(0, R1=4)], TOO_LITTLE.format(3, 4)),
        (["R1:9", "R1:3:1"], [on(0, R1=4)], ""),
        (["R1:9", "R1:3:1"], [on(1, R1=4)], TOO_LITTLE.format(3, 4)),
        (["R1:9:1"], [on(0, R1=1)], TOO_LITTLE.format(0, 1)),
        (["R2:9"], [on(0, R1=1)], TOO_LITTLE.format(0, 1)),
        (["R1:2:7", "R1:4"], [of_server(R1=4)], ""),
        (["R1:2:7"], [of_server(R1=3)], TOO_LITTLE.format(2, 3)),
        ([], [on(0, R1=1), of_server(R1=1)], BOTH),
        ([], [on(0, R1=1), of_server(R2=1)], ""),
        ([], [{}], ""),
    ],
)
def test_what_can_never_run_is_refused(sizes: list[str], needs: list[Need], fault: str) -> None:
    pools = Pools(parse_sizes(sizes))
    if not fault:
        pools.admit(needs)
        return
    with pytest.raises(InvalidArgument) as error:
        pools.admit(needs)
    assert str(error.value) == fault
    if needs[0] == of_server(R1=3):
        return
    pools.admit([{}])  # nothing of what was refused is left


def test_what_is_refused_leaves_no_trace() -> None:
    pools = Pools(parse_sizes(["R1:4"]))
    pools.admit([on(0, R1=1)])
    with pytest.raises(InvalidArgument):
        pools.admit([on(0, R1=2), on(0, R1=5)])
    pools.admit([on(0, R1=4)])


def test_a_pool_grows_and_shrinks_with_the_neediest_instance() -> None:
    pools = Pools()
    small, large = on(0, R=2), on(0, R=5)
    pools.admit([small])
    pools.take(small)
    assert not pools.fits(small)
    pools.admit([large])
    assert (pools.fits(small), pools.fits(large)) == (True, False)
    pools.dismiss([large])
    assert not pools.fits(small)
    pools.give(small)
    assert pools.fits(small)


def test_more_than_there_is_cannot_be_taken() -> None:
    pools = Pools()
    pools.admit([on(0, R=2)])
    pools.take(on(0, R=1))
    with pytest.raises(RuntimeError, match="not enough"):
        pools.take(on(0, R=2))


class Floor:
    """Models, each with so many equal instances, that have a number of batches waiting. `ran` says
    which model ran each batch, in order."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        self.limiter = RateLimiter(sizes)
        self.turns: dict[str, Sequence[Turn]] = {}
        self.waiting: Counter[str] = Counter()
        self.running: dict[str, list[Turn]] = {}
        self.ran: list[str] = []

    def load(self, name: str, need: Need, priority: int = 1, instances: int = 1) -> None:
        self.running[name] = []
        demands = [(need, priority)] * instances
        self.turns[name] = self.limiter.enrol(demands, lambda: self.dispatch(name))
        for turn in self.turns[name]:
            turn.free = True

    def unload(self, name: str) -> None:
        del self.waiting[name]
        self.limiter.leave(self.turns.pop(name))

    def dispatch(self, name: str) -> None:
        """What a scheduler does when it is woken."""
        while self.waiting[name] and (turn := self.limiter.claim(self.turns[name])) is not None:
            ahead = [t for other in self.turns if self.waiting[other] for t in self.turns[other]]
            assert turn.weight <= min(t.weight for t in ahead if t.free), "it was another's turn"
            self.waiting[name] -= 1
            self.limiter.start(turn)
            self.running[name].append(turn)
            self.ran.append(name)

    def submit(self, name: str, batches: int = 1) -> None:
        self.waiting[name] += batches
        self.dispatch(name)

    def finish(self, name: str) -> None:
        """The batch that runs longest is done."""
        self.limiter.finish(self.running[name].pop(0), free=True)
        self.dispatch(name)
        self.limiter.serve()

    def busy(self) -> str:
        """The models that run something, by name."""
        return "".join(name for name, turns in self.running.items() for _ in turns)


EXAMPLE: Mapping[str, Need] = {
    "A": on(0, R1=4, R2=4),
    "B": on(0, R2=5, R3=10),
    "C": on(0, R1=1, R3=7),
}


def floor_of(needs: Mapping[str, Need]) -> Floor:
    floor = Floor()
    for name, need in needs.items():
        floor.load(name, need)
    return floor


@pytest.mark.parametrize(
    "events",
    [
        # After each event, who runs: A and B exclude each other, A and C, and B and C.
        [("+A", "A"), ("+B", "A"), ("-A", "B"), ("-B", "")],
        [("+A", "A"), ("+C", "A"), ("-A", "C"), ("-C", "")],
        [("+B", "B"), ("+C", "B"), ("-B", "C"), ("-C", "")],
        [("+A", "A"), ("+B", "A"), ("+C", "A"), ("-A", "B"), ("-B", "C"), ("-C", "")],
        # Who has run less is first.
        [("+A", "A"), ("+A", "A"), ("+B", "A"), ("-A", "B"), ("-B", "A"), ("-A", "")],
        [("+C", "C"), ("-C", ""), ("+B", "B"), ("+C", "B"), ("+A", "B"), ("-B", "A"), ("-A", "C")],
    ],
)
def test_the_worked_example(events: list[tuple[str, str]]) -> None:
    floor, seen = floor_of(EXAMPLE), []
    for event, _ in events:
        (floor.submit if event[0] == "+" else floor.finish)(event[1])
        seen.append((event, floor.busy()))
    assert seen == events


def test_nobody_behind_the_first_in_line_runs() -> None:
    floor = floor_of({"holds": on(0, R1=1), "both": on(0, R1=1, R2=1), "other": on(0, R2=1)})
    floor.submit("holds")
    floor.submit("both")
    floor.submit("other")
    assert floor.ran == ["holds"]  # R2 is free, and kept for who is first
    floor.finish("holds")
    floor.finish("both")
    assert floor.ran == ["holds", "both", "other"]


def test_who_needs_nothing_takes_turns_as_well() -> None:
    floor = floor_of({"holds": on(0, R=1), "waits": on(0, R=1), "needless": {}})
    floor.submit("needless")
    floor.finish("needless")
    floor.submit("holds")
    floor.submit("waits")
    floor.submit("needless")
    assert floor.busy() == "holds"
    floor.finish("holds")
    assert floor.busy() == "waitsneedless"


@pytest.mark.parametrize(
    ("priorities", "turns"),
    [((1, 1), (6, 6)), ((1, 2), (8, 4)), ((0, 2), (8, 4)), ((3, 1), (3, 9))],
)
def test_turns_are_dealt_by_priority(priorities: tuple[int, int], turns: tuple[int, int]) -> None:
    floor = Floor()
    for name, priority in zip("AB", priorities, strict=True):
        floor.load(name, on(0, R=1), priority)
    floor.waiting.update(A=100, B=100)
    floor.dispatch("A")
    floor.dispatch("B")
    for _ in range(11):
        floor.finish(floor.busy())
    assert (floor.ran.count("A"), floor.ran.count("B")) == turns


def test_of_the_instances_of_a_model_the_one_that_ran_less_is_taken() -> None:
    floor = Floor()
    floor.load("A", {}, instances=2)
    first, second = floor.turns["A"]
    for _ in range(4):
        floor.submit("A")
        floor.finish("A")
    assert (first.executions, second.executions) == (2, 2)


def test_instances_on_other_devices_have_pools_of_their_own() -> None:
    floor = floor_of({"A": on(0, R=1), "B": on(1, R=1), "C": on(1, R=1)})
    for name in "ABC":
        floor.submit(name)
    assert floor.busy() == "AB"


def test_a_pool_that_grows_lets_the_first_in_line_run() -> None:
    floor = floor_of({"A": on(0, R=1), "B": on(0, R=1)})
    floor.submit("A")
    floor.submit("B")
    assert floor.busy() == "A"
    floor.load("C", on(0, R=2))
    assert floor.busy() == "AB"


def test_who_leaves_makes_way() -> None:
    floor = floor_of({"A": on(0, R1=1), "B": on(0, R1=1, R2=1), "C": on(0, R2=1)})
    for name in "ABC":
        floor.submit(name)
    floor.unload("B")
    assert floor.busy() == "AC"


def test_an_instance_that_is_gone_is_not_waited_for() -> None:
    floor = floor_of({"A": on(0, R1=1), "B": on(0, R1=1, R2=1), "C": on(0, R2=1)})
    for name in "ABC":
        floor.submit(name)
    floor.limiter.withdraw(floor.turns["B"][0])
    floor.limiter.serve()
    assert floor.busy() == "AC"


def test_who_is_first_and_wants_nothing_any_more_is_passed_over() -> None:
    floor = floor_of({"A": on(0, R=1), "B": on(0, R=1), "C": on(0, R=1)})
    for name in "ABC":
        floor.submit(name)
    floor.waiting["B"] = 0
    floor.finish("A")
    assert floor.busy() == "C"


def test_who_is_offered_a_turn_and_waits_on_does_not_hold_up_others() -> None:
    limiter, log = RateLimiter(), []
    (eager,) = limiter.enrol([({}, 1)], lambda: log.append("eager"))
    (choosy,) = limiter.enrol([(on(0, R=1), 1)], lambda: log.append("choosy"))
    eager.free = choosy.free = True
    assert limiter.claim([choosy]) is choosy  # and it starts nothing: its batch is not full
    assert limiter.claim([eager]) is eager
    limiter.serve()
    assert log == []


def test_what_is_answered_at_once_makes_way_at_once() -> None:
    """The instance finishes while the line is being served."""
    limiter = RateLimiter()
    ran: list[str] = []
    waiting = {"A": 3, "B": 3}

    def dispatch(name: str) -> None:
        while waiting[name] and (turn := limiter.claim([turns[name]])) is not None:
            waiting[name] -= 1
            limiter.start(turn)
            ran.append(name)
            limiter.finish(turn, free=True)
            limiter.serve()

    turns = {
        name: limiter.enrol([(on(0, R=1), 1)], lambda name=name: dispatch(name))[0]  # type: ignore[misc]
        for name in waiting
    }
    for turn in turns.values():
        turn.free = True
    (holder,) = limiter.enrol([(on(0, R=1), 1)], lambda: None)
    limiter.start(holder)
    dispatch("A")
    dispatch("B")
    assert ran == []
    limiter.finish(holder, free=True)
    limiter.serve()
    assert (waiting, ran) == ({"A": 0, "B": 0}, ["A", "B"] * 3)


def test_turns_that_have_left_can_leave_again() -> None:
    limiter = RateLimiter()
    turns = limiter.enrol([(on(0, R=1), 1)], lambda: None)
    limiter.leave(turns)
    limiter.leave(turns)
    assert limiter.claim(turns) is None


MODELS = 4
NAMES = ("R1", "R2", "R3")
needs = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3), max_size=2)


class LineMachine(RuleBasedStateMachine):
    """Batches come, run and are given up; models are loaded and unloaded; workers die and come
    back. Pools are as large as the neediest instance wants, unless sizes are given."""

    def __init__(self) -> None:
        super().__init__()
        self.floor = Floor()
        self.given = False
        self.gone: list[tuple[str, Turn]] = []

    @initialize(given=st.booleans())
    def start(self, given: bool) -> None:
        self.given = given
        if given:
            self.floor = Floor({name: {None: 4} for name in NAMES})

    @rule(
        place=st.integers(0, MODELS - 1),
        need=needs,
        priority=st.integers(0, 3),
        instances=st.integers(1, 2),
    )
    def load(self, place: int, need: dict[str, int], priority: int, instances: int) -> None:
        if (name := f"m{place}") not in self.floor.turns:
            self.floor.load(name, on(0, **need), priority, instances)

    @precondition(lambda self: self.idle_models())
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.idle_models()))
        self.gone = [entry for entry in self.gone if entry[0] != name]
        self.floor.unload(name)

    def idle_models(self) -> list[str]:
        return [name for name in self.floor.turns if not self.floor.running[name]]

    @precondition(lambda self: self.floor.turns)
    @rule(data=st.data(), batches=st.integers(1, 3))
    def submit(self, data: st.DataObject, batches: int) -> None:
        self.floor.submit(data.draw(st.sampled_from(list(self.floor.turns))), batches)

    @precondition(lambda self: self.floor.turns)
    @rule(data=st.data())
    def give_up_what_waits(self, data: st.DataObject) -> None:
        self.floor.waiting[data.draw(st.sampled_from(list(self.floor.turns)))] = 0

    @precondition(lambda self: any(self.floor.running.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        busy = [name for name, turns in self.floor.running.items() if turns]
        self.floor.finish(data.draw(st.sampled_from(busy)))

    @precondition(lambda self: self.floor.turns)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """A worker dies; the batch that it ran fails right after."""
        name = data.draw(st.sampled_from(list(self.floor.turns)))
        turn = data.draw(st.sampled_from(list(self.floor.turns[name])))
        if (name, turn) in self.gone:
            return
        self.gone.append((name, turn))
        self.floor.limiter.withdraw(turn)
        self.floor.limiter.serve()
        if turn in self.floor.running[name]:
            self.floor.running[name].remove(turn)
            self.floor.limiter.finish(turn, free=False)
            self.floor.dispatch(name)
            self.floor.limiter.serve()

    @precondition(lambda self: self.gone)
    @rule()
    def come_back(self) -> None:
        name, turn = self.gone.pop()
        turn.free = True
        self.floor.dispatch(name)
        self.floor.limiter.serve()

    def taken(self) -> Counter[str]:
        taken: Counter[str] = Counter()
        for turns in self.floor.running.values():
            for turn in turns:
                taken.update({name: count for (name, _), count in turn.need.items()})
        return taken

    def sizes(self) -> dict[str, int]:
        sizes = dict.fromkeys(NAMES, 4 if self.given else 0)
        for turns in self.floor.turns.values():
            for (name, _), count in turns[0].need.items():
                sizes[name] = max(sizes[name], count)
        return sizes

    @invariant()
    def no_more_is_taken_than_there_was(self) -> None:
        """A pool may have shrunk since; what runs alone always fits."""
        sizes = {name: max(size, 3) for name, size in self.sizes().items()}
        assert all(count <= sizes[name] for name, count in self.taken().items())

    @invariant()
    def who_could_run_and_is_first_runs(self) -> None:
        """The line does not stand still while there is enough for the first in it."""
        taken, sizes = self.taken(), self.sizes()
        waiting = [
            turn
            for name, turns in self.floor.turns.items()
            if self.floor.waiting[name]
            for turn in turns
            if turn.free
        ]
        idle = [t for turns in self.floor.turns.values() for t in turns if t.ticket is not None]
        if waiting:
            first = min(waiting, key=lambda turn: (turn.weight, turn.ticket or 0))
            stale = [t for t in idle if t.free and t not in waiting and t.weight <= first.weight]
            short = any(
                taken[name] + count > sizes[name] for (name, _), count in first.need.items()
            )
            assert short or stale

    def teardown(self) -> None:
        """In the end everything that waits runs."""
        for name, turn in self.gone:
            turn.free = True
            self.floor.dispatch(name)
        self.floor.limiter.serve()
        while busy := [name for name, turns in self.floor.running.items() if turns]:
            self.floor.finish(busy[0])
        assert not +self.floor.waiting


LineMachine.TestCase.settings = SHORT
TestLine = LineMachine.TestCase


@pytest.mark.slow
def test_the_line_for_minutes(run_long: RunLong) -> None:
    run_long(LineMachine)
