"""Follows what changes in the repositories, for `--model-control-mode=poll`.

A change is acted upon when two looks in a row agree on it, so a model that is being copied, or a
directory that is gone for a moment, does no harm; and a load that fails leaves what serves alone.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from microkernel.errors import InvalidArgument, MicrokernelError
from microkernel.models.catalogue import Catalogue
from microkernel.repository.plan import plan
from microkernel.repository.store import Seen, look

log = structlog.get_logger()

SETTLING = 1.0
"""Seconds between the look that finds a change and the one that confirms it."""


class Poller:
    """Has the models of some repositories loaded and unloaded by a catalogue, from `start` to
    `stop`."""

    def __init__(self, repositories: Sequence[Path], catalogue: Catalogue) -> None:
        self._repositories = repositories
        self._catalogue = catalogue
        self._handled: dict[str, Seen] = {}
        self._before: Mapping[str, Seen] = {}
        self._failed: set[str] = set()
        self._working: dict[str, asyncio.Task[None]] = {}
        self._trouble = ""
        self._polling: asyncio.Task[None] | None = None
        self._checking = asyncio.Lock()
        self._stopped = False

    async def begin(self) -> None:
        """Take what is there now as handled: the caller loads it. Raises InvalidArgument where a
        repository cannot be listed."""
        self._before = await asyncio.to_thread(look, self._repositories)
        self._handled = dict(self._before)

    def start(self, period: float) -> None:
        """Look every `period` seconds from now on, for 0 not at all."""
        if not period:
            return
        self._polling = asyncio.ensure_future(self._run(period))
        self._polling.add_done_callback(_report)

    async def _run(self, period: float) -> None:
        while True:
            await asyncio.sleep(period)
            await self.check(min(SETTLING, period))

    async def check(self, settling: float = SETTLING) -> None:
        """Look once, and again after `settling` seconds where models are changing; what there is to
        do has begun then."""
        async with self._checking:
            if not await self.poll():
                return
            await asyncio.sleep(settling)
            if changing := await self.poll():
                log.info("models are still changing on disk", models=changing)

    async def poll(self) -> Sequence[str]:
        """Look once and begin what there is to do; the models that are changing, which another look
        may settle. While a repository cannot be listed nothing is done."""
        try:
            now = await asyncio.to_thread(look, self._repositories)
        except InvalidArgument as error:
            self._cannot_look(str(error))
            return ()
        self._trouble = ""
        if self._stopped:
            return ()
        wanted = plan(self._handled, self._before, now, self._working)
        self._before = now
        for name in sorted({*wanted.unloads, *wanted.loads}):
            self._begin(name, now.get(name), unload=name in wanted.unloads)
        return wanted.unsettled

    def _cannot_look(self, trouble: str) -> None:
        """Say so once. What could not be loaded may have failed for the same reason."""
        if trouble != self._trouble:
            log.error("repositories cannot be polled; what serves goes on", reason=trouble)
        self._trouble = trouble
        for name in self._failed:
            self._handled.pop(name, None)
        self._failed.clear()

    def _begin(self, name: str, seen: Seen | None, *, unload: bool) -> None:
        self._failed.discard(name)
        if seen is None:
            self._handled.pop(name, None)
        else:
            self._handled[name] = seen
        work = self._carry_out(name, load=seen is not None, unload=unload)
        task = self._working[name] = asyncio.ensure_future(work)
        task.add_done_callback(lambda done: self._ended(name, done))

    async def _carry_out(self, name: str, *, load: bool, unload: bool) -> None:
        if unload:
            await self._catalogue.remove(name)
        if load:
            try:
                await self._catalogue.load(name)
            except MicrokernelError:  # logged, and in the index
                self._failed.add(name)

    def _ended(self, name: str, task: "asyncio.Task[None]") -> None:
        del self._working[name]
        _report(task)

    async def settle(self) -> None:
        """Wait until everything that was begun is done."""
        await asyncio.gather(*self._working.values(), return_exceptions=True)

    async def stop(self) -> None:
        """Look no more; loads that have begun are left to the catalogue."""
        self._stopped = True
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        for task in self._working.values():
            task.cancel()
        await self.settle()


def _report(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("polling the repositories failed unexpectedly", exc_info=error)
