"""Carries out which models of the repositories are served: loads and unloads them, and takes them
down at the end.

A reload starts the new versions beside the old ones and swaps them when all are up, so a version
present in both never fails to answer. Where one fails, the old ones stay.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import structlog

from microkernel.config.ensemble_rules import ENSEMBLE
from microkernel.config.model import ModelConfig
from microkernel.ensembles.dependencies import Needs, closure, levels, steps_of
from microkernel.errors import (
    AlreadyExists,
    Internal,
    InvalidArgument,
    MicrokernelError,
    NotFound,
)
from microkernel.models.ensembles import Ensembles
from microkernel.models.loader import Loader
from microkernel.models.serving import Served
from microkernel.models.table import ModelTable, State
from microkernel.port import ModelIndex
from microkernel.repository.override import Override, Unpacked
from microkernel.repository.store import DUPLICATE, directories, find_models, fingerprint
from microkernel.tracing.tracer import Tracer

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Source:
    """What a model was last loaded from: a directory, the fingerprint of what was in it, and the
    files that came with the request, None where none did. A configuration that came along does not
    count: it stays in force until the directory changes or the model is unloaded. One that is
    `named` lies anywhere, and goes by the name it was given."""

    directory: Path
    fingerprint: int
    unpacked: Unpacked | None = None
    named: bool = False

    def close(self) -> None:
        """Remove files that came with the request."""
        if self.unpacked is not None:
            self.unpacked.close()


class _Absent(InvalidArgument):
    """There is no such model. Nothing is kept of its name, which a client made up."""


class LoadFailed(InvalidArgument):
    """A version of a model could not be loaded; the message says which and why."""


class Catalogue:
    """The models of some repositories. `threads` is how many versions may load at once, `retries`
    how often a version that fails is tried again."""

    def __init__(
        self,
        repositories: Sequence[Path],
        loader: Loader,
        table: ModelTable,
        threads: int,
        retries: int = 0,
        tracer: Tracer | None = None,
    ) -> None:
        """`tracer` is the one of the requests that ensembles make."""
        self._ensembles = Ensembles(table, tracer, loader.distributions)
        self._repositories = repositories
        self._loader = loader
        self._table = table
        self._loads = asyncio.Semaphore(max(1, threads))
        self._retries = retries
        # By names that clients choose, hence only as long as somebody holds them.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._sources: dict[str, _Source] = {}
        self._failed: set[str] = set()
        self._loading: set[asyncio.Task[None]] = set()
        self._retiring: dict[asyncio.Task[None], Served] = {}

    async def load_all(self, wanted: Sequence[str] | None) -> None:
        """Load the models named, or all for None. A model that fails stops no other; the table
        keeps its reason. Raises InvalidArgument where a repository or a wanted model is missing."""
        found = await asyncio.to_thread(find_models, self._repositories)
        names = sorted({*found.models, *found.duplicates}) if wanted is None else wanted
        for name in names:
            if name not in found.models and name not in found.duplicates:
                raise InvalidArgument(f"model '{name}' of --load-model is in no repository")
        self._ensembles.explicit.update(names)
        needs = await asyncio.to_thread(closure, names, self._needs)
        for level in levels(needs):
            await self._load_level(level, needs)

    async def index(self) -> list[ModelIndex]:
        """Every version that was ever loaded and every other model of the repositories, which are
        looked at anew, in name order. Raises InvalidArgument where one cannot be read."""
        found = await asyncio.to_thread(find_models, self._repositories)
        known = self._table.index(ready=False)
        names = {line.name for line in known}
        others = [ModelIndex(name) for name in found.models.keys() - names]
        twice = State.UNAVAILABLE.value, DUPLICATE
        others += [ModelIndex(name, "", *twice) for name in found.duplicates.keys() - names]
        return sorted([*known, *others], key=attrgetter("name"))

    async def load(
        self, name: str, override: Override | None = None, directory: Path | None = None
    ) -> None:
        """Load a model, or load it again if its directory changed; returns when it serves. With
        `directory` it is the model which lies there, until it is unloaded.

        Raises Internal where there is no such model or its configuration cannot be used, and
        LoadFailed where a version does not come up. What served before goes on serving then. A load
        that has begun goes on when its caller gives up.
        """
        await asyncio.shield(self._own_load(self._load_whole(name, override, directory)))

    def _own_load(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._loading.add(task)
        task.add_done_callback(self._loaded)
        return task

    def _loaded(self, task: "asyncio.Task[None]") -> None:
        self._loading.discard(task)
        if not task.cancelled():
            task.exception()  # logged already; its caller may be gone

    async def _load_whole(
        self, name: str, override: Override | None, directory: Path | None
    ) -> None:
        """Load a model, after those that it is composed of."""
        own = None if override is None else override.config
        needs = await asyncio.to_thread(self._all_needs, name, own, directory)
        for level in levels({other: needs[other] for other in needs if other != name}):
            await self._load_level([n for n in level if not self._is_brought(n)], needs)
        await self._load_in_turn(name, needs, override, directory)
        self._ensembles.explicit.add(name)

    async def _load_level(self, names: Sequence[str], needs: Needs) -> None:
        """Load models that do not need each other; one that fails stops no other."""
        loads = [self._own_load(self._load_in_turn(name, needs)) for name in names]
        for result in await asyncio.gather(*loads, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, MicrokernelError):
                raise result

    def _is_brought(self, name: str) -> bool:
        """Whether a model's files came with a request to load it, so that there are no others."""
        source = self._sources.get(name)
        return source is not None and source.unpacked is not None

    def _all_needs(self, name: str, own: ModelConfig | None, directory: Path | None) -> Needs:
        """What a model that is about to be loaded is composed of, directly or not, by the name of
        each."""
        first = self._needs(name, directory) if own is None else steps_of(own)
        return closure([name], lambda other: first if other == name else self._needs(other))

    def _needs(self, name: str, directory: Path | None = None) -> Sequence[str]:
        """What a model is composed of, as its directory has it; nothing where that cannot be told,
        for loading it tells why."""
        try:
            return steps_of(self._loader.written(self._directory(name, directory)[0]))
        except MicrokernelError:
            return ()

    async def _load_in_turn(
        self,
        name: str,
        needs: Needs,
        override: Override | None = None,
        directory: Path | None = None,
    ) -> None:
        async with self._locks.setdefault(name, asyncio.Lock()):
            try:
                source = await asyncio.to_thread(self._source, name, override, directory)
            except MicrokernelError as error:
                self._refuse(name, error)
                raise not_polled(name) from error
            if override is None and self._is_loaded(name, source):
                return
            try:
                await self._load(name, needs, source, override)
            except BaseException:
                source.close()  # what serves, and what it was loaded from, stay
                self._failed.add(name)  # the next load tries again, changed or not
                raise
            self._failed.discard(name)
            previous = self._sources.get(name)
            self._sources[name] = source
            if previous is not None:
                previous.close()

    def _source(self, name: str, override: Override | None, given: Path | None) -> _Source:
        """Where the model is loaded from. Raises InvalidArgument where there is no such model."""
        if override is not None and override.files:
            unpacked = Unpacked(name, override.files)
            return _Source(unpacked.directory, 0, unpacked)
        directory, named = self._directory(name, given)
        return _Source(directory, fingerprint(directory), named=named)

    def _directory(self, name: str, given: Path | None) -> tuple[Path, bool]:
        """The model's directory, and whether the model goes by another name there. Raises
        InvalidArgument where there is no such model."""
        previous = self._sources.get(name)
        if given is None and previous is not None and previous.named:
            given = previous.directory
        if given is not None:
            directories(given)
            return given, True
        found = find_models(self._repositories)
        if name in found.duplicates:
            raise InvalidArgument(DUPLICATE)
        if name not in found.models:
            raise _Absent(f"there is no model '{name}' in any repository")
        return found.models[name], False

    def _is_loaded(self, name: str, source: _Source) -> bool:
        unchanged = self._sources.get(name) == source and name not in self._failed
        return unchanged and bool(self._table.ready_versions(name))

    def _refuse(self, name: str, error: MicrokernelError) -> None:
        log.error("model cannot be loaded", model=name, reason=str(error))
        if not (isinstance(error, _Absent) or self._table.ready_versions(name)):
            reason = str(error) if str(error) == DUPLICATE else error.quoted()
            self._table.refuse(name, reason)

    async def _load(
        self, name: str, needs: Needs, source: _Source, override: Override | None
    ) -> None:
        given = None if override is None else override.config
        try:
            called = name if source.named else ""
            config = await asyncio.to_thread(self._loader.read, source.directory, given, called)
        except MicrokernelError as error:
            self._refuse(name, error)
            raise not_polled(name) from error
        try:
            chosen = self._loader.chosen(config, source.directory)
        except InvalidArgument as error:
            self._refuse(name, error)
            raise LoadFailed(f"load failed for model '{name}': {error}") from None
        self._table.loading(name, chosen)
        if config.platform == ENSEMBLE:
            await self._load_ensemble(config, needs, source.directory, chosen)
            return
        results = await asyncio.gather(
            *(self._load_version(config, source.directory, version) for version in chosen),
            return_exceptions=True,
        )
        self._settle(name, dict(zip(chosen, results, strict=True)))

    async def _load_ensemble(
        self, config: ModelConfig, needs: Needs, directory: Path, chosen: list[int]
    ) -> None:
        name = config.name
        try:
            recipe = await self._loader.ensemble(config, directory, chosen)
            ended = self._ensembles.serve(recipe, needs)
        except MicrokernelError as error:
            log.error("load failed", model=name, reason=str(error))  # noqa: TRY400
            self._table.failed(name, dict.fromkeys(chosen, error.quoted()))
            raise LoadFailed(f"load failed for model '{name}': {error}") from None
        self._retire_all(ended)
        self._retire_all(self._ensembles.recheck(name))

    async def _load_version(self, config: ModelConfig, directory: Path, version: int) -> Served:
        async with self._loads:
            for left in range(self._retries, 0, -1):
                try:
                    return await self._loader.load(config, directory, version)
                except MicrokernelError as error:
                    log.warning(
                        "load failed and is tried again",
                        model=config.name,
                        version=version,
                        reason=str(error),
                        retries_left=left,
                    )
            return await self._loader.load(config, directory, version)

    def _settle(self, name: str, results: Mapping[int, Served | BaseException]) -> None:
        """All or nothing: where a version fails, those loaded beside it are taken down."""
        failed: dict[int, MicrokernelError] = {}
        for version, result in results.items():
            if isinstance(result, MicrokernelError):
                log.error("load failed", model=name, version=version, reason=str(result))
                failed[version] = result
            elif isinstance(result, BaseException):
                raise result
        models = {v: r for v, r in results.items() if not isinstance(r, BaseException)}
        if failed:
            self._table.failed(name, {v: error.quoted() for v, error in failed.items()})
            for model in models.values():
                self._own(model, model.stop())
            parts = "".join(
                f"version {v} is at UNAVAILABLE state: {e.quoted()};" for v, e in failed.items()
            )
            raise LoadFailed(f"load failed for model '{name}': {parts}\n")
        self._ensembles.forget(name)
        ended = [(name, version, old) for version, old in self._table.swap(name, models).items()]
        self._retire_all([*ended, *self._ensembles.recheck(name)])

    async def register(self, repository: Path) -> None:
        """Look for models in one more repository from now on. Raises AlreadyExists for one that is
        known, and InvalidArgument for one that is not there."""
        await asyncio.to_thread(find_models, [repository])
        if any(_same(repository, known) for known in self._repositories):
            raise AlreadyExists(f"model repository '{repository}' has already been registered")
        self._repositories = [*self._repositories, repository]

    def unregister(self, repository: Path) -> None:
        """Look there no more; what was loaded from it goes on serving. Raises NotFound."""
        left = [known for known in self._repositories if not _same(repository, known)]
        if len(left) == len(self._repositories):
            raise NotFound(f"failed to unregister '{repository}', repository not found")
        self._repositories = left

    async def unload(self, name: str, *, dependents: bool = False) -> None:
        """Take a model down, and the ensembles that need it: they get no new requests from now on,
        what they accepted still finishes. A model that is not loaded is left alone. With
        `dependents`, what an ensemble was composed of goes too, unless somebody has asked for it by
        name or needs it still."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            source = self._sources.pop(name, None)
            if source is not None:
                source.close()
            composed = self._ensembles.forget(name)
            self._ensembles.explicit.discard(name)
            ended = [(name, version, old) for version, old in self._table.swap(name, {}).items()]
            self._retire_all([*ended, *self._ensembles.recheck(name)])
        for other in composed if dependents else ():
            if self._ensembles.is_spare(other):
                await self.unload(other, dependents=True)

    async def remove(self, name: str) -> None:
        """Take down a model that is in no repository any more, or in two, and forget what was wrong
        with it."""
        await self.unload(name)
        self._table.removed(name)

    def _retire_all(self, ended: Sequence[tuple[str, int, Served]]) -> None:
        for name, version, model in ended:
            self._own(model, self._retire(name, version, model))

    async def _retire(self, name: str, version: int, model: Served) -> None:
        """Let what was accepted finish, then stop the version."""
        await model.drain()
        await model.stop()
        self._table.unloaded(name, version, model)
        log.info("model unloaded", model=name, version=version)

    def _own(self, model: Served, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._retiring[task] = model
        task.add_done_callback(self._retiring.pop)

    async def drain(self, limit: float) -> bool:
        """Refuse new requests and let accepted ones finish for at most `limit` seconds, also those
        whose callers have gone; the rest is answered with an error then. Whether all finished."""
        models = list({*self._table.loaded_versions(), *self._retiring.values()})
        drains = [asyncio.ensure_future(model.drain()) for model in models]
        if not drains:
            return True
        _, late = await asyncio.wait(drains, timeout=limit)
        for model, drain in zip(models, drains, strict=True):
            if drain in late:
                model.abandon("the server is stopping and its exit timeout has expired")
                drain.cancel()
        return not late

    async def stop(self) -> None:
        """Stop every model and every load that is under way; after `drain`."""
        for task in self._loading:
            task.cancel()
        await asyncio.gather(*self._loading, return_exceptions=True)
        await asyncio.gather(*(model.stop() for model in self._table.loaded_versions()))
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for source in self._sources.values():
            source.close()
        await self._loader.close()


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def check_name(name: str) -> None:
    """Raise InvalidArgument for what cannot be a model's name, in Triton's words."""
    if not name.strip():
        raise InvalidArgument("Model name cannot be empty. Please enter a valid name to deploy.")
    if name.strip() == ".." or "/" in name:
        raise InvalidArgument("model name must not contain path traversal characters")


def not_polled(name: str) -> Internal:
    """What a client is told of a model that cannot be found or whose configuration is wrong."""
    return Internal(f"failed to load '{name}', failed to poll from model repository")
