"""The ensembles that are to serve: whether they can, with the models that serve now."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import structlog

from microkernel.cache import Cache
from microkernel.caching.keys import KEY_BYTES, model_digest
from microkernel.caching.lookups import ModelCache
from microkernel.classification import Labels
from microkernel.config.model import EnsembleStep, ModelConfig
from microkernel.distributions import Distributions
from microkernel.ensembles.dependencies import (
    Needs,
    not_available,
    not_loaded,
    refuse_circle,
    steps_of,
    users_of,
)
from microkernel.ensembles.fitting import fitted
from microkernel.errors import InvalidArgument
from microkernel.models.ensemble import EnsembleVersion, Equipment
from microkernel.models.serving import Served
from microkernel.models.table import UNLOADED, ModelTable
from microkernel.request import LATEST
from microkernel.tracing.tracer import Tracer

log = structlog.get_logger()


class Missing(InvalidArgument):
    """What an ensemble is composed of was taken down on purpose."""


@dataclass(slots=True)
class Recipe:
    """An ensemble as its directory has it: its normalised configuration, the versions to serve and
    the labels of its outputs. `cache` keeps its responses, None where they are not kept. `fault`
    says why it cannot serve with the models that there are."""

    config: ModelConfig
    versions: tuple[int, ...]
    labels: Labels = field(default_factory=dict)
    cache: Cache | None = None
    fault: InvalidArgument | None = None


class Ensembles:
    """Makes ensembles, and makes them anew or takes them down when one of their models changes.

    One that was loaded and cannot serve is remembered, and serves as soon as its models do; what
    served under its name goes on until then.
    `explicit` are the models that somebody asked for by name: others are there for ensembles only.
    """

    def __init__(
        self,
        table: ModelTable,
        tracer: Tracer | None = None,
        measure: Callable[[ModelConfig], Distributions | None] = lambda _: None,
    ) -> None:
        """`measure` gives what a version of that configuration records beside its counters."""
        self.explicit: set[str] = set()
        self._table = table
        self._tracer = tracer
        self._measure = measure
        self._recipes: dict[str, Recipe] = {}
        self._successors: dict[str, Recipe] = {}
        self._stamps: WeakKeyDictionary[Served, bytes] = WeakKeyDictionary()

    def serve(self, recipe: Recipe, needs: Needs) -> list[tuple[str, int, Served]]:
        """Have an ensemble serve in place of what served under its name; what that was. `needs`
        knows of ensembles that are not loaded yet.

        Raises InvalidArgument where it does not fit its models. What served goes on then.
        """
        name = recipe.config.name
        try:
            made = self._made(recipe, needs)
        except InvalidArgument as error:
            recipe.fault = error
            later = self._recipes if self._table.loaded(name) is None else self._successors
            later[name] = recipe
            raise
        return self._succeeded(name, recipe, made)

    def recheck(self, name: str) -> list[tuple[str, int, Served]]:
        """A model serves, has changed or was taken down: see to the ensembles above it. Returns
        what ceased to serve: name, version and the version itself."""
        ended: list[tuple[str, int, Served]] = []
        for user in users_of(name, self._all_needs()):
            ended += self._renewed(user)
        return ended

    def _renewed(self, name: str) -> list[tuple[str, int, Served]]:
        successor = self._successors.get(name)
        if successor is not None:
            try:
                return self._succeeded(name, successor, self._made(successor, {}))
            except InvalidArgument as error:
                successor.fault = error
        recipe = self._recipes.get(name)
        return [] if recipe is None else self._remade(name, recipe)

    def _succeeded(
        self, name: str, recipe: Recipe, made: dict[int, EnsembleVersion]
    ) -> list[tuple[str, int, Served]]:
        self._successors.pop(name, None)
        self._recipes[name] = recipe
        return self._swapped(name, made)

    def _remade(self, name: str, recipe: Recipe) -> list[tuple[str, int, Served]]:
        try:
            made = self._made(recipe, {})
        except InvalidArgument as error:
            recipe.fault = error
            if self._table.loaded(name) is None:
                return []
            reason = UNLOADED if isinstance(error, Missing) else error.quoted()
            log.warning("ensemble cannot serve any more", model=name, reason=str(error))
            ended = self._table.swap(name, {}, reason)
            return [(name, version, model) for version, model in ended.items()]
        recipe.fault = None
        if all(self._same(self._table.loaded(name, v), model) for v, model in made.items()):
            return []
        return self._swapped(name, made)

    def _same(self, serving: Served | None, made: EnsembleVersion) -> bool:
        """Whether what serves is what would serve in its place."""
        return (
            isinstance(serving, EnsembleVersion)
            and serving.graph == made.graph
            and serving.config == made.config
            and serving.labels == made.labels
            and self._stamps.get(serving) == self._stamps.get(made)
        )

    def _swapped(
        self, name: str, made: dict[int, EnsembleVersion]
    ) -> list[tuple[str, int, Served]]:
        for version, model in made.items():
            steps = [step.model for step in model.graph.steps]
            log.info("ensemble loaded", model=name, version=version, steps=steps)
        return [(name, v, model) for v, model in self._table.swap(name, made).items()]

    def forget(self, name: str) -> tuple[str, ...]:
        """A model is to be served no more, or is no ensemble any more; what it was composed of."""
        self._successors.pop(name, None)
        recipe = self._recipes.pop(name, None)
        return () if recipe is None else steps_of(recipe.config)

    def is_spare(self, name: str) -> bool:
        """Whether a model was loaded for ensembles only, none of which is left."""
        used = any(name in needed for needed in self._all_needs().values())
        return not used and name not in self.explicit

    def _needs(self) -> dict[str, tuple[str, ...]]:
        return {name: steps_of(recipe.config) for name, recipe in self._recipes.items()}

    def _all_needs(self) -> dict[str, tuple[str, ...]]:
        """As `_needs`, with what is to serve later."""
        found = self._needs()
        for name, successor in self._successors.items():
            found[name] = (*found.get(name, ()), *steps_of(successor.config))
        return found

    def _made(self, recipe: Recipe, needs: Needs) -> dict[int, EnsembleVersion]:
        config = recipe.config
        known: Needs = {**needs, **self._needs(), config.name: steps_of(config)}
        refuse_circle(config.name, known)
        models = self._models(config)
        config, graph = fitted(config, [model.config for model in models])
        labels = {**_inherited(config, models), **recipe.labels}
        content = self._content(models, {}) if recipe.cache is not None else b""
        made = {}
        for version in recipe.versions:
            cache = None
            if recipe.cache is not None:
                cache = ModelCache(recipe.cache, config, version, content)
            equipment = Equipment(labels, self._tracer, cache)
            served = EnsembleVersion(config, version, graph, self._find, equipment)
            served.stats.distributions = self._measure(config)
            self._stamps[served] = content
            made[version] = served
        return made

    def _content(self, models: Sequence[Served], known: dict[Served, bytes]) -> bytes:
        """What tells models apart, and ensembles by the models behind them, too: what is kept of an
        ensemble's responses is good as long as these are the same. `known` are those that were
        looked at before."""
        for model in models:
            if model not in known:
                known[model] = self._stamp(model, known)
        return b"".join([known[model] for model in models])

    def _stamp(self, model: Served, known: dict[Served, bytes]) -> bytes:
        """Where nothing is known of a model's files, a stamp is good as long as it is loaded."""
        if isinstance(model, EnsembleVersion):
            content = self._content(list(model.composing()), known)
            return model_digest(model.config, model.version, content).digest()
        return model.identity or self._stamps.setdefault(model, secrets.token_bytes(KEY_BYTES))

    def _find(self, name: str, version: int) -> Served:
        return self._table.look_up(name, max(version, LATEST))

    def _models(self, config: ModelConfig) -> list[Served]:
        """The model of each step as it serves now. Raises InvalidArgument where one does not."""
        name, needed = config.name, steps_of(config)
        absent = [other for other in needed if self._table.reasons(other) is None]
        if absent:
            raise not_available(name, absent)
        for other in needed:
            if self._table.loaded(other) is None:
                raise self._unable(name, other)
        scheduling = config.ensemble_scheduling
        return [self._version(name, step) for step in (scheduling.step if scheduling else ())]

    def _version(self, name: str, step: EnsembleStep) -> Served:
        found = self._table.loaded(step.model_name, step.model_version)
        if found is None:
            raise not_loaded(name, step)
        return found

    def _unable(self, name: str, other: str) -> InvalidArgument:
        """Why an ensemble cannot serve where nothing serves under another name."""
        start = f"ensemble '{name}' depends on '{other}' which"
        recipe = self._recipes.get(other)
        if recipe is not None and recipe.fault is not None:
            kind = Missing if isinstance(recipe.fault, Missing) else InvalidArgument
            return kind(f"{start} is not valid")
        reasons = self._table.reasons(other)
        if not reasons:
            return Missing(f"{start} has no loaded version")
        parts = "".join(
            f"version {version} is at UNAVAILABLE state: {reason};"
            for version, reason in sorted(reasons.items())
        )
        return InvalidArgument(
            f"{start} has no loaded version. Model '{other}' loading failed with error: {parts}"
        )


def _inherited(config: ModelConfig, models: list[Served]) -> dict[str, tuple[str, ...]]:
    """The labels of outputs of models that become outputs of the ensemble."""
    outputs = {output.name for output in config.output}
    steps = config.ensemble_scheduling.step if config.ensemble_scheduling else ()
    return {
        tensor: tuple(model.labels[name])
        for step, model in zip(steps, models, strict=True)
        for name, tensor in step.output_map.items()
        if tensor in outputs and name in model.labels
    }
