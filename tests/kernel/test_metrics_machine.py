"""What the page says of the machine: processors, memory, GPUs, and who reads them."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from microkernel.metrics import gpu, poller
from microkernel.metrics.gpu import GpuReader, open_gpus, visible
from microkernel.metrics.host import (
    MEMORY_TOTAL,
    MEMORY_USED,
    UTILIZATION,
    CpuReader,
    CpuTimes,
    Memory,
    Reading,
    cpu_times,
    memory,
    utilization,
)
from microkernel.metrics.poller import Poller


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu  10 1 5 70 4 3 2 5 9 9\ncpu0 1 1 1 1 1\n", CpuTimes(74, 100)),
        ("cpu 1 2 3 4 5\n", CpuTimes(9, 15)),
        ("", None),
        ("\n", None),
        ("cpu0 1 1 1 1 1 1\n", None),
        ("cpu 1 2 3\n", None),
        ("cpu 1 2 3 x 5\n", None),
    ],
)
def test_times_of_processors(text: str, expected: CpuTimes | None) -> None:
    assert cpu_times(text) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (CpuTimes(0, 0), CpuTimes(75, 100), 0.25),
        (CpuTimes(75, 100), CpuTimes(75, 200), 1.0),
        (CpuTimes(75, 100), CpuTimes(175, 200), 0.0),
        (CpuTimes(75, 100), CpuTimes(74, 110), 1.0),
        (CpuTimes(75, 100), CpuTimes(95, 110), 0.0),
        (CpuTimes(75, 100), CpuTimes(75, 100), None),
    ],
)
def test_utilization(before: CpuTimes, after: CpuTimes, expected: float | None) -> None:
    assert utilization(before, after) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 30 kB\n", Memory(102400, 71680)),
        ("MemTotal: 100 kB\nMemFree: 40 kB\n", Memory(102400, 61440)),
        ("MemTotal: 100 kB\nMemAvailable: 101 kB\n", Memory(102400, 0)),
        ("MemTotal: 100 kB\n", None),
        ("MemTotal:\nMemFree: lots\n", None),
        ("", None),
    ],
)
def test_memory(text: str, expected: Memory | None) -> None:
    assert memory(text) == expected


def test_readings_of_processors_and_memory(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu 25 0 0 75 0\n")
    (tmp_path / "meminfo").write_text("MemTotal: 4 kB\nMemAvailable: 3 kB\n")
    reader = CpuReader(tmp_path)
    memory = [Reading(MEMORY_TOTAL, 4096), Reading(MEMORY_USED, 1024)]
    assert reader.read() == [Reading(UTILIZATION, 0.25), *memory]
    assert reader.read() == [Reading(UTILIZATION, 0.25), *memory], "no time has passed"
    (tmp_path / "stat").write_text("cpu 75 0 0 125 0\n")
    assert reader.read() == [Reading(UTILIZATION, 0.5), *memory]


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert CpuReader(tmp_path).read() == []


def test_this_machine() -> None:
    if not Path("/proc/stat").exists():
        pytest.skip("no Linux")
    found = {reading.family: reading.value for reading in CpuReader().read()}
    assert 0 <= found[UTILIZATION] <= 1
    assert 0 < found[MEMORY_USED] < found[MEMORY_TOTAL]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, ["GPU-a1", "GPU-b2", "GPU-b3"]),
        ("", []),
        ("1", ["GPU-b2"]),
        ("2, 0", ["GPU-b3", "GPU-a1"]),
        ("0,-1,1", ["GPU-a1"]),
        ("0,7,1", ["GPU-a1"]),
        ("GPU-b3,GPU-a", ["GPU-b3", "GPU-a1"]),
        ("GPU-b", []),
    ],
)
def test_which_gpus_cuda_shows(setting: str | None, expected: list[str]) -> None:
    assert visible(["GPU-a1", "GPU-b2", "GPU-b3"], setting) == expected


class Nvml:
    """The part of NVIDIA's library that is used, for two GPUs, of which the second has no sensor
    for power. `joules` is what the first has used so far."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.joules = 500.0
        self.started = False

    def nvmlInit(self) -> None:  # noqa: N802 - as it is called there
        self.started = True

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        assert self.started
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, device: int) -> str | bytes:  # noqa: N802
        return b"GPU-0" if device == 0 else "GPU-1"

    def nvmlDeviceGetUtilizationRates(self, device: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=25, memory=1)

    def nvmlDeviceGetMemoryInfo(self, device: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=1 << 30, used=1 << 20, free=0)

    def nvmlDeviceGetPowerUsage(self, device: int) -> int:  # noqa: N802
        return self._of_first(device, 60_500)

    def nvmlDeviceGetPowerManagementLimit(self, device: int) -> int:  # noqa: N802
        return self._of_first(device, 300_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, device: int) -> int:  # noqa: N802
        return self._of_first(device, round(self.joules * 1000))

    def _of_first(self, device: int, value: int) -> int:
        if device:
            raise self.NVMLError("Not Supported")
        return value


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """A machine with two GPUs and the library."""
    library = Nvml()
    monkeypatch.setattr("microkernel.host.gpus", lambda: 2)
    monkeypatch.setitem(__import__("sys").modules, "pynvml", library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return library


def test_readings_of_gpus(nvml: Nvml) -> None:
    with capture_logs() as lines:
        reader = open_gpus()
        assert isinstance(reader, GpuReader)
        nvml.joules += 12.5
        found = {(r.family.name, r.labels): r.value for r in reader.read()}
        reader.read()
    assert reader.uuids == ["GPU-0", "GPU-1"]
    first, second = 'gpu_uuid="GPU-0"', 'gpu_uuid="GPU-1"'
    assert found == {
        ("nv_gpu_utilization", first): 0.25,
        ("nv_gpu_memory_total_bytes", first): 1 << 30,
        ("nv_gpu_memory_used_bytes", first): 1 << 20,
        ("nv_gpu_power_usage", first): 60.5,
        ("nv_gpu_power_limit", first): 300.0,
        ("nv_energy_consumption", first): 12.5,
        ("nv_gpu_utilization", second): 0.25,
        ("nv_gpu_memory_total_bytes", second): 1 << 30,
        ("nv_gpu_memory_used_bytes", second): 1 << 20,
    }
    refused = [(line["gpu"], line["metric"], line["reason"]) for line in lines]
    assert sorted(refused) == [
        ("GPU-1", name, "Not Supported")
        for name in ("nv_energy_consumption", "nv_gpu_power_limit", "nv_gpu_power_usage")
    ]


def test_gpus_that_cuda_hides_are_not_read(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    reader = open_gpus()
    assert reader is not None
    assert reader.uuids == ["GPU-1"]


def test_no_gpu_no_reader(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microkernel.host.gpus", lambda: 0)
    with capture_logs() as lines:
        assert open_gpus() is None
    assert (lines, nvml.started) == ([], False)


def test_no_library_no_reader(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with capture_logs() as lines:
        assert open_gpus() is None
    assert "pip install 'microkernel[gpu]'" in lines[0]["event"]


def test_a_library_without_a_driver(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise nvml.NVMLError("Driver Not Loaded")

    monkeypatch.setattr(nvml, "nvmlInit", broken)
    with capture_logs() as lines:
        assert open_gpus() is None
    assert [(line["event"], line["reason"]) for line in lines] == [
        ("no GPU metrics", "Driver Not Loaded")
    ]


@pytest.mark.gpu
def test_the_real_library() -> None:
    pytest.importorskip("pynvml", reason="the extra 'gpu' is missing")
    reader = open_gpus()
    if reader is None:
        pytest.skip("no NVIDIA GPU")
    found = {r.family for r in reader.read()}
    assert set(gpu.FAMILIES[:3]) <= found


class Scripted:
    """A reader that says what it is told to, and when it was asked."""

    def __init__(self, *answers: Sequence[Reading] | Exception) -> None:
        self._answers = list(answers)
        self.asked = threading.Semaphore(0)

    def read(self) -> Sequence[Reading]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        self.asked.release()
        if isinstance(answer, Exception):
            raise answer
        return answer


def polled(monkeypatch: pytest.MonkeyPatch, reader: Any, seconds: float = 60.0) -> Poller:
    monkeypatch.setattr(poller, "CpuReader", lambda: reader)
    return Poller(cpu=True, gpu=False, seconds=seconds)


async def test_the_first_page_waits_for_the_first_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [Reading(UTILIZATION, 0.5)]
    polling = polled(monkeypatch, Scripted(there))
    polling.start()
    await polling.first()
    polling.stop()
    assert polling.readings == there


async def test_a_reader_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging:
        def __init__(self) -> None:
            self.let_go = threading.Event()

        def read(self) -> Sequence[Reading]:
            self.let_go.wait(60)
            return []

    reader = Hanging()
    monkeypatch.setattr(poller, "FIRST_LIMIT", 0.01)
    polling = polled(monkeypatch, reader)
    polling.start()
    async with asyncio.timeout(30):
        await polling.first()
    assert polling.readings == ()
    polling.stop()
    reader.let_go.set()


async def test_a_failure_is_logged_once_and_the_next_reading_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = [Reading(UTILIZATION, 0.5)]
    reader = Scripted(there, OSError("a"), OSError("b"), there)
    polling = polled(monkeypatch, reader, seconds=0.0)
    with capture_logs() as lines:
        polling.start()
        for _ in range(5):
            assert await asyncio.to_thread(reader.asked.acquire, timeout=30)
        polling.stop()
        polling._thread.join(30)
    assert polling.readings == there
    assert [line["event"] for line in lines] == ["metrics of the machine cannot be read"]


async def test_nothing_is_polled_where_all_is_off() -> None:
    polling = Poller(cpu=False, gpu=False, seconds=1)
    polling.start()
    await polling.first()
    polling.stop()
    assert (polling.readings, polling.gpus) == ((), ())


@pytest.mark.parametrize("seconds", [1e297, float("inf")])
async def test_a_thread_can_wait_for_any_interval(seconds: float) -> None:
    polling = Poller(cpu=True, gpu=False, seconds=seconds)
    polling.start()
    await polling.first()
    polling.stop()  # ends the thread; one that failed would be a warning, and so an error
    for thread in threading.enumerate():
        if thread.name == "metrics":
            await asyncio.to_thread(thread.join)
    assert polling.readings


async def test_a_library_that_fails_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("ctypes")

    monkeypatch.setattr(poller, "open_gpus", broken)
    polling = Poller(cpu=False, gpu=True, seconds=60)
    with capture_logs() as lines:
        polling.start()
        await polling.first()
        polling.stop()
    assert [line["event"] for line in lines] == ["no GPU metrics"]


async def test_the_gpus_are_known_when_the_readings_are(nvml: Nvml) -> None:
    polling = Poller(cpu=False, gpu=True, seconds=60)
    with capture_logs():
        polling.start()
        await polling.first()
        polling.stop()
    assert polling.gpus == ["GPU-0", "GPU-1"]
    assert len(polling.readings) == 9
