"""The settings of tracing, global and per model, and what each falls back to. Pure."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from microkernel.errors import InvalidArgument
from microkernel.port import TraceChanges, TraceSettings
from microkernel.tracing.changes import Values, read
from microkernel.tracing.sampler import Sampler, objection

GLOBAL = ""
"""The scope of the settings that are no model's."""


class TraceBook:
    """The samplers in force.

    A scope is a model or GLOBAL. What is not set in it falls back: a model's to the global
    settings, the global ones to those of the start. Every change makes a new sampler for the scope
    and for each model whose settings may follow it.
    """

    def __init__(self, start: TraceSettings) -> None:
        self._start = start
        self._own: dict[str, Values] = {}
        self._groups = itertools.count(1)
        self._samplers: dict[str, Sampler] = {GLOBAL: Sampler(start, next(self._groups))}

    def sampler(self, model: str) -> Sampler:
        """The sampler of a model's requests."""
        return self._samplers.get(model) or self._samplers[GLOBAL]

    @property
    def active(self) -> bool:
        """Whether any request that comes may be traced."""
        return any(sampler.active for sampler in self._samplers.values())

    def change(self, model: str, changes: TraceChanges) -> list[Sampler]:
        """Change the settings of a scope; the samplers that are no longer in force. Raises
        InvalidArgument and Unsupported for changes that cannot be; nothing has changed then."""
        values, cleared = read(changes)
        kept = {k: v for k, v in self._live(model).items() if k not in cleared}
        own = {**self._own, model: {**kept, **values}}
        made: dict[str, Sampler | None]
        if model == GLOBAL:
            made = {GLOBAL: self._made(own[GLOBAL], self._start)}
            base = _settings(made.values())
            for name in self._own.keys() - {GLOBAL}:
                own[name] = self._live(name)
                made[name] = self._made(own[name], base)
        else:
            fallback = self._samplers[GLOBAL].settings
            made = {model: self._made(own[model], fallback) if own[model] else None}
        return self._take(own, made)

    def _live(self, scope: str) -> Values:
        """What is set in a scope; of the number of traces to collect, what is left."""
        own = dict(self._own.get(scope, {}))
        if "trace_count" in own:
            own["trace_count"] = self._samplers[scope].left
        return own

    def _made(self, own: Values, fallback: TraceSettings) -> Sampler:
        given: Mapping[str, Any] = own
        settings = replace(fallback, **given)
        if reason := objection(settings):
            raise InvalidArgument(f"Attempting to set invalid trace setting :{reason}")
        return Sampler(settings, next(self._groups))

    def _take(self, own: Mapping[str, Values], made: Mapping[str, Sampler | None]) -> list[Sampler]:
        self._own = {scope: values for scope, values in own.items() if values}
        replaced = [self._samplers.pop(scope) for scope in made if scope in self._samplers]
        self._samplers.update({s: sampler for s, sampler in made.items() if sampler is not None})
        return replaced


def _settings(samplers: Iterable[Sampler | None]) -> TraceSettings:
    return next(sampler.settings for sampler in samplers if sampler is not None)
