"""Requests whose responses were looked for in the cache: those that were not there are kept there,
also where the caller does not wait for them."""

import asyncio

from microkernel.caching.lookups import Lookup
from microkernel.errors import MicrokernelError
from microkernel.request import InferResponse
from microkernel.stats import ModelStats


class Keeping:
    """Keeps responses and counts what was missed, each once."""

    def __init__(self, stats: ModelStats) -> None:
        self._stats = stats
        self._loop = asyncio.get_running_loop()
        self._alone: set[asyncio.Task[InferResponse]] = set()

    async def kept(self, lookup: Lookup, response: InferResponse) -> InferResponse:
        """The response, in the cache where it did not come from there."""
        if lookup.outputs is None:
            took = await lookup.keep(response.outputs)
            if not lookup.counted:
                lookup.counted = True
                self._stats.missed(took)
        return response

    def unread(self, lookup: Lookup, response: InferResponse) -> None:
        """Keep a response whose caller has gone, in the background."""
        if lookup.outputs is None and response.error is None:
            task = self._loop.create_task(self.kept(lookup, response))
            self._alone.add(task)
            task.add_done_callback(self._alone.discard)

    async def settled(self) -> None:
        """Wait until nothing is being kept in the background."""
        await asyncio.gather(*self._alone)


class LookedReply:
    """The reply of a request that is answered once, to its caller as long as there is one; see
    `Reply`. `lookup` is set before it is answered."""

    def __init__(self, own: asyncio.Future[InferResponse], keeping: Keeping) -> None:
        self.lookup: Lookup | None = None
        self._own = own
        self._keeping = keeping
        self._answered = False

    def done(self) -> bool:
        """Whether it was answered; the caller may have gone before."""
        return self._answered

    def set_result(self, response: InferResponse) -> None:
        """Answer, or only keep the response."""
        self._answered = True
        if not self._own.done():
            self._own.set_result(response)
        elif self.lookup is not None:
            self._keeping.unread(self.lookup, response)

    def set_exception(self, error: MicrokernelError) -> None:
        """Answer with an error, which nobody keeps."""
        self._answered = True
        if not self._own.done():
            self._own.set_exception(error)

    def left(self) -> None:
        """The caller has gone, perhaps with an answer that it has not looked at."""
        own = self._own
        if self.lookup is None or not own.done() or own.cancelled() or own.exception() is not None:
            return
        self._keeping.unread(self.lookup, own.result())
