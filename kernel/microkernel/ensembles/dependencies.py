"""Which models need which others: ensembles need the models of their steps. Pure.

Messages are Triton's.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from microkernel.config.model import EnsembleStep, ModelConfig
from microkernel.errors import InvalidArgument

Needs: TypeAlias = Mapping[str, Sequence[str]]
"""The names of the models that each one is composed of; nothing for one that is no ensemble."""


def steps_of(config: ModelConfig) -> tuple[str, ...]:
    """The models of an ensemble's steps, each once; nothing for a model that is no ensemble."""
    scheduling = config.ensemble_scheduling
    return tuple(dict.fromkeys(s.model_name for s in scheduling.step)) if scheduling else ()


def closure(
    names: Iterable[str], needs: Callable[[str], Sequence[str]]
) -> dict[str, Sequence[str]]:
    """What some models and all that they are composed of need."""
    found: dict[str, Sequence[str]] = {}
    waiting = list(names)
    while waiting:
        if (name := waiting.pop()) not in found:
            found[name] = needs(name)
            waiting += found[name]
    return found


def levels(needs: Needs) -> list[list[str]]:
    """All names in an order to load them: each level needs only those before it. Models that need
    each other in a circle, and those that need them, come last and together."""
    lacking = {name: {other for other in needs[name] if other in needs} for name in needs}
    users: dict[str, list[str]] = {}
    for name, others in lacking.items():
        for other in others:
            users.setdefault(other, []).append(name)
    found: list[list[str]] = []
    level = [name for name, others in lacking.items() if not others]
    while level:
        found.append(sorted(level))
        for name in level:
            del lacking[name]
        following: dict[str, None] = {}
        for name in level:
            for user in users.get(name, ()):
                lacking[user].discard(name)
                if not lacking[user]:
                    following[user] = None
        level = list(following)
    return [*found, sorted(lacking)] if lacking else found


def users_of(name: str, needs: Needs) -> list[str]:
    """Those that need a model, directly or not, in an order to look at them: each comes after those
    that it needs. It is not among them itself."""
    above = {name}
    grown = True
    while grown:
        found = {user for user, others in needs.items() if not above.isdisjoint(others)}
        grown = not found <= above
        above |= found
    rest = {user: [o for o in needs[user] if o in above] for user in above - {name}}
    return [user for level in levels(rest) for user in level]


def refuse_circle(name: str, needs: Needs) -> None:
    """Raise InvalidArgument for an ensemble that needs itself, directly or not."""
    if last := circle(name, needs):
        raise InvalidArgument(
            f"circular dependency between ensembles: {name} -> ... -> {last} -> {name}"
        )


def not_available(name: str, others: Iterable[str]) -> InvalidArgument:
    """The error of an ensemble some of whose models are in no repository."""
    return InvalidArgument(
        f"ensemble {name} contains models that are not available or ambiguous: {', '.join(others)}"
    )


def not_loaded(name: str, step: EnsembleStep) -> InvalidArgument:
    """The error of an ensemble which names a version that is not there."""
    return InvalidArgument(
        f"ensemble '{name}' depends on '{step.model_name}' whose required version "
        f"{step.model_version} is not loaded."
    )


def circle(name: str, needs: Needs) -> str:
    """The last model on a way from one back to itself, "" where there is no such way."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        for other in needs.get(current, ()):
            if other == name:
                return current
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return ""
