"""Starting and stopping: in what order, on which signals, with which exit code."""

import asyncio
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from microkernel import host
from microkernel.backend_config import parse_backend_config, values_for, without_effect
from microkernel.batching import StrategyFactory
from microkernel.binding import parse_host_policies
from microkernel.cache import Cache
from microkernel.cache_config import parse_cache_config
from microkernel.caching.opening import open_cache
from microkernel.errors import InvalidArgument, MicrokernelError, Unavailable
from microkernel.frontend import Doubts, Frontend, Listens, clash
from microkernel.log import LogControl
from microkernel.log_file import LogFile
from microkernel.metrics.config import parse_metrics_config
from microkernel.metrics.custom import CustomMetrics
from microkernel.metrics.page import MetricsPage
from microkernel.models.catalogue import Catalogue
from microkernel.models.loader import Loader, LoaderSettings, Offer
from microkernel.models.poller import Poller
from microkernel.models.table import ModelTable
from microkernel.open_files import AcceptFailures, raise_limit
from microkernel.options import remarks
from microkernel.plugins import Plugin, Plugins
from microkernel.scheduling.rate_limiter import RateLimiter
from microkernel.scheduling.resources import parse_sizes
from microkernel.server import KernelServer
from microkernel.settings import ServerSettings
from microkernel.tracing.starting import start_tracing

log = structlog.get_logger()

GRACE = 2.0
"""Seconds that front ends get, beyond the exit timeout, to send the last answers."""

TRACE_SECONDS = 5.0
"""How long the last traces may take to be written or sent when the server stops."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything an operator decided: the server's settings, the plug-ins, the flags given for each
    plug-in by its name, and the log."""

    settings: ServerSettings
    plugins: Plugins
    flags: Mapping[str, Mapping[str, Any]]
    log: LogControl

    def plugin_settings(self, plugin: Plugin) -> Any:
        """The settings object of a plug-in, None where it declares none. Raises InvalidArgument
        for settings that are wrong."""
        backends = values_for(parse_backend_config(self.settings.backend_config), plugin)
        return self.plugins.settings(plugin, backends | dict(self.flags.get(plugin.name, {})))

    def doubts(self) -> list[str]:
        """What the operator should be told of settings that change nothing."""
        own = self.settings
        found = remarks(own)
        for plugin in self.plugins.usable():
            settings = self.plugin_settings(plugin)
            found += remarks(settings)
            found += settings.doubts() if isinstance(settings, Doubts) else ()
        found += without_effect(parse_backend_config(own.backend_config), self.plugins.all)
        asked = own.repository_poll_secs != ServerSettings().repository_poll_secs
        if asked and own.model_control_mode != "poll":
            found.append("--repository-poll-secs has no effect without --model-control-mode=poll")
        if own.rate_limit_resource and own.rate_limit == "off":
            found.append("--rate-limit-resource has no effect without --rate-limit=execution_count")
        return list(dict.fromkeys(found))  # a flag may be one of several plug-ins

    def check_ports(self) -> None:
        """Raise InvalidArgument where two front ends would listen on one port."""
        settings = [self.plugin_settings(plugin) for plugin in self.plugins.usable()]
        places = [place for s in settings if isinstance(s, Listens) for place in s.listening()]
        if fault := clash(places):
            raise InvalidArgument(fault)

    def cache(self) -> Cache | None:
        """The cache of responses, not started; None where none is asked for. Raises InvalidArgument
        where it cannot be made."""
        own = self.settings
        choice = parse_cache_config(own.cache_config, own.response_cache_byte_size)
        return None if choice is None else open_cache(choice, self.plugins, self.flags)

    def loader(self, custom: CustomMetrics | None = None, cache: Cache | None = None) -> Loader:
        """A loader with every usable backend; `custom` takes the metrics that models declare, and
        `cache` keeps responses. Raises InvalidArgument for wrong plug-in settings."""
        offers = [
            Offer(backend, self.plugin_settings(plugin))
            for plugin in self.plugins.usable()
            for backend in plugin.backends
        ]
        strict = self.settings.disable_auto_complete_config or self.settings.strict_model_config
        settings = LoaderSettings(
            self.settings.model_config_name,
            not strict,
            self.log,
            parse_metrics_config(self.settings.metrics_config),
            parse_host_policies(self.settings.host_policy, host.affinity()),
            self._strategies(),
        )
        return Loader(offers, settings, custom, cache, self._limiter())

    def _strategies(self) -> dict[str, StrategyFactory]:
        found: dict[str, StrategyFactory] = {}
        for plugin in self.plugins.usable():
            for name, factory in plugin.strategies.items():
                if name in found:
                    raise InvalidArgument(f"two plug-ins offer a batching strategy '{name}'")
                found[name] = factory
        return found

    def _limiter(self) -> RateLimiter | None:
        if self.settings.rate_limit == "off":
            return None
        return RateLimiter(parse_sizes(self.settings.rate_limit_resource))


class Serving:
    """The models and front ends of one server, without signals: what `microkernel run` and the
    in-process API start and stop alike. `port` is what its callers use. Made and used on a running
    loop."""

    def __init__(self, setup: Setup) -> None:
        """Raises InvalidArgument for settings that cannot be right."""
        self._settings = setup.settings
        self._wanted = _wanted(setup.settings)
        self._table = ModelTable()
        repositories, page = _repositories(setup.settings), MetricsPage(setup.settings)
        self._cache = setup.cache()
        self._tracer = start_tracing(setup.settings, os.environ)
        self._catalogue = Catalogue(
            repositories,
            setup.loader(page.custom, self._cache),
            self._table,
            setup.settings.model_load_thread_count,
            setup.settings.model_load_retry_count,
            self._tracer,
        )
        self._poller = Poller(repositories, self._catalogue)
        self.port = KernelServer(
            self._table, self._catalogue, setup.log, setup.settings, self._tracer, page
        )
        self._frontends: list[tuple[Frontend, bool]] = []

    async def load(self) -> list[str]:
        """Load the models wanted at start; from then on the server is live. The models that failed
        where that is no way to go on (`exit_on_error`), and the server is not live then. Raises
        InvalidArgument where a repository or a wanted model is missing, and what `Cache.start`
        raises."""
        if self._cache is not None:
            await self._cache.start()
        polls = self._settings.model_control_mode == "poll"
        if polls:
            await self._poller.begin()
        await self._catalogue.load_all(self._wanted)
        self._show_models()
        failed = self._table.failures() if self._settings.exit_on_error else []
        if not failed:
            self.port.started()
            if polls:
                self._poller.start(self._settings.repository_poll_secs)
        return failed

    async def poll(self) -> None:
        """Look for changes in the repositories now, and wait until they are carried out. Raises
        Unavailable unless the control mode is poll."""
        if self._settings.model_control_mode != "poll":
            raise Unavailable("polling is disabled: the model control mode is not POLL")
        await self._poller.check()
        await self._poller.settle()

    def _show_models(self) -> None:
        rows = [
            {"model": m.name, "version": m.version, "state": m.state, "reason": m.reason}
            for m in self._table.index(ready=False)
        ]
        log.info("models" if rows else "no models", table=rows)

    async def listen(self, frontend: Frontend, *, last: bool = False) -> bool:
        """Start a front end; False where it is switched off. It is stopped with the server, after
        the models where it is `last`. Raises Unavailable when its address is taken."""
        if (line := await frontend.start()) is None:
            return False
        self._frontends.append((frontend, last))
        log.info(line)
        return True

    async def hang_up(self, frontend: Frontend) -> None:
        """Stop one front end ahead of the others; one that is stopped already is left alone."""
        for entry in [entry for entry in self._frontends if entry[0] is frontend]:
            self._frontends.remove(entry)
            await frontend.stop(self._limit + GRACE)

    @property
    def _limit(self) -> float:
        return float(max(0, self._settings.exit_timeout_secs))

    async def stop(self) -> bool:
        """Finish what was accepted, stop listening, stop the models; whether all was finished.

        Meanwhile the front ends say that the server is not ready, bring the rest of the sequences
        that have begun and refuse other requests. Without anything to finish, all stops at once.
        """
        clock = asyncio.get_running_loop().time
        latest = clock() + self._limit
        self.port.exiting()
        await self._poller.stop()
        in_time = await self._catalogue.drain(self._limit)
        left = max(0.0, latest - clock()) + GRACE
        early = [f.stop(left) for f, last in self._frontends if not last]
        await _report(asyncio.gather(*early, return_exceptions=True))
        await self._catalogue.stop()
        late = [f.stop(GRACE) for f, last in self._frontends if last]
        await _report(asyncio.gather(*late, return_exceptions=True))
        if self._cache is not None:
            await _report(asyncio.gather(*[self._cache.close()], return_exceptions=True))
        await self._tracer.close(TRACE_SECONDS)
        if in_time:
            log.info("stopped")
        else:
            log.error("Exit timeout expired. Exiting immediately.", seconds=self._limit)
        return in_time


class App:
    """One run of the server until a signal comes."""

    def __init__(self, setup: Setup) -> None:
        """Logs what is doubtful about the settings. Raises InvalidArgument for those that cannot be
        right."""
        for doubt in setup.doubts():
            log.warning(doubt)
        setup.check_ports()
        self._setup = setup
        self._serving = Serving(setup)
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Serve until a signal comes; the exit code.

        1 where a model failed at start (with `--exit-on-error`), a port was taken, or accepted
        requests had to be cut off when stopping; 0 otherwise. Raises InvalidArgument for settings
        that cannot be right.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(AcceptFailures())
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled, signal.Signals(number).name)
        if (file := self._setup.log.file) is not None:
            loop.add_signal_handler(signal.SIGHUP, _reopen, file)
        code = 1
        try:
            if await self._start():
                await self._stopping.wait()
                code = 0
        finally:
            if not await self._serving.stop():
                code = 1
        return code

    def _signalled(self, name: str) -> None:
        if self._stopping.is_set():
            log.error("second signal: exiting at once", signal=name)
            os._exit(1)
        log.info("stopping", signal=name)
        self._stopping.set()

    async def _start(self) -> bool:
        """Load the models and listen. False where something went wrong; a signal that comes while
        models are loaded ends the loading and is nothing wrong. What is wrong with the settings of
        a front end is found before a model is loaded."""
        began = time.monotonic()
        made = self._made()
        loading = asyncio.ensure_future(self._serving.load())
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not loading.done():
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            return True
        if failed := await loading:
            log.error("failed to load all models; --exit-on-error=false would go on", models=failed)
            return False
        await self._listen(made)
        log.info("server started", seconds=round(time.monotonic() - began, 3))
        return True

    def _made(self) -> list[tuple[Frontend, bool]]:
        """Every front end, not listening yet, and whether it is stopped last."""
        setup, port = self._setup, self._serving.port
        return [
            (kind.factory(port, setup.plugin_settings(plugin)), kind.last)
            for plugin in setup.plugins.usable()
            for kind in plugin.frontends
        ]

    async def _listen(self, made: Sequence[tuple[Frontend, bool]]) -> None:
        listening = False
        for frontend, last in made:
            listening |= await self._serving.listen(frontend, last=last)
        if not listening:
            log.warning("no protocol listens; see `microkernel plugins`")


def _reopen(file: LogFile) -> None:
    """SIGHUP: the log's file was moved away, as log rotation does."""
    if reason := file.reopen():
        log.error("the log file cannot be opened again", file=file.path, reason=reason)
    else:
        log.info("log file opened again", file=file.path)


async def _report(closing: "asyncio.Future[list[BaseException | None]]") -> None:
    for result in await closing:
        if isinstance(result, BaseException):
            log.error("a plug-in did not stop cleanly", error=repr(result))


def _repositories(settings: ServerSettings) -> list[Path]:
    if not settings.model_repository:
        raise InvalidArgument("--model-repository must be given at least once")
    if "" in settings.model_repository:
        raise InvalidArgument("--model-repository is empty")
    return [Path(path) for path in settings.model_repository]


def _wanted(settings: ServerSettings) -> Sequence[str] | None:
    """The models to load at start; None for all."""
    if settings.model_control_mode != "explicit":
        if settings.load_model:
            raise InvalidArgument("--load-model needs --model-control-mode=explicit")
        return None
    if "*" not in settings.load_model:
        return settings.load_model
    if len(settings.load_model) > 1:
        raise InvalidArgument(
            "Wildcard model name '*' must be the ONLY startup model if specified at all."
        )
    return None


def run(setup: Setup) -> int:
    """Serve until a signal comes; the exit code, with a logged line for what stopped the start."""

    async def serve() -> int:
        return await App(setup).run()

    raise_limit()
    try:
        return asyncio.run(serve())
    except (InvalidArgument, Unavailable) as error:
        log.error(str(error))  # noqa: TRY400 - the line says it all
    except MicrokernelError:
        log.exception("the server failed")
    return 1
