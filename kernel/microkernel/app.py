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

from microkernel.errors import InvalidArgument, MicrokernelError, Unavailable
from microkernel.frontend import Frontend
from microkernel.log import LogControl
from microkernel.models.catalogue import Catalogue
from microkernel.models.loader import Loader, LoaderSettings, Offer
from microkernel.models.table import ModelTable
from microkernel.plugins import Plugins
from microkernel.server import KernelServer
from microkernel.settings import ServerSettings

log = structlog.get_logger()

GRACE = 2.0
"""Seconds that front ends get, beyond the exit timeout, to send the last answers."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything an operator decided: the server's settings, the plug-ins, the flags given for each
    plug-in by its name, and the log."""

    settings: ServerSettings
    plugins: Plugins
    flags: Mapping[str, Mapping[str, Any]]
    log: LogControl

    def loader(self) -> Loader:
        """A loader with every usable backend. Raises InvalidArgument for wrong plug-in settings."""
        offers = [
            Offer(backend, self.plugins.settings(plugin, self.flags.get(plugin.name, {})))
            for plugin in self.plugins.usable()
            for backend in plugin.backends
        ]
        settings = LoaderSettings(
            self.settings.model_config_name,
            not self.settings.disable_auto_complete_config,
            self.settings.log_verbose > 0,
        )
        return Loader(offers, settings)


class App:
    """One run of the server."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._settings = setup.settings
        self._table = ModelTable()
        self._catalogue = Catalogue(
            _repositories(self._settings),
            setup.loader(),
            self._table,
            self._settings.model_load_thread_count,
        )
        self._server = KernelServer(self._table, self._catalogue, setup.log, setup.settings)
        self._stopping = asyncio.Event()
        self._frontends: list[tuple[Frontend, bool]] = []

    async def run(self) -> int:
        """Serve until a signal comes; the exit code.

        1 where a model failed at start (with `--exit-on-error`), a port was taken, or accepted
        requests had to be cut off when stopping; 0 otherwise. Raises InvalidArgument for settings
        that cannot be right.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled, signal.Signals(number).name)
        wanted = _wanted(self._settings)
        code = 1
        try:
            if await self._start(wanted):
                await self._stopping.wait()
                code = 0
        finally:
            if not await self._stop():
                code = 1
        return code

    def _signalled(self, name: str) -> None:
        if self._stopping.is_set():
            log.error("second signal: exiting at once", signal=name)
            os._exit(1)
        log.info("stopping", signal=name)
        self._stopping.set()

    async def _start(self, wanted: Sequence[str] | None) -> bool:
        """Load the models and listen. False where something went wrong; a signal that comes while
        models are loaded ends the loading and is nothing wrong."""
        began = time.monotonic()
        loading = asyncio.ensure_future(self._catalogue.load_all(wanted))
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not loading.done():
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            return True
        await loading
        self._show_models()
        if self._settings.exit_on_error and (failed := self._table.failures()):
            log.error("failed to load all models; --exit-on-error=false would go on", models=failed)
            return False
        self._server.started()
        await self._listen()
        log.info("server started", seconds=round(time.monotonic() - began, 3))
        return True

    def _show_models(self) -> None:
        rows = [
            {"model": m.name, "version": m.version, "state": m.state, "reason": m.reason}
            for m in self._table.index(ready=False)
        ]
        log.info("models" if rows else "no models", table=rows)

    async def _listen(self) -> None:
        for plugin in self._setup.plugins.usable():
            flags = self._setup.flags.get(plugin.name, {})
            for kind in plugin.frontends:
                settings = self._setup.plugins.settings(plugin, flags)
                frontend = kind.factory(self._server, settings)
                if (line := await frontend.start()) is not None:
                    self._frontends.append((frontend, kind.last))
                    log.info(line)
        if not self._frontends:
            log.warning("no protocol listens; see `microkernel plugins`")

    async def _stop(self) -> bool:
        """Stop listening, finish what was accepted, stop the models; whether all was finished."""
        limit = float(max(0, self._settings.exit_timeout_secs))
        self._server.exiting()
        early = [f.stop(limit + GRACE) for f, last in self._frontends if not last]
        closing = asyncio.gather(*early, return_exceptions=True)
        in_time = await self._catalogue.drain(limit)
        await _report(closing)
        await self._catalogue.stop()
        late = [f.stop(GRACE) for f, last in self._frontends if last]
        await _report(asyncio.gather(*late, return_exceptions=True))
        if in_time:
            log.info("stopped")
        else:
            log.error("Exit timeout expired. Exiting immediately.", seconds=limit)
        return in_time


async def _report(closing: "asyncio.Future[list[BaseException | None]]") -> None:
    for result in await closing:
        if isinstance(result, BaseException):
            log.error("a front end did not stop cleanly", error=repr(result))


def _repositories(settings: ServerSettings) -> list[Path]:
    if not settings.model_repository:
        raise InvalidArgument("--model-repository must be given at least once")
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

    try:
        return asyncio.run(serve())
    except (InvalidArgument, Unavailable) as error:
        log.error(str(error))  # noqa: TRY400 - the line says it all
    except MicrokernelError:
        log.exception("the server failed")
    return 1
