"""Waiting for what announces itself to nobody."""

import asyncio
import os
from collections.abc import Callable


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until the condition holds, 20 seconds at most."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - other parts do not know that we wait
            await asyncio.sleep(0.001)


def gone(pid: int) -> bool:
    """Whether a process has ended and been waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
