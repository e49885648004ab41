"""The thread that writes traces, so that the event loop never waits for a disk or a formatter."""

import asyncio
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import structlog

from microkernel.trace import Trace

log = structlog.get_logger()

MOST_WAITING = 4096
"""How many traces may wait to be written."""
MOST_BYTES = 64 << 20
"""How many bytes of tensors may wait to be written, beyond a single trace."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A trace to write. Its group gets an indexed file every `log_frequency` traces, 0 for none."""

    trace: Trace
    log_frequency: int = 0


@dataclass(frozen=True, slots=True)
class Closed:
    """No trace of a group comes any more; what is left of it goes to an `indexed` file or not."""

    group: int
    indexed: bool


Item: TypeAlias = Ended | Closed


class Sink(Protocol):
    """Where traces go. Called on one thread only, but for `give_up`."""

    def write(self, item: Item) -> None:
        """Take a trace, or close a group. What cannot be written is dropped."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...

    def give_up(self) -> None:
        """`close` takes too long: have it end soon, whatever is lost. Called on any thread."""
        ...


class TraceWriter:
    """Hands traces to a sink on a thread of its own, which starts with the first one.

    Traces that come while too much waits are dropped: memory is bounded whatever the disk or the
    collector does.
    """

    def __init__(
        self, sink: Sink, most_waiting: int = MOST_WAITING, most_bytes: int = MOST_BYTES
    ) -> None:
        self._sink = sink
        self._most = most_waiting, most_bytes
        self._items: queue.SimpleQueue[tuple[Item, int] | None] = queue.SimpleQueue()
        self._put = [0, 0]  # items and bytes, counted by the caller
        self._taken = [0, 0]  # the same, counted by the thread
        self._dropped = 0
        self._failing = False
        self._thread: threading.Thread | None = None

    def put(self, item: Item) -> None:
        """Have an item written. One caller at a time."""
        size = _size(item)
        if isinstance(item, Ended) and self._drops():
            return
        self._put = [self._put[0] + 1, self._put[1] + size]
        self._items.put((item, size))
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="traces", daemon=True)
            self._thread.start()

    def _drops(self) -> bool:
        """Whether a trace that comes now is dropped. Once some were, others are until half of what
        waited is written, so that the log is not filled."""
        share = 2 if self._dropped else 1
        waiting = [put - taken for put, taken in zip(self._put, self._taken, strict=True)]
        if all(now < most / share for now, most in zip(waiting, self._most, strict=True)):
            self._tell_dropped()
            return False
        if not self._dropped:
            log.warning("traces are dropped: they come faster than they are written")
        self._dropped += 1
        return True

    def _tell_dropped(self) -> None:
        if self._dropped:
            log.warning("traces were dropped", count=self._dropped)
            self._dropped = 0

    def _serve(self) -> None:
        while (entry := self._items.get()) is not None:
            item, size = entry
            self._write(item)
            self._taken = [self._taken[0] + 1, self._taken[1] + size]
        self._sink.close()

    def _write(self, item: Item) -> None:
        try:
            self._sink.write(item)
            self._failing = False
        except Exception:
            if not self._failing:  # told once, not for each of many
                log.exception("a trace could not be written")
            self._failing = True

    async def close(self, limit: float) -> None:
        """Write what waits, for `limit` seconds at most, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._tell_dropped()
        self._items.put(None)
        await asyncio.to_thread(thread.join, limit)
        if thread.is_alive():
            log.warning("not all traces could be written in time", seconds=limit)
            self._sink.give_up()


def _size(item: Item) -> int:
    return sum(_sizes(item.trace)) if isinstance(item, Ended) else 0


def _sizes(trace: Trace) -> Iterator[int]:
    for traced in trace.tensors:
        yield traced.tensor.nbytes
    for child in trace.children:
        yield from _sizes(child)
