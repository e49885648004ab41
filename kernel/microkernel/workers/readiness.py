"""Whether an instance says that it is ready: the server's side of asking, and the worker's."""

import asyncio
import logging
from collections.abc import Callable, Iterable

log = logging.getLogger("microkernel.worker")

LIMIT = 5.0
"""Seconds that an instance may take to say so; then it is not ready."""


class Readiness:
    """Asks an instance. One call is under way at most: who asks meanwhile waits for the same one,
    also when the one who began it has stopped waiting."""

    def __init__(self, ask: Callable[[], None]) -> None:
        """`ask` has the instance asked; what it says is to be given to `said`. To be made on a
        running loop."""
        self._ask = ask
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[bool] | None = None

    async def get(self) -> bool:
        """Whether the instance says that it is ready, and within the limit."""
        if self._answer is None:
            self._answer = self._loop.create_future()
            self._ask()
        done, _ = await asyncio.wait([self._answer], timeout=LIMIT)
        return any(answer.result() for answer in done)

    def said(self, ready: bool) -> None:
        """What the instance said, or False where it says nothing any more."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.set_result(ready)


async def agreed(asked: Iterable[Readiness]) -> bool:
    """Whether all say that they are ready, each asked once; yes where there is nobody to ask."""
    each = set(asked)
    return not each or all(await asyncio.gather(*(readiness.get() for readiness in each)))


def says(ask: Callable[[], bool], name: str) -> bool:
    """What the instance of that name says; where it raises, that it is not ready."""
    try:
        return bool(ask())
    except BaseException:
        log.warning("instance %s cannot say whether it is ready", name, exc_info=True)
        return False
