"""Requests of a decoupled model that nobody can finish any more."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

from microkernel import Internal
from microkernel_python.failure import failed
from microkernel_python.reply import StreamReply

_LOG = logging.getLogger("microkernel.model")
_DROPPED = (
    "the model let go of the request and its response sender without sending "
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL"
)


class Abandonments:
    """Finishes abandoned requests with an error, so that no client waits for ever.

    They are found by the garbage collector, which strikes on any thread, whatever locks that holds:
    those of the log and of the way to the server among them. So the work is done on other threads.
    """

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._found: SimpleQueue[StreamReply | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Start the thread, unless it runs. In a process that the model forks there is none, so the
        copies of senders that die there end nothing."""
        if self._thread is None:
            self._thread = _start(f"{self._instance} abandoned", self._serve)

    def report(self, reply: StreamReply) -> None:
        """Have a request finished. May be called in the middle of anything."""
        self._found.put(reply)

    def stop(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._found.put(None)
            self._thread.join()

    def _serve(self) -> None:
        while (reply := self._found.get()) is not None:
            # Each on a thread of its own: one may have to wait for a slow client.
            _start(f"{self._instance} abandoned request", partial(self._finish, reply))

    def _finish(self, reply: StreamReply) -> None:
        _LOG.error("%srequest to '%s': %s", reply.source.tag(), self._instance, _DROPPED)
        reply.finish(Internal(failed(self._instance, reply.reason or _DROPPED)))


def _start(name: str, work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread
