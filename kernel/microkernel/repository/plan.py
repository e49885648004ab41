"""What the server has to do when the repositories have changed. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from microkernel.repository.store import Seen


@dataclass(frozen=True, slots=True)
class Plan:
    """Names of models, in order: those to take down, those to load after that, and those that were
    not the same at two looks in a row, so that somebody may still be writing them."""

    unloads: Sequence[str] = ()
    loads: Sequence[str] = ()
    unsettled: Sequence[str] = ()


def plan(
    handled: Mapping[str, Seen],
    before: Mapping[str, Seen],
    now: Mapping[str, Seen],
    busy: Collection[str] = (),
) -> Plan:
    """From what each model looked like when it was last loaded, or failed to load (`handled`), at
    the last look (`before`) and at this one (`now`), to what is to be done. Models that are `busy`
    are left for the next look.

    A name that has come to stand in two repositories is taken down, and loaded so that it is
    refused.
    """
    unloads, loads, unsettled = [], [], []
    for name in sorted({*handled, *now}):
        seen = now.get(name)
        if name in busy or seen == handled.get(name):
            continue
        if seen != before.get(name):
            unsettled.append(name)
            continue
        if seen is None or seen.duplicated:
            unloads.append(name)
        if seen is not None:
            loads.append(name)
    return Plan(unloads, loads, unsettled)
