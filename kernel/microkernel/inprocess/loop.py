"""An event loop on a thread of its own, and calls that cross over to it."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from microkernel.errors import Unavailable

T = TypeVar("T")

STOPPED = "the server has stopped"


class LoopThread:
    """Runs an event loop on a daemon thread until `end`."""

    def __init__(self, name: str) -> None:
        # Reentrant: the collector may drop an iterator, which posts, while this is held.
        self._crossing = threading.RLock()
        self._closed = False
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name=name, daemon=True)
        self._thread.start()
        self.loop = started.result()

    def _run(self, started: "Future[asyncio.AbstractEventLoop]") -> None:
        asyncio.run(self._live(started))

    async def _live(self, started: "Future[asyncio.AbstractEventLoop]") -> None:
        self._ending = asyncio.Event()
        started.set_result(asyncio.get_running_loop())
        await self._ending.wait()
        await asyncio.sleep(0)  # what was submitted last becomes a task, which is then cancelled

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine on the loop. Raises Unavailable once the loop has ended; a future whose
        work the end has cut off is cancelled."""
        with self._crossing:
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(work, self.loop)
        work.close()
        raise Unavailable(STOPPED)

    def call(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the loop and wait for its result, from any other thread.

        Raises what it raises, Unavailable where the loop ends before, and TimeoutError after
        `timeout` seconds; the coroutine is cancelled then.
        """
        return wait(self.submit(work), timeout)

    @property
    def ended(self) -> bool:
        """Whether `end` has been called."""
        return self._closed

    def post(self, callback: Callable[..., object], *arguments: object) -> bool:
        """Have a function called on the loop; False where the loop has ended."""
        with self._crossing:
            if not self._closed:
                self.loop.call_soon_threadsafe(callback, *arguments)
            return not self._closed

    def end(self) -> None:
        """Cancel what still runs, close the loop and wait for the thread."""
        with self._crossing:
            if not self._closed:
                self._closed = True
                self.loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()


def wait(future: "Future[T]", timeout: float | None = None) -> T:
    """What a submitted coroutine returns; see `LoopThread.call`."""
    try:
        return future.result(timeout)
    except CancelledError:
        raise Unavailable(STOPPED) from None
    finally:
        future.cancel()  # without effect where it is done
