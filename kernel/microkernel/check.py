"""`microkernel check` and `config`: what is wrong with the models of a repository, and what would
be filled in."""

import difflib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from microkernel.config.codec import config_to_text
from microkernel.config.ensemble_rules import ENSEMBLE
from microkernel.config.model import ModelConfig
from microkernel.ensembles.dependencies import not_available, not_loaded, refuse_circle, steps_of
from microkernel.ensembles.fitting import fitted
from microkernel.errors import InvalidArgument, MicrokernelError
from microkernel.models.loader import Loader
from microkernel.repository.store import DUPLICATE, Found, find_models, versions


@dataclass(frozen=True, slots=True)
class Verdict:
    """One model: `problem` is "" where it is right; `added` are the lines of the configuration that
    the server and the backend would fill in."""

    model: str
    problem: str
    added: tuple[str, ...]


async def check(repository: Path, loader: Loader, *, load: bool = False) -> AsyncIterator[Verdict]:
    """A verdict for every model in name order. Raises InvalidArgument where there is no repository.

    Backends complete configurations in workers, as at a load. No model is loaded, unless `load`
    asks for it: then each is, one after the other, and unloaded again. Ensembles are held against
    the completed configurations of their models.
    """
    found = find_models([repository])
    checker = _Checker(found, loader, load=load)
    for name in sorted({*found.models, *found.duplicates}):
        yield await checker.verdict(name)


async def configuration(directory: Path, version: int | None, loader: Loader) -> ModelConfig:
    """The configuration that a model would be served with, without the defaults that a person need
    not write: of the given version, else of the latest that would serve.

    The models of an ensemble are looked for beside it. Raises what completing raises, and
    InvalidArgument for a version that is not there.
    """
    config = loader.read(directory)
    chosen = loader.chosen(config, directory)[-1]
    if version is not None:
        present = versions(directory).found
        if version not in present:
            known = ", ".join(map(str, present))
            raise InvalidArgument(
                f"model '{config.name}' has no version {version}; there are {known}"
            )
        chosen = version
    if config.platform == ENSEMBLE:
        return await _Checker(find_models([directory.parent]), loader).ensemble(config)
    return await loader.filled(config, directory, chosen)


@dataclass(frozen=True, slots=True)
class _Completed:
    """A model whose configuration is right, and the versions that would serve."""

    config: ModelConfig
    versions: Sequence[int]


class _Checker:
    """Completes the configurations of some models, each once."""

    def __init__(self, found: Found, loader: Loader, *, load: bool = False) -> None:
        self._found = found
        self._loader = loader
        self._load = load
        self._needs = {name: self._steps(where) for name, where in found.models.items()}
        self._known: dict[str, _Completed | MicrokernelError] = {}

    def _steps(self, directory: Path) -> tuple[str, ...]:
        try:
            return steps_of(self._loader.written(directory))
        except MicrokernelError:
            return ()  # completing it tells why

    async def verdict(self, name: str) -> Verdict:
        if name in self._found.duplicates:
            return Verdict(name, DUPLICATE, ())
        completed = await self._completed(name)
        if isinstance(completed, MicrokernelError):
            return Verdict(name, completed.quoted(), ())
        written = self._loader.written(self._found.models[name])
        return Verdict(name, "", _difference(written, completed.config))

    async def _completed(self, name: str) -> _Completed | MicrokernelError:
        """A model as it would serve, or why it would not."""
        if name not in self._known:
            try:
                self._known[name] = await self._complete(name, self._found.models[name])
            except MicrokernelError as error:
                self._known[name] = error
        return self._known[name]

    async def _complete(self, name: str, directory: Path) -> _Completed:
        loader = self._loader
        config = loader.read(directory)
        chosen = loader.chosen(config, directory)
        completed = config
        for version in chosen:
            completed = await loader.completed(config, directory, version)
        if config.platform == ENSEMBLE:
            completed = await self.ensemble(completed)
        elif self._load:
            for version in chosen:
                await (await loader.load(config, directory, version)).stop()
        return _Completed(completed, chosen)

    async def ensemble(self, config: ModelConfig) -> ModelConfig:
        """An ensemble as it serves with its models. Raises InvalidArgument where it does not."""
        refuse_circle(config.name, self._needs)
        fitting, _ = fitted(config, await self._models(config))
        return fitting

    async def _models(self, ensemble: ModelConfig) -> list[ModelConfig]:
        """The configurations of the models of an ensemble's steps."""
        name, needed = ensemble.name, steps_of(ensemble)
        if absent := [other for other in needed if other not in self._found.models]:
            raise not_available(name, absent)
        scheduling = ensemble.ensemble_scheduling
        found = []
        for step in scheduling.step if scheduling is not None else ():
            model = await self._completed(step.model_name)
            if isinstance(model, MicrokernelError):
                raise InvalidArgument(
                    f"ensemble '{name}' depends on '{step.model_name}' which is not valid"
                )
            if step.model_version >= 0 and step.model_version not in model.versions:
                raise not_loaded(name, step)
            found.append(model.config)
        return found


def _difference(before: ModelConfig, after: ModelConfig) -> tuple[str, ...]:
    lines = difflib.ndiff(config_to_text(before).splitlines(), config_to_text(after).splitlines())
    return tuple(line[2:] for line in lines if line.startswith("+ "))
