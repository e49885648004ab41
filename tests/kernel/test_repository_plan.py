"""What is to be done about changes on disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.repository.plan import Plan, plan
from microkernel.repository.store import Seen

OLD, NEW, TWICE = Seen(1), Seen(2), Seen(0, duplicated=True)
Sight = dict[str, Seen]


@pytest.mark.parametrize(
    ("handled", "before", "now", "wanted"),
    [
        ({}, {}, {}, Plan()),
        ({"m": OLD}, {"m": OLD}, {"m": OLD}, Plan()),
        ({}, {}, {"m": OLD}, Plan(unsettled=["m"])),
        ({}, {"m": OLD}, {"m": NEW}, Plan(unsettled=["m"])),
        ({}, {"m": OLD}, {"m": OLD}, Plan(loads=["m"])),
        ({"m": OLD}, {"m": OLD}, {"m": NEW}, Plan(unsettled=["m"])),
        ({"m": OLD}, {"m": NEW}, {"m": NEW}, Plan(loads=["m"])),
        ({"m": OLD}, {"m": OLD}, {}, Plan(unsettled=["m"])),
        ({"m": OLD}, {}, {}, Plan(unloads=["m"])),
        ({"m": OLD}, {}, {"m": OLD}, Plan()),  # it was gone for a moment
        ({"m": OLD}, {"m": TWICE}, {"m": TWICE}, Plan(unloads=["m"], loads=["m"])),
        ({"m": TWICE}, {"m": TWICE}, {"m": TWICE}, Plan()),
        ({"m": TWICE}, {"m": OLD}, {"m": OLD}, Plan(loads=["m"])),
        (
            {"b": OLD, "c": OLD},
            {"a": OLD, "b": OLD},
            {"a": OLD, "b": NEW},
            Plan(unloads=["c"], loads=["a"], unsettled=["b"]),
        ),
    ],
)
def test_what_a_look_asks_for(handled: Sight, before: Sight, now: Sight, wanted: Plan) -> None:
    found = plan(handled, before, now)
    assert (list(found.unloads), list(found.loads)) == (list(wanted.unloads), list(wanted.loads))
    assert list(found.unsettled) == list(wanted.unsettled)


def test_a_model_that_is_being_loaded_is_left_for_the_next_look() -> None:
    assert plan({"m": OLD}, {"m": NEW}, {"m": NEW}, busy={"m"}) == plan({}, {}, {})
    assert plan({"m": OLD}, {}, {}, busy={"m"}) == plan({}, {}, {})


SIGHTS = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([OLD, NEW, TWICE]))


def carried_out(handled: Sight, wanted: Plan, now: Sight) -> Sight:
    """What is handled when a plan was carried out."""
    touched = {*wanted.unloads, *wanted.loads}
    left = {name: seen for name, seen in handled.items() if name not in touched}
    return left | {name: now[name] for name in touched if name in now}


@given(SIGHTS, st.lists(SIGHTS, min_size=1))
def test_only_what_two_looks_agree_on_is_touched(handled: Sight, looks: list[Sight]) -> None:
    before: Sight = dict(handled)
    for now in looks:
        found = plan(handled, before, now)
        for name in {*found.unloads, *found.loads}:
            assert before.get(name) == now.get(name) != handled.get(name)
        assert set(found.unsettled).isdisjoint({*found.unloads, *found.loads})
        assert [n for n in found.loads if n not in now] == []
        assert [n for n in found.unloads if n in now and not now[n].duplicated] == []
        handled, before = carried_out(handled, found, now), now


@given(SIGHTS, SIGHTS, SIGHTS)
def test_two_looks_at_what_stays_bring_everything_in_order(
    handled: Sight, before: Sight, now: Sight
) -> None:
    for previous in (before, now):
        handled = carried_out(handled, plan(handled, previous, now), now)
    assert handled == now
    assert plan(handled, now, now) == plan({}, {}, {})
