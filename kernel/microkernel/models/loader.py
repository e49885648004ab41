"""From a model's directory to a version that serves: read, complete, check, start."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import structlog

from microkernel import host
from microkernel.backend import BackendType, WorkerKind
from microkernel.config.model import ModelConfig
from microkernel.config.parse import read_config
from microkernel.config.validate import ignored, not_offered, validate
from microkernel.errors import InvalidArgument, Unsupported
from microkernel.metrics.config import MetricsConfig, new_distributions, not_customizable
from microkernel.metrics.custom import CustomMetrics
from microkernel.models.crew import Crew, CrewEvents, seats
from microkernel.models.version import ModelVersion
from microkernel.repository.complete import complete, merge_completed, normalise, placements
from microkernel.repository.labels import read_labels
from microkernel.repository.store import config_path, select, versions
from microkernel.workers.contract import Hosted, Worker
from microkernel.workers.process import ProcessWorker
from microkernel.workers.spawning import ForkServers
from microkernel.workers.thread import ThreadWorker

log = structlog.get_logger()

_COUNTERS = MetricsConfig()


@dataclass(frozen=True, slots=True)
class Offer:
    """A backend that can be used, and the settings of the plug-in that brings it."""

    backend: BackendType
    settings: Any


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """How models are loaded: the name of alternative configurations, whether backends may complete
    a configuration, whether workers log verbosely, and what is measured."""

    config_name: str = ""
    auto_complete: bool = True
    verbose: bool = False
    metrics: MetricsConfig = _COUNTERS


class Loader:
    """Loads versions of models with the backends on offer; `close` ends the fork servers."""

    def __init__(
        self,
        offers: Sequence[Offer],
        settings: LoaderSettings,
        custom: CustomMetrics | None = None,
    ) -> None:
        """`custom` takes the families that models declare; without, they are on no page."""
        self._custom = custom
        self._offers = {offer.backend.name: offer for offer in offers}
        self._settings = settings
        self._forks = ForkServers()

    def read(
        self, directory: Path, given: ModelConfig | None = None, name: str = ""
    ) -> ModelConfig:
        """The configuration of a model as its file, or the one that is given in its place, and its
        directory tell, without a worker. With `name` it goes by that, whatever they say.

        Raises InvalidArgument for a file that is wrong and where no backend can be told, and
        Unsupported for what this version does not offer.
        """
        config = self.written(directory) if given is None else given
        source = config_path(directory, self._settings.config_name) or directory
        if faults := not_offered(config):
            raise Unsupported(f"{source}: {'; '.join(faults)}")
        try:
            backends = [offer.backend for offer in self._offers.values()]
            config = complete(config, directory, backends, name)
            validate(config, tensors_required=not self._settings.auto_complete)
        except InvalidArgument as error:
            raise InvalidArgument(f"{source}: {error}") from None
        for field in ignored(config):
            log.warning("configured without effect", model=config.name, field=field)
        for family in not_customizable(config):
            log.warning("metric family is not customizable", model=config.name, family=family)
        return config

    def written(self, directory: Path) -> ModelConfig:
        """The configuration as its file has it, empty where there is none."""
        path = config_path(directory, self._settings.config_name)
        return ModelConfig() if path is None else read_config(path)

    def chosen(self, config: ModelConfig, directory: Path) -> list[int]:
        """The versions to serve. Raises InvalidArgument where there is none."""
        present = versions(directory)
        for warning in present.warnings:
            log.warning(warning, model=config.name)
        selected = select(present.found, config.version_policy)
        if not selected:
            raise InvalidArgument(
                "at least one version must be available under the version policy of model "
                f"'{config.name}'"
            )
        return selected

    async def load(self, config: ModelConfig, directory: Path, version: int) -> ModelVersion:
        """Start a version. Raises what the backend raised, and InvalidArgument where the completed
        configuration is wrong."""
        began = time.monotonic()
        hosted = self._hosted(config, directory, version)
        kind = _worker_kind(config, hosted.backend)
        first = await self._launch(hosted, kind)
        try:
            config = await self._completed(config, hosted, first)
            labels = await asyncio.to_thread(read_labels, config, directory)
            model = ModelVersion(
                config, version, lambda events: self._crew(config, hosted, events), labels
            )
        except BaseException:
            await first.stop()
            raise
        await model.start(first)  # which stops every worker where one fails
        model.stats.load_seconds = time.monotonic() - began
        model.stats.distributions = new_distributions(self._settings.metrics, config)
        log.info(
            "model loaded",
            model=config.name,
            version=version,
            worker=kind,
            instances=[f"{p.name}:{p.threads}" for p in placements(config, host.processors())],
            seconds=round(model.stats.load_seconds, 3),
        )
        return model

    async def completed(self, config: ModelConfig, directory: Path, version: int) -> ModelConfig:
        """The configuration as a backend would complete it; the model is not loaded."""
        hosted = self._hosted(config, directory, version)
        worker = await self._launch(hosted, "process")
        try:
            return await self._completed(config, hosted, worker)
        finally:
            await worker.stop()

    async def _completed(self, config: ModelConfig, hosted: Hosted, worker: Worker) -> ModelConfig:
        if self._settings.auto_complete:
            config = merge_completed(config, await worker.complete(config))
        validate(config, tensors_required=True)
        if faults := not_offered(config):
            raise Unsupported(f"model '{config.name}': {'; '.join(faults)}")
        gpus = host.gpus() if hosted.backend.gpu else 0
        return normalise(config, hosted.backend, gpus)

    def _hosted(self, config: ModelConfig, directory: Path, version: int) -> Hosted:
        offer = self._offers[config.backend]
        files = directory / str(version)
        return Hosted(offer.backend, offer.settings, config.name, version, files)

    async def _launch(self, hosted: Hosted, kind: WorkerKind) -> Worker:
        if kind == "thread":
            return ThreadWorker(hosted, self._custom)
        return await ProcessWorker.spawn(
            hosted, self._forks, verbose=self._settings.verbose, metrics=self._custom
        )

    def _crew(self, config: ModelConfig, hosted: Hosted, events: CrewEvents) -> Crew:
        kind = _worker_kind(config, hosted.backend)
        groups = seats(placements(config, host.processors()), kind)
        limit = _execution_limit(config)
        return Crew(lambda: self._launch(hosted, kind), config, groups, events, limit=limit)

    async def close(self) -> None:
        """End the fork servers; every model has been stopped."""
        await self._forks.close()


def _worker_kind(config: ModelConfig, backend: BackendType) -> WorkerKind:
    kind = config.parameter("WORKER", backend.worker)
    if kind not in get_args(WorkerKind):
        raise InvalidArgument(
            f"parameter 'WORKER' of model '{config.name}' must be one of "
            f"{', '.join(get_args(WorkerKind))}, got '{kind}'"
        )
    return cast("WorkerKind", kind)


def _execution_limit(config: ModelConfig) -> float:
    text = config.parameter("EXECUTION_TIMEOUT_SECS", "0")
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise InvalidArgument(
            f"parameter 'EXECUTION_TIMEOUT_SECS' of model '{config.name}' must be a number of "
            f"seconds, 0 for no limit, got '{text}'"
        )
    return limit
