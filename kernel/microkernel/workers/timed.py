"""A worker that has only so long until its instances are made."""

import asyncio
from collections.abc import Sequence

from microkernel.backend import Placement
from microkernel.config.model import ModelConfig
from microkernel.workers.contract import Lost, Worker, WorkerInstance
from microkernel.workers.timeouts import LOAD

_BETWEEN = "waiting until the server has read the model's files"


class TimedWorker:
    """A worker that is ended where `start` has not returned so many seconds after this is made;
    what waits for it raises Unavailable then. In everything else it is the worker that it is given.
    """

    def __init__(self, worker: Worker, seconds: float) -> None:
        """To be made on a running loop, as soon as the worker is there."""
        self._worker = worker
        self._seconds = seconds
        self._doing = _BETWEEN
        self._timer = asyncio.get_running_loop().call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        self._worker.kill(
            f"it took longer to load than the {self._seconds:g} seconds of the model's parameter "
            f"'{LOAD}', and was still {self._doing}"
        )

    async def complete(self, config: ModelConfig) -> ModelConfig:
        """See `Worker.complete`."""
        self._doing = "completing the configuration"
        completed = await self._worker.complete(config)
        self._doing = _BETWEEN
        return completed

    async def start(
        self, config: ModelConfig, placements: Sequence[Placement]
    ) -> Sequence[WorkerInstance]:
        """See `Worker.start`."""
        self._doing = "starting the instances"
        try:
            return await self._worker.start(config, placements)
        finally:
            self._timer.cancel()

    def watch(self, lost: Lost) -> None:
        """See `Worker.watch`."""
        self._worker.watch(lost)

    def kill(self, reason: str) -> None:
        """See `Worker.kill`."""
        self._timer.cancel()
        self._worker.kill(reason)

    async def released(self) -> None:
        """See `Worker.released`."""
        await self._worker.released()

    async def stop(self) -> None:
        """See `Worker.stop`."""
        self._timer.cancel()
        await self._worker.stop()
