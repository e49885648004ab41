"""The gauges of NVIDIA GPUs, through the package nvidia-ml-py where it is installed."""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from microkernel import host
from microkernel.metrics.host import Reading
from microkernel.metrics.text import Family, labels_text

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Field:
    """A family and how to ask the library, given a device, for its value."""

    family: Family
    ask: Callable[[Any, Any], float]


_ENERGY = "nv_energy_consumption"

_FIELDS = (
    _Field(
        Family("nv_gpu_utilization", "gauge", "GPU utilization rate [0.0 - 1.0)"),
        lambda nvml, device: nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100,
    ),
    _Field(
        Family("nv_gpu_memory_total_bytes", "gauge", "GPU total memory, in bytes"),
        lambda nvml, device: nvml.nvmlDeviceGetMemoryInfo(device).total,
    ),
    _Field(
        Family("nv_gpu_memory_used_bytes", "gauge", "GPU used memory, in bytes"),
        lambda nvml, device: nvml.nvmlDeviceGetMemoryInfo(device).used,
    ),
    _Field(
        Family("nv_gpu_power_usage", "gauge", "GPU power usage in watts"),
        lambda nvml, device: nvml.nvmlDeviceGetPowerUsage(device) / 1000,
    ),
    _Field(
        Family("nv_gpu_power_limit", "gauge", "GPU power management limit in watts"),
        lambda nvml, device: nvml.nvmlDeviceGetPowerManagementLimit(device) / 1000,
    ),
    _Field(
        Family(_ENERGY, "counter", "GPU energy consumption in joules since the server started"),
        lambda nvml, device: nvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1000,
    ),
)
FAMILIES = tuple(field.family for field in _FIELDS)
"""The families of GPUs, in the order of the page."""


def visible(uuids: Sequence[str], setting: str | None) -> list[str]:
    """The GPUs that CUDA shows, in its order, by the value of `CUDA_VISIBLE_DEVICES`; None shows
    all. As CUDA does, it stops at the first entry that names no GPU."""
    if setting is None:
        return list(uuids)
    shown: list[str] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdecimal():
            found = uuids[int(entry) : int(entry) + 1]
        else:
            found = [uuid for uuid in uuids if entry and uuid.startswith(entry)]
        if len(found) != 1:
            break
        shown += found
    return shown


class GpuReader:
    """Reads the GPUs that the server's workers can see. What a GPU does not tell is left out and
    logged once."""

    def __init__(self, nvml: Any, devices: Mapping[str, Any]) -> None:
        """`nvml` is the library, initialised; `devices` are its handles by their identifiers."""
        self._nvml = nvml
        self._devices = devices
        self._refused: set[tuple[str, str]] = set()
        self._energy = {uuid: self._ask(uuid, _FIELDS[-1]) or 0.0 for uuid in devices}

    @property
    def uuids(self) -> Sequence[str]:
        """The identifiers of the GPUs by their numbers."""
        return list(self._devices)

    def read(self) -> Sequence[Reading]:
        """What the GPUs tell now."""
        return [
            Reading(field.family, value, labels_text({"gpu_uuid": uuid}))
            for field in _FIELDS
            for uuid in self._devices
            if (value := self._value(uuid, field)) is not None
        ]

    def _value(self, uuid: str, field: _Field) -> float | None:
        value = self._ask(uuid, field)
        if value is not None and field.family.name == _ENERGY:
            return max(0.0, value - self._energy[uuid])
        return value

    def _ask(self, uuid: str, field: _Field) -> float | None:
        try:
            return field.ask(self._nvml, self._devices[uuid])
        except self._nvml.NVMLError as error:
            key = (uuid, field.family.name)
            if key not in self._refused:
                self._refused.add(key)
                log.warning("no such metric", gpu=uuid, metric=field.family.name, reason=str(error))
            return None


def open_gpus() -> GpuReader | None:
    """A reader of the GPUs of this machine; None where there is none, or no library to ask, which
    is logged."""
    if host.gpus() == 0:
        return None
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        log.warning("GPU metrics need a package: pip install 'microkernel[gpu]'")
        return None
    try:
        nvml.nvmlInit()
        return GpuReader(nvml, _devices(nvml))
    except nvml.NVMLError as error:
        log.warning("no GPU metrics", reason=str(error))
        return None


def _devices(nvml: Any) -> dict[str, Any]:
    found = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = nvml.nvmlDeviceGetUUID(device)
        found[uuid.decode() if isinstance(uuid, bytes) else uuid] = device
    shown = visible(list(found), os.environ.get("CUDA_VISIBLE_DEVICES"))
    return {uuid: found[uuid] for uuid in shown}
