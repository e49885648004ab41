"""Carries out which models of the repositories are served: loads them at start, takes them down at
the end."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import structlog

from microkernel.config.model import ModelConfig
from microkernel.errors import InvalidArgument, MicrokernelError
from microkernel.models.loader import Loader
from microkernel.models.table import UNLOADED, ModelTable
from microkernel.models.version import ModelVersion
from microkernel.repository.store import DUPLICATE, Found, find_models

log = structlog.get_logger()


class Catalogue:
    """The models of some repositories. `threads` is how many may load at once."""

    def __init__(
        self, repositories: Sequence[Path], loader: Loader, table: ModelTable, threads: int
    ) -> None:
        self._repositories = repositories
        self._loader = loader
        self._table = table
        self._loads = asyncio.Semaphore(max(1, threads))

    async def load_all(self, wanted: Sequence[str] | None) -> None:
        """Load the models named, or all for None. A model that fails stops no other; the table
        keeps its reason. Raises InvalidArgument where a repository or a wanted model is missing."""
        found = await asyncio.to_thread(find_models, self._repositories)
        names = sorted({*found.models, *found.duplicates}) if wanted is None else wanted
        for name in names:
            if name not in found.models and name not in found.duplicates:
                raise InvalidArgument(f"model '{name}' of --load-model is in no repository")
        await asyncio.gather(*(self._load_model(name, found) for name in names))

    async def _load_model(self, name: str, found: Found) -> None:
        if name in found.duplicates:
            places = ", ".join(map(str, found.duplicates[name]))
            log.error("model is not unique across all model repositories", model=name, at=places)
            self._table.refuse(name, DUPLICATE)
            return
        try:
            await self._load_versions(name, found.models[name])
        except MicrokernelError as error:
            log.error("model cannot be loaded", model=name, reason=str(error))  # noqa: TRY400
            self._table.refuse(name, error.quoted())

    async def _load_versions(self, name: str, directory: Path) -> None:
        config = await asyncio.to_thread(self._loader.read, directory)
        chosen = self._loader.chosen(config, directory)
        for version in chosen:
            self._table.loading(name, version)
        results = await asyncio.gather(
            *(self._load_version(config, directory, version) for version in chosen),
            return_exceptions=True,
        )
        await self._settle(name, dict(zip(chosen, results, strict=True)))

    async def _load_version(
        self, config: ModelConfig, directory: Path, version: int
    ) -> ModelVersion:
        async with self._loads:
            return await self._loader.load(config, directory, version)

    async def _settle(self, name: str, results: dict[int, ModelVersion | BaseException]) -> None:
        """All or nothing: where a version fails, those loaded beside it are taken down."""
        failed = any(isinstance(result, BaseException) for result in results.values())
        for version, result in results.items():
            if isinstance(result, MicrokernelError):
                log.error("load failed", model=name, version=version, reason=str(result))
                self._table.unavailable(name, version, result.quoted())
            elif isinstance(result, BaseException):
                raise result
            elif failed:
                await result.stop()
                self._table.unavailable(name, version, UNLOADED)
            else:
                self._table.loaded(name, version, result)

    async def drain(self, limit: float) -> bool:
        """Refuse new requests and let accepted ones finish for at most `limit` seconds; the rest
        is answered with an error then. Whether all finished."""
        models = self._table.loaded_versions()
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
        """Stop every model; after `drain`."""
        await asyncio.gather(*(model.stop() for model in self._table.loaded_versions()))
        await self._loader.close()
