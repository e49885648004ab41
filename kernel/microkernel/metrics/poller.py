"""Reads the gauges of the machine now and then, on a thread of its own.

A driver that hangs stops its thread and nothing else; the page shows the last readings.
"""

import asyncio
import threading
from collections.abc import Sequence
from typing import Protocol

import structlog

from microkernel.metrics.gpu import GpuReader, open_gpus
from microkernel.metrics.host import CpuReader, Reading

log = structlog.get_logger()

FIRST_LIMIT = 1.0
"""Seconds for which a page waits for the first readings."""
_SHORTEST = 0.01
"""Seconds between readings at least, whatever the operator asks for."""


class Reader(Protocol):
    """Reads some gauges; called on the poller's thread only."""

    def read(self) -> Sequence[Reading]:
        """What there is to tell now."""
        ...


class Poller:
    """Polls between `start` and `stop`. `readings` and `gpus` (the identifiers of the GPUs by their
    numbers) may be read on any thread, at any time."""

    def __init__(self, *, cpu: bool, gpu: bool, seconds: float) -> None:
        self.readings: Sequence[Reading] = ()
        self.gpus: Sequence[str] = ()
        self._cpu = cpu
        self._gpu = gpu
        self._seconds = min(max(seconds, _SHORTEST), threading.TIMEOUT_MAX)
        self._failed: set[type[Reader]] = set()
        self._first = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin to poll, once; where nothing is to be read this does nothing."""
        if self._cpu or self._gpu:
            self._thread.start()

    def stop(self) -> None:
        """Poll no more; does not wait for a reading that is under way."""
        self._stopping.set()

    async def first(self) -> None:
        """Wait until there are readings if polling has begun, `FIRST_LIMIT` at most."""
        if self._thread.ident is not None and not self._first.is_set():
            await asyncio.to_thread(self._first.wait, FIRST_LIMIT)

    def _run(self) -> None:
        readers = self._open()
        while True:
            self.readings = [reading for reader in readers for reading in self._read(reader)]
            self._first.set()
            if self._stopping.wait(self._seconds):
                return

    def _open(self) -> list[Reader]:
        readers: list[Reader] = [CpuReader()] if self._cpu else []
        gpus = self._open_gpus() if self._gpu else None
        if gpus is not None:
            self.gpus = gpus.uuids
            readers.append(gpus)
        return readers

    def _open_gpus(self) -> GpuReader | None:
        try:
            return open_gpus()
        except Exception:
            log.exception("no GPU metrics")  # a driver's library may fail in its own ways
            return None

    def _read(self, reader: Reader) -> Sequence[Reading]:
        try:
            return reader.read()
        except Exception:
            if type(reader) not in self._failed:
                self._failed.add(type(reader))
                log.exception("metrics of the machine cannot be read")
            return ()
