"""From a model's directory to a version that serves: read, complete, check, start."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import structlog

from microkernel import host
from microkernel.backend import BackendType, Placement, WorkerKind
from microkernel.batching import StrategyFactory
from microkernel.binding import HostPolicy
from microkernel.cache import Cache
from microkernel.caching.lookups import model_cache, wants_cache
from microkernel.config.ensemble_rules import ENSEMBLE
from microkernel.config.model import ModelConfig
from microkernel.config.parse import read_config
from microkernel.config.validate import ignored, validate
from microkernel.distributions import Distributions
from microkernel.errors import InvalidArgument
from microkernel.factories import asked
from microkernel.log import LogControl
from microkernel.metrics.config import MetricsConfig, new_distributions, not_customizable
from microkernel.metrics.custom import CustomMetrics
from microkernel.models.crew import Crew, CrewEvents
from microkernel.models.ensembles import Recipe
from microkernel.models.roster import seats
from microkernel.models.strategies import Strategies
from microkernel.models.version import ModelFiles, ModelVersion
from microkernel.models.warmup import Sample, read_samples
from microkernel.repository.complete import (
    complete,
    merge_completed,
    normalise,
    with_defaults,
)
from microkernel.repository.initial_states import read_initial_states
from microkernel.repository.labels import read_labels
from microkernel.repository.placing import Share, placements, unknown_policies
from microkernel.repository.store import config_path, select, versions
from microkernel.scheduling.rate_limiter import RateLimiter
from microkernel.workers.contract import Hosted, Worker
from microkernel.workers.limits import parse_limits, refuse_limits
from microkernel.workers.process import ProcessWorker
from microkernel.workers.spawning import ForkServers
from microkernel.workers.thread import ThreadWorker
from microkernel.workers.timed import TimedWorker
from microkernel.workers.timeouts import parse_timeouts, refuse_load_timeout

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
    a configuration, the log that workers are as verbose as (without, they are not verbose), what is
    measured, and the host policies and the batching strategies by name."""

    config_name: str = ""
    auto_complete: bool = True
    log_control: LogControl | None = None
    metrics: MetricsConfig = _COUNTERS
    policies: Mapping[str, HostPolicy] = field(default_factory=dict)
    strategies: Mapping[str, StrategyFactory] = field(default_factory=dict)


class Loader:
    """Loads versions of models with the backends on offer; `close` ends the fork servers."""

    def __init__(
        self,
        offers: Sequence[Offer],
        settings: LoaderSettings,
        custom: CustomMetrics | None = None,
        cache: Cache | None = None,
        limiter: RateLimiter | None = None,
    ) -> None:
        """`custom` takes the families that models declare; without, they are on no page. `cache`
        keeps responses, None where none are kept. `limiter` says whose turn it is, None where
        instances run whenever they are free."""
        self._cache = cache
        self._limiter = limiter
        self._custom = custom
        self._offers = {offer.backend.name: offer for offer in offers}
        self._settings = settings
        self._strategies = Strategies(settings.strategies)
        self._forks = ForkServers()

    def read(
        self, directory: Path, given: ModelConfig | None = None, name: str = ""
    ) -> ModelConfig:
        """The configuration of a model as its file, or the one that is given in its place, and its
        directory tell, without a worker. With `name` it goes by that, whatever they say.

        Raises InvalidArgument for a file that is wrong and where no backend can be told.
        """
        config = self.written(directory) if given is None else given
        source = config_path(directory, self._settings.config_name) or directory
        try:
            backends = [offer.backend for offer in self._offers.values()]
            config = complete(config, directory, backends, name)
            complete_by_itself = config.platform == ENSEMBLE or not self._settings.auto_complete
            validate(config, tensors_required=complete_by_itself)
        except InvalidArgument as error:
            raise InvalidArgument(f"{source}: {error}") from None
        if wants_cache(config) and self._cache is None:
            reason = "the server has no cache, see --cache-config"
            log.warning("responses are not cached", model=config.name, reason=reason)
        for path in ignored(config):
            log.warning("configured without effect", model=config.name, field=path)
        if config.instance_group and all(group.passive for group in config.instance_group):
            log.warning("every instance is passive, the model never serves", model=config.name)
        for policy in unknown_policies(config, self._settings.policies):
            reason = f"no --host-policy={policy},... is given"
            log.warning("host policy says nothing", model=config.name, reason=reason)
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
        kind = _worker_kind(config, hosted)
        first = await self._launch(hosted, kind)
        try:
            config = self._normalised(await self._filled(config, first))
            files = await asyncio.to_thread(_read_files, config, directory, hosted)
            cache = await model_cache(self._cache, config, directory, version)
            samples = await asyncio.to_thread(read_samples, config, directory, version)
            joins = await asyncio.to_thread(
                self._strategies.of, config, directory, version, hosted.backend
            )
            model = ModelVersion(
                config,
                version,
                lambda events: self._crew(config, hosted, events, samples),
                files,
                joins,
                cache,
            )
        except BaseException:
            await first.stop()
            raise
        await model.start(first)  # which stops every worker where one fails
        model.stats.load_seconds = time.monotonic() - began
        model.stats.distributions = self.distributions(config)
        log.info(
            "model loaded",
            model=config.name,
            version=version,
            worker=kind,
            instances=[f"{place.name}:{place.threads}" for place in self._places(config)],
            seconds=round(model.stats.load_seconds, 3),
        )
        return model

    async def ensemble(self, config: ModelConfig, directory: Path, chosen: list[int]) -> Recipe:
        """What it takes to serve versions of an ensemble beside its models. Raises what
        `read_labels` raises."""
        labels = await asyncio.to_thread(read_labels, config, directory)
        cache = self._cache if wants_cache(config) else None
        return Recipe(with_defaults(config), tuple(chosen), labels, cache)

    def distributions(self, config: ModelConfig) -> Distributions:
        """Empty histograms and summaries for a version of a model, by the server's settings."""
        return new_distributions(self._settings.metrics, config)

    async def completed(self, config: ModelConfig, directory: Path, version: int) -> ModelConfig:
        """The configuration as a backend would complete it, with every default; the model is not
        loaded, but what a load would look for is. An ensemble has no backend."""
        if config.platform == ENSEMBLE:
            return with_defaults(config)
        config = self._normalised(await self.filled(config, directory, version))
        backend = self._offers[config.backend].backend
        await asyncio.to_thread(self._strategies.found, config, directory, version, backend)
        return config

    async def filled(self, config: ModelConfig, directory: Path, version: int) -> ModelConfig:
        """The configuration of a model with a backend as that would complete it, without the
        defaults that a person need not write."""
        hosted = self._hosted(config, directory, version)
        _worker_kind(config, hosted)  # which refuses what cannot be
        worker = await self._launch(hosted, "process")
        try:
            return await self._filled(config, worker)
        finally:
            await worker.stop()

    async def _filled(self, config: ModelConfig, worker: Worker) -> ModelConfig:
        if self._settings.auto_complete:
            config = merge_completed(config, await worker.complete(config))
        validate(config, tensors_required=True)
        return config

    def _normalised(self, config: ModelConfig) -> ModelConfig:
        backend = self._offers[config.backend].backend
        return normalise(config, backend, host.gpus() if backend.gpu else 0)

    def _hosted(self, config: ModelConfig, directory: Path, version: int) -> Hosted:
        offer = self._offers[config.backend]
        files = directory / str(version)
        limits, timeouts = parse_limits(config), parse_timeouts(config)
        return Hosted(offer.backend, offer.settings, config.name, version, files, limits, timeouts)

    async def _launch(self, hosted: Hosted, kind: WorkerKind) -> Worker:
        if kind == "thread":
            return ThreadWorker(hosted, self._custom)
        worker = await ProcessWorker.spawn(
            hosted, self._forks, log_control=self._settings.log_control, metrics=self._custom
        )
        seconds = hosted.timeouts.load
        return TimedWorker(worker, seconds) if seconds else worker

    def _crew(
        self, config: ModelConfig, hosted: Hosted, events: CrewEvents, samples: Sequence[Sample]
    ) -> Crew:
        kind, timeouts = _worker_kind(config, hosted), parse_timeouts(config)
        return Crew(
            lambda: self._launch(hosted, kind),
            config,
            seats(self._places(config), kind),
            events,
            limit=timeouts.execution,
            load_limit=timeouts.load,
            samples=samples,
            limiter=self._limiter,
        )

    def _places(self, config: ModelConfig) -> list[Placement]:
        return placements(config, Share(host.processors(), self._settings.policies))

    async def close(self) -> None:
        """End the fork servers; every model has been stopped."""
        await self._forks.close()


def _read_files(config: ModelConfig, directory: Path, hosted: Hosted) -> ModelFiles:
    carried = hosted.backend.labels
    labels = dict(asked(carried, config, hosted.files)) if carried is not None else {}
    labels |= read_labels(config, directory)
    return ModelFiles(labels, read_initial_states(config, directory))


def _worker_kind(config: ModelConfig, hosted: Hosted) -> WorkerKind:
    backend = hosted.backend
    usual = backend.worker
    if backend.hosting is not None:
        usual = asked(backend.hosting, config, hosted.files)
    kind = config.parameter("WORKER", usual)
    if kind not in get_args(WorkerKind):
        raise InvalidArgument(
            f"parameter 'WORKER' of model '{config.name}' must be one of "
            f"{', '.join(get_args(WorkerKind))}, got '{kind}'"
        )
    if kind == "thread":
        refuse_limits(config, hosted.limits)
        refuse_load_timeout(config, hosted.timeouts)
    return cast("WorkerKind", kind)
