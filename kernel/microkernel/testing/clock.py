"""An event loop on virtual time."""

import asyncio
import selectors


class _JumpingSelector(selectors.DefaultSelector):
    """Looks at its files without waiting, and adds to its clock what it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `BaseSelector.select`. With nothing to wait for in time it waits for a file."""
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout is not None:
            self.now += max(timeout, 0.0)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that starts at 0 seconds and jumps to its next timer whenever nothing else can
    run: `await asyncio.sleep(3600)` returns at once, and `time()` is exactly an hour later.

    Only for code without threads and processes, which the clock would run ahead of. Use it with
    `asyncio.Runner(loop_factory=VirtualTimeLoop)` or from pytest-asyncio's hook
    `pytest_asyncio_loop_factories`.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """The virtual time in seconds."""
        return self._jumping.now
