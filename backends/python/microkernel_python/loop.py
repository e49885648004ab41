"""The event loop on which `async def execute` runs."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Failed: TypeAlias = Callable[[BaseException], None]

_GRACE = 5.0
"""Seconds that cancelled tasks have to end."""


class LoopThread:
    """A daemon thread with an event loop, started at once and kept until `stop`."""

    def __init__(self, name: str) -> None:
        started: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._stopping = asyncio.Event()
        self._begun: set[asyncio.Task[Any] | None] = set()
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._serve(started),), name=name, daemon=True
        )
        self._thread.start()
        self._loop = started.result()

    async def _serve(self, started: "concurrent.futures.Future[asyncio.AbstractEventLoop]") -> None:
        started.set_result(asyncio.get_running_loop())
        await self._stopping.wait()

    def run(self, awaitable: Awaitable[T]) -> T:
        """Wait for what the awaitable gives on the loop; what it raises is raised here."""
        guarded = asyncio.run_coroutine_threadsafe(_guarded(awaitable), self._loop).result()
        if isinstance(guarded, _Raised):
            raise guarded.error
        return guarded

    def begin(self, awaitable: Awaitable[object], failed: Failed) -> None:
        """Start the awaitable and return at once; what it raises goes to `failed`, on the loop."""
        asyncio.run_coroutine_threadsafe(self._watch(awaitable, failed), self._loop)

    async def _watch(self, awaitable: Awaitable[object], failed: Failed) -> None:
        task = asyncio.current_task()
        self._begun.add(task)  # the loop itself does not keep tasks alive
        try:
            await awaitable
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self._stopping.is_set():
                raise
            failed(error)
        finally:
            self._begun.discard(task)

    def stop(self) -> None:
        """Cancel what still runs and end the loop; a task that will not end is left behind."""
        if not self._thread.is_alive():
            return  # stopped already, or ended by the model
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(_GRACE)


class _Raised:
    """An error as a value: one that leaves a task may end the loop, as SystemExit does, and its
    traceback would tell of futures."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def _guarded(awaitable: Awaitable[T]) -> T | _Raised:
    try:
        return await awaitable
    except BaseException as error:  # noqa: BLE001 - passed on
        return _Raised(error)
