"""A server that is started and stopped, and the way calls take to it from other threads."""

import asyncio
import concurrent.futures.thread
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from microkernel.app import Serving, Setup
from microkernel.errors import Internal, InvalidArgument, Unavailable
from microkernel.inprocess.loop import LoopThread
from microkernel.inprocess.relay import Outlet, Relay
from microkernel.inprocess.response import InferenceResponse, LetGo
from microkernel.metrics.custom import CustomMetrics
from microkernel.request import InferRequest, InferResponse
from microkernel.server import KernelServer
from microkernel.tensor import Buffer

T = TypeVar("T")


class _Run:
    """One run of the server on a thread with an event loop."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.thread = LoopThread("microkernel")
        self.serving: Serving | None = None
        self.relays: set[asyncio.Task[None]] = set()
        self._pid = os.getpid()
        self._stopping = threading.Lock()
        self.stopped = False
        _before_threads_end(self)

    def check_process(self) -> None:
        """A fork copies no threads, so a call in the child would wait for ever."""
        if os.getpid() != self._pid:
            raise Unavailable(
                f"the server runs in process {self._pid}; start one of this process's own"
            )

    async def begin(self) -> None:
        """Load the models. Raises Internal where one failed and that ends the start."""
        self.serving = Serving(self.setup)
        if failed := await self.serving.load():
            raise Internal(f"failed to load all models: {', '.join(failed)}")

    def own(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a relay's work until the server stops."""
        task = asyncio.ensure_future(work)
        self.relays.add(task)
        task.add_done_callback(self.relays.discard)

    def let_go(self, views: Sequence[Buffer]) -> None:
        """Drop views on the loop; see `microkernel.inprocess.response.LetGo`."""
        self.thread.post(_drop, views)

    def stop(self) -> None:
        """Finish what was accepted, end the workers and the thread; without effect when called
        again, and in a process forked from this one."""
        if os.getpid() != self._pid:
            return
        with self._stopping:
            if self.stopped:
                return
            self.stopped = True
            try:
                self.thread.call(self._finish())
            finally:
                self.thread.end()

    async def _finish(self) -> None:
        if self.serving is not None:
            await self.serving.stop()
        if self.relays:  # each has its final response by now, and hands it over
            await asyncio.wait(self.relays, timeout=1)


def _drop(_views: Sequence[Buffer]) -> None:
    """The last reference to the memory goes with the call."""


_RUNS: "weakref.WeakSet[_Run]" = weakref.WeakSet()


def running() -> list[tuple[LoopThread, CustomMetrics]]:
    """The servers of this process that serve: each one's thread, and the families of metrics that
    are declared with it, which belong to that thread."""
    return [
        (run.thread, run.serving.port.custom_metrics)
        for run in list(_RUNS)
        if run.serving is not None and not run.stopped
    ]


def _before_threads_end(run: _Run) -> None:
    """Have the run stopped at exit: before the interpreter ends its thread pools, which stopping
    needs. The public hook, `atexit`, comes after that."""
    reference = weakref.ref(run)

    def stop() -> None:
        if (left := reference()) is not None:
            left.stop()

    threading._register_atexit(stop)  # type: ignore[attr-defined]  # noqa: SLF001


class Engine:
    """A server that may be started. Stops it when it is dropped."""

    def __init__(self) -> None:
        self._run: _Run | None = None
        self._changing = threading.Lock()

    def start(self, setup: Setup, timeout: float | None) -> None:
        """Start and load the models. Where that fails, nothing is left running.

        Raises InvalidArgument where it runs already and for settings that cannot be right,
        Internal where models failed to load, and Unavailable after `timeout` seconds.
        """
        with self._changing:
            if self._run is not None:
                raise InvalidArgument("Server already started")
            run = _Run(setup)
            try:
                run.thread.call(run.begin(), timeout)
            except TimeoutError:
                run.stop()
                raise Unavailable(f"the server was not ready after {timeout} seconds") from None
            except BaseException:
                run.stop()
                raise
            self._run = run
            _RUNS.add(run)

    def stop(self) -> None:
        """Stop it; without effect where it does not run."""
        with self._changing:
            run, self._run = self._run, None
            if run is not None:
                run.stop()

    @property
    def running(self) -> bool:
        """Whether it has been started and not stopped."""
        return self._run is not None

    def _started(self) -> _Run:
        run = self._run
        if run is None:
            raise InvalidArgument("Server not started")
        run.check_process()
        return run

    @property
    def setup(self) -> Setup:
        """What it was started with. Raises InvalidArgument where it does not run."""
        return self._started().setup

    def call(self, work: Callable[[KernelServer], Coroutine[Any, Any, T]]) -> T:
        """Make one call of the port and wait for its answer. Raises InvalidArgument where the
        server does not run, and Unavailable where it stops before."""
        return self.serve(lambda serving: work(serving.port))

    def serve(self, work: Callable[[Serving], Coroutine[Any, Any, T]]) -> T:
        """The same with all that is served."""
        run = self._started()
        assert run.serving is not None
        return run.thread.call(work(run.serving))

    def relay(
        self,
        request: InferRequest,
        outlet: Outlet,
        respond: Callable[[InferResponse, LetGo], InferenceResponse],
    ) -> tuple[Relay, "concurrent.futures.Future[None]"]:
        """Run a request; the future ends when it is accepted or refused."""
        run = self._started()
        assert run.serving is not None
        relay = Relay(run.thread, request, outlet, lambda r: respond(r, run.let_go))
        return relay, run.thread.submit(relay.open(run.serving.port, run.own))

    def __del__(self) -> None:
        run = self._run
        if run is not None and not run.stopped:
            # On a thread of its own: this one may be the loop's, or in the middle of anything.
            threading.Thread(target=run.stop, name="microkernel-stop", daemon=True).start()
