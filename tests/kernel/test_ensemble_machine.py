"""Whatever happens to an ensemble, its models and its callers, every request that it accepted gets
exactly one final answer, made of its own tensors, and leaves nothing behind."""

import asyncio
import gc
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from ensemble_calls import Call, bare
from ensemble_models import row
from ensemble_sketches import Line, Sketch, lines
from ensemble_steps import Open, StepModel
from ensemble_world import PLENTY, World, runs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduling_machines import SHORT, RunLong

from microkernel import InferRequest, InferResponse, MicrokernelError, Unavailable, Unsupported
from microkernel.models.ensemble import EnsembleVersion
from microkernel.models.ensemble_gates import LONGEST_WAIT

turns = st.sampled_from([0, 1, 2, 3, 4, PLENTY, PLENTY, PLENTY])
limits = st.sampled_from([0, 1, 1, 2])


class EnsembleMachine(World, RuleBasedStateMachine):
    """Asks, ends steps well or badly, reads, leaves, replaces models and lets time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.counted: Counter[EnsembleVersion] = Counter()
        self.full: dict[tuple[EnsembleVersion, int], float] = {}
        self.closed = False

    @initialize(inner=st.none() | lines, outer=lines, limit=limits, within=limits)
    def start(
        self, inner: Sequence[Line] | None, outer: Sequence[Line], limit: int, within: int
    ) -> None:
        below: EnsembleVersion | None = None
        if inner is not None:
            below = self.build(Sketch("i", most=1), inner, within)
        self.build(Sketch("e", below), outer, limit)

    # Callers

    @rule(
        name=st.sampled_from("eeei"),
        streaming=st.booleans(),
        shown=st.sets(st.integers(0, 3), max_size=2),
        count=st.integers(1, 3),
        turns=turns,
    )
    def ask_some(self, count: int, **one: Any) -> None:
        for _ in range(count):
            self.ask(**one)

    def ask(self, name: str, streaming: bool, shown: set[int], turns: int) -> None:
        served = self.site.models.get(name)
        if not isinstance(served, EnsembleVersion):
            return
        names = [output.name for output in served.config.output]
        outputs = tuple(output for index, output in enumerate(names) if index in shown)
        number = len(self.calls) + 1000
        below = self.below(served)
        request = InferRequest(
            name, (row("a", number),), outputs=outputs, parameters={"number": number}
        )
        call = Call(number, served, outputs, frozenset(below or ()))
        if self.closed or below is None:
            self._refused(served, request, streaming=streaming)
            return
        self.counted[served] += 1
        self.calls.append(call)
        if streaming:
            call.stream = self.run(served.stream(request))
        else:
            call.task = self.loop.create_task(served.infer(request))
            call.task.add_done_callback(lambda task: self._returned(call, task))
        del request
        self.call(lambda: None, max(turns, 1))

    def _refused(self, served: EnsembleVersion, request: InferRequest, *, streaming: bool) -> None:
        words = "stopped accepting" if self.closed else f"in ensemble '{request.model_name}', Req"
        with pytest.raises(MicrokernelError, match=words):
            self.run(served.stream(request) if streaming else served.infer(request))
        self.counted[served] += not self.closed

    def _returned(self, call: Call, task: "asyncio.Task[InferResponse]") -> None:
        call.task = None  # and what it has returned
        if call.gone:
            return
        try:
            call.take(self.steps.faults, task.result())
        except MicrokernelError as error:
            call.error, call.answered = bare(error), True

    def _present(self) -> list[Call]:
        return [call for call in self.calls if not (call.answered or call.gone)]

    @precondition(lambda self: self._present())
    @rule(data=st.data(), turns=turns)
    def leave(self, data: st.DataObject, turns: int) -> None:
        self._leave(data.draw(st.sampled_from(self._present())), turns)

    def _leave(self, call: Call, turns: int) -> None:
        call.gone = True
        self.call(call.stream.close if call.stream else _task(call).cancel, turns)

    @precondition(lambda self: self._readable())
    @rule(data=st.data(), count=st.integers(1, 4), turns=turns)
    def read(self, data: st.DataObject, count: int, turns: int) -> None:
        call = data.draw(st.sampled_from(self._readable()))
        for _ in range(count):
            self._read(call)
        self.call(lambda: None, turns)

    def _readable(self) -> list[Call]:
        return [
            call
            for call in self.calls
            if call.stream is not None and call.stream.buffered and not call.gone
        ]

    def _read(self, call: Call) -> None:
        if call.stream is None or not call.stream.buffered:
            return
        response = self.run(anext(call.stream))
        call.take(self.steps.faults, response)
        if response.final:
            assert self.run(anext(call.stream, None)) is None, "something after the final response"
            assert not (call.error and response.outputs)

    # Steps

    def _by_number(self, number: int) -> Call:
        return self.calls[number - 1000]

    def _drawn(self, data: st.DataObject) -> Open:
        return data.draw(st.sampled_from(self.steps.open))

    @precondition(lambda self: self.steps.open)
    @rule(data=st.data(), final=st.booleans(), bare=st.booleans(), turns=turns)
    def answer_a_step(self, data: st.DataObject, final: bool, bare: bool, turns: int) -> None:
        self._answer(self._drawn(data), final=final, bare=bare, turns=turns)

    @precondition(lambda self: self.steps.open)
    @rule(data=st.data(), seed=st.integers(0, 9), turns=turns)
    def answer_and_leave_at_once(self, data: st.DataObject, seed: int, turns: int) -> None:
        opened = self._drawn(data)
        call = self._by_number(opened.number)
        self._answer(opened, final=True, bare=False, turns=seed)
        if call in self._present():
            self._leave(call, turns)

    @precondition(lambda self: self.steps.open)
    @rule(data=st.data(), count=st.integers(2, 6), final=st.booleans(), turns=turns)
    def answer_often(self, data: st.DataObject, count: int, final: bool, turns: int) -> None:
        often = [opened for opened in self.steps.open if opened.model.config.decoupled]
        opened = data.draw(st.sampled_from(often or self.steps.open))
        for left in reversed(range(count)):
            if opened in self.steps.open:
                self._answer(opened, final=final and not left, bare=False, turns=turns)

    def _answer(self, opened: Open, *, final: bool, bare: bool, turns: int) -> None:
        decoupled = opened.model.config.decoupled
        final, bare = final or not decoupled, bare and final and decoupled
        self.call(lambda: opened.model.reply(opened, final=final, bare=bare), turns)

    @precondition(lambda self: self.steps.open)
    @rule(data=st.data(), nonsense=st.booleans(), turns=turns)
    def fail_a_step(self, data: st.DataObject, nonsense: bool, turns: int) -> None:
        opened = self._drawn(data)
        self._by_number(opened.number).must_fail = True
        if nonsense:
            senseless = {"sequence_id": 1.5}
            self.call(lambda: opened.model.reply(opened, parameters=senseless), turns)
        else:
            self.call(lambda: opened.model.fail(opened, Unavailable("no")), turns)

    # Models

    def _names(self, *, there: bool) -> list[str]:
        if self.closed:
            return []
        return [name for name in self.texts if (name in self.site.models) is there]

    @precondition(lambda self: self._names(there=True))
    @rule(data=st.data(), away=st.sampled_from([False, False, True]), turns=turns)
    def replace_a_model_or_take_it_down(self, data: st.DataObject, away: bool, turns: int) -> None:
        name = data.draw(st.sampled_from(self._names(there=True)))
        served = self.site.models.pop(name)
        if not away and self.may_load(name):
            self.load(name)
        self.call(lambda: self.retire(served), turns)

    @rule(turns=turns)
    def bring_all_models_back(self, turns: int) -> None:
        for name in self._names(there=False):
            if self.may_load(name):
                self.load(name)
        for model in self.site.models.values():
            if isinstance(model, StepModel):
                model.ready = True
        self.call(lambda: None, turns)

    @rule(data=st.data(), turns=turns)
    def lose_a_worker(self, data: st.DataObject, turns: int) -> None:
        """All that a model runs fails, and it is not there for a while."""
        models = [m for m in self.site.models.values() if isinstance(m, StepModel)]
        if not models:
            return
        model = data.draw(st.sampled_from(models))
        model.ready = False
        self._fail_all([o for o in self.steps.open if o.model is model], turns)

    def _fail_all(self, dying: Sequence[Open], turns: int) -> None:
        for opened in dying:
            self._by_number(opened.number).must_fail = True

        def fail() -> None:
            for opened in dying:
                opened.model.fail(opened, Unavailable("the worker died"))

        self.call(fail, turns)

    # The server

    @rule(seconds=st.sampled_from([0.5, 30.0, 61.0, LONGEST_WAIT]))
    def let_time_pass(self, seconds: float) -> None:
        self.call(lambda: None, PLENTY)
        self.no_more_than_allowed_are_under_way()  # which notes since when
        for call in self.calls:
            call.may_fail |= call.stream is not None and call.stream._throttled
        self.run(asyncio.sleep(seconds))
        self.call(lambda: None, PLENTY)

    @precondition(lambda self: len(self.calls) > 4)
    @rule(turns=turns)
    def drain_all(self, turns: int) -> None:
        def drain() -> None:
            for served in self.site.models.values():
                self.retire(served)

        if not self.closed:
            self.closed = True
            self.call(drain, max(turns, 1))

    @precondition(lambda self: self.closed)
    @rule(models=st.booleans(), turns=turns)
    def abandon_all(self, models: bool, turns: int) -> None:
        """What an exit timeout does, to the ensembles at least."""

        def abandon() -> None:
            for served in self.ensembles:
                served.abandon("the server is stopping")

        for call in self.calls:
            call.may_fail |= not call.over
        self.call(abandon, 0)
        self._fail_all(tuple(self.steps.open) if models else (), turns)
        if models:
            self.call(lambda: None, PLENTY)
            assert all(call.over for call in self.calls), "a call that was abandoned is not over"

    # What always holds

    @invariant()
    def nothing_was_found_to_be_wrong(self) -> None:
        assert self.steps.faults == []
        for call in self.calls:
            if call.answered and not call.gone:
                self._check_answer(call)

    def _check_answer(self, call: Call) -> None:
        sent = self.expected(call.target, call.outputs, call.number)
        if call.error is None:
            assert not call.must_fail, "it has an answer although a step failed"
            if sent is not None:
                assert len(call.paths) == len(sent), "not as many answers as the last step gave"
                # What the inner ensemble makes once has a shorter path than its responses.
                length = len(call.paths[0]) if call.paths else 0
                assert sorted(call.paths) == [path[:length] for path in sent]
        elif not (call.must_fail or call.may_fail):
            assert isinstance(call.error, Unsupported), call.error
            assert call.stream is None
            assert call.target.config.decoupled

    @invariant()
    def every_call_gets_on(self) -> None:
        """It is over, a step of it runs, it waits at a gate, or its caller does not read."""
        if not self.settled:
            return
        for call in self.calls:
            runs = [opened for opened in self.steps.open if opened.number == call.number]
            if call.over:
                assert not (runs and call.gone), "a step runs for one who has left"
            elif call.must_fail and not self._held_up(call):
                assert runs, "a call that has failed is not answered"
                # An error within the inner ensemble is not known outside before it is over there.
                if not any(runs_in("i", o) for o in runs) or call.target.config.name == "i":
                    assert not any(o.model.config.decoupled for o in runs), "it goes on answering"
            elif not runs:
                assert self._held_up(call), "a call is stuck"

    def _held_up(self, call: Call) -> bool:
        return (call.stream is not None and call.stream._throttled) or self._waits_somewhere()

    def _waits_somewhere(self) -> bool:
        return any(gate._waiting for made in self.ensembles for gate in made._about.gates)

    @invariant()
    def no_more_than_allowed_are_under_way(self) -> None:
        if not self.settled:
            return
        under_way = Counter(
            (made, opened.model.config.name)
            for opened in self.steps.open
            for made in (
                self._by_number(opened.number).target,
                *self._by_number(opened.number).below,
            )
            if isinstance(made, EnsembleVersion) and runs(made, opened.model.config.name)
        )
        now = self.loop.time()
        for made in self.ensembles:
            for number, gate in enumerate(made._about.gates):
                step, key = made.graph.steps[number], (made, number)
                inside = under_way[made, step.model]
                # A step whose last responses cannot be passed on yet is under way, too.
                if step.model != "i" and not step.decoupled:
                    assert gate._inside == inside, "a place is lost, or taken twice"
                assert gate._inside >= inside
                waits = len(gate._waiting)
                assert not (waits and gate._inside < gate._limit), "it waits before an open gate"
                if gate._inside < gate._limit:
                    self.full.pop(key, None)
                elif gate._inside > gate._limit:
                    assert now - self.full[key] >= LONGEST_WAIT, "too many at once"
                else:
                    self.full.setdefault(key, now)

    @invariant()
    def what_is_not_needed_any_more_goes(self) -> None:
        if not self.settled:
            return
        pending = {n for n, call in enumerate(self.calls, 1000) if not self._finished(call)}
        for task, served in self.retiring.items():
            users = [self._by_number(n) for n in pending]
            needed = any(served in (call.target, *call.below) for call in users)
            assert task.done() is not needed, "taken down too early, or too late"
        for made in self.ensembles:
            busy = sum(call.target is made for call in map(self._by_number, pending))
            assert made._unanswered >= busy
            assert busy or not made._runs or made.config.name == "i"

    def _finished(self, call: Call) -> bool:
        return call.over and all(opened.number != call.number for opened in self.steps.open)

    def teardown(self) -> None:
        """In the end all steps answer, all callers read, and nothing is left."""
        try:
            self._finish()
        finally:
            self.close()

    def _finish(self) -> None:
        self.call(lambda: None, PLENTY)
        while any(not self._finished(call) for call in self.calls):
            self._go_on()
        self._check_what_is_left()

    def _go_on(self) -> None:
        busy, readable = list(self.steps.open), self._readable()
        assert busy or readable, "nothing happens any more"
        for opened in busy:
            if opened in self.steps.open:
                self._answer(opened, final=True, bare=False, turns=PLENTY)
        for call in readable:
            self._read_all(call)
        self.call(lambda: None, PLENTY)
        self.nothing_was_found_to_be_wrong()
        self.every_call_gets_on()

    def _read_all(self, call: Call) -> None:
        while call in self._readable():
            self._read(call)

    def _check_what_is_left(self) -> None:
        self.what_is_not_needed_any_more_goes()
        for call in self.calls:
            self._read_all(call)
            assert call.answered or call.gone
        self.nothing_was_found_to_be_wrong()
        for made in self.ensembles:
            stats, accepted = made.stats, self.counted[made]
            if made.config.name == "e":
                assert stats.success.count + stats.fail.count / 2 == accepted
                assert stats.execution_count == stats.inference_count == stats.success.count
            assert (made._runs, made._playing, made._unanswered) == (set(), set(), 0)
            assert made._holds._count == 0
            assert [
                (gate._inside, *gate._waiting) for gate in made._about.gates if gate._inside
            ] == []
        assert self.site.idle()
        assert all(task.done() for task in self.retiring)
        assert not asyncio.all_tasks(self.loop)
        if self._arrays():
            gc.collect()  # which takes a while, and is needed only where somebody has left
        assert self._arrays() == []

    def _arrays(self) -> list[tuple[int, str, str]]:
        """The tensors that are still there: call, model and output."""
        return [
            (n, model, output)
            for n, model, output, array in self.steps.arrays
            if array() is not None
        ]


def _task(call: Call) -> "asyncio.Task[InferResponse]":
    assert call.task is not None
    return call.task


def runs_in(ensemble: str, opened: Open) -> bool:
    return opened.model.config.name.startswith(f"{ensemble}_")


EnsembleMachine.TestCase.settings = settings(SHORT, max_examples=50)
TestEnsembles = EnsembleMachine.TestCase


@pytest.mark.slow
def test_ensembles_for_long(run_long: RunLong) -> None:
    """As many examples as fit into the time."""
    run_long(EnsembleMachine)
