"""The page, from everything that is measured."""

import asyncio
import time
from collections.abc import Sequence
from itertools import chain

from microkernel.errors import InvalidArgument
from microkernel.metrics import gpu, host, models
from microkernel.metrics.config import parse_metrics_config
from microkernel.metrics.custom import CustomMetrics
from microkernel.metrics.host import Reading
from microkernel.metrics.models import ModelFamilies, Series
from microkernel.metrics.poller import Poller
from microkernel.metrics.text import Family, line
from microkernel.settings import ServerSettings

_WHILE = 0.001
"""Seconds for which the page is written before requests get their turn."""

_PINNED = (
    Family(
        "nv_pinned_memory_pool_total_bytes",
        "gauge",
        "Pinned memory pool total memory size, in bytes",
    ),
    Family(
        "nv_pinned_memory_pool_used_bytes",
        "gauge",
        "Pinned memory pool used memory size, in bytes",
    ),
)
# There is no such pool. Dashboards that divide one by the other then show nothing, not an alarm.
_POOL = tuple(Reading(family, 0) for family in _PINNED)

_MACHINE = (*_PINNED, host.UTILIZATION, host.MEMORY_TOTAL, host.MEMORY_USED, *gpu.FAMILIES)

FAMILIES: Sequence[Family] = (*models.FAMILIES, *_MACHINE)
"""Every family that the page can have, those of models' own aside."""


class MetricsPage:
    """Writes the page; between `start` and `stop` it also knows the machine."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises InvalidArgument naming the flag that is wrong."""
        if not settings.metrics_interval_ms > 0:
            raise InvalidArgument(
                f"--metrics-interval-ms must be more than 0, got {settings.metrics_interval_ms:g}"
            )
        self.custom = CustomMetrics([family.name for family in FAMILIES])
        self._config = parse_metrics_config(settings.metrics_config)
        self._poller = Poller(
            cpu=settings.allow_cpu_metrics,
            gpu=settings.allow_gpu_metrics,
            seconds=settings.metrics_interval_ms / 1000,
        )

    @property
    def gpus(self) -> Sequence[str]:
        """The identifiers of the GPUs by their numbers; none before `start`."""
        return self._poller.gpus

    def start(self) -> None:
        """Begin to read the gauges of the machine."""
        self._poller.start()

    def stop(self) -> None:
        """Read them no more; the page keeps what was read last."""
        self._poller.stop()

    async def ready(self) -> None:
        """Wait until the machine is known, for a second at most."""
        await self._poller.first()

    async def render(self, series: Sequence[Series]) -> bytes:
        """The page. Requests get their turns while it is written; the series of one model are
        written at one moment."""
        written, turns = ModelFamilies(self._config), _Turns()
        for one in series:
            written.add(one)
            await turns.give()
        machine = _grouped((*_POOL, *self._poller.readings))
        parts = []
        for text in chain(written.texts(), machine, [self.custom.text()]):
            parts.append(text.encode())
            await turns.give()
        return b"".join(parts)


class _Turns:
    """Lets the event loop do other things whenever a while has passed."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    async def give(self) -> None:
        """Give others their turn if it is time."""
        if time.monotonic() - self._since > _WHILE:
            await asyncio.sleep(0)
            self._since = time.monotonic()


def _grouped(readings: Sequence[Reading]) -> list[str]:
    """The readings as text, family by family."""
    return [
        family.text(line(family.name, r.labels, r.value) for r in readings if r.family is family)
        for family in _MACHINE
    ]
