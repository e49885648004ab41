"""Host policies as they are given, and threads that are bound."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from microkernel import Binding, InvalidArgument, Placement, Unavailable
from microkernel.binding import HostPolicy, bind_thread, parse_host_policies, ranges
from microkernel.workers.process import ProcessWorker
from microkernel.workers.thread import ThreadWorker

AVAILABLE = frozenset(range(12)) - {7}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")


@pytest.mark.parametrize(
    ("entries", "policies"),
    [
        ([], {}),
        (["cpu,cpu-cores=0-3"], {"cpu": HostPolicy((0, 1, 2, 3))}),
        (["cpu,cpu-cores=3,1,0-1"], {"cpu": HostPolicy((0, 1, 3))}),
        (["cpu,cpu-cores=8-8, 2"], {"cpu": HostPolicy((2, 8))}),
        (["gpu_0,numa-node=1"], {"gpu_0": HostPolicy(node=1)}),
        (
            ["a,numa-node=1", "b,cpu-cores=1", "a,cpu-cores=0", "b,cpu-cores=2"],
            {"a": HostPolicy((0,), 1), "b": HostPolicy((2,))},
        ),
    ],
)
def test_policies(entries: list[str], policies: Mapping[str, HostPolicy]) -> None:
    assert parse_host_policies(entries, AVAILABLE) == policies


CORES = "cpu-cores must be numbers and ranges such as 0-3,8"
FORM = "--host-policy must be <name>,<setting>=<value>, got "


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("", FORM),
        ("cpu", FORM),
        ("cpu,cpu-cores", FORM),
        (",cpu-cores=1", FORM),
        ("cpu,cpu-cores=", CORES),
        ("cpu,cpu-cores=x", CORES),
        ("cpu,cpu-cores=3-1", CORES),
        ("cpu,cpu-cores=1-", CORES),
        ("cpu,cpu-cores=-1", CORES),
        ("cpu,cpu-cores=0-99999999999", CORES),
        ("cpu,cpu-cores=6-9", "the server may not use processor 7; it may use 0-6,8-11"),
        ("cpu,numa-node=x", "numa-node must be a number up to 1023"),
        ("cpu,numa-node=1024", "numa-node must be a number up to 1023"),
        ("cpu,numa-node=-1", "numa-node must be a number up to 1023"),
        ("cpu,colour=red", "the setting must be numa-node or cpu-cores"),
    ],
)
def test_what_is_wrong_with_a_policy(entry: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        parse_host_policies([entry], AVAILABLE)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((3,), "3"), ((0, 1, 2), "0-2"), ((5, 0, 1, 9, 8), "0-1,5,8-9")],
)
def test_numbers_as_ranges(numbers: tuple[int, ...], text: str) -> None:
    assert ranges(numbers) == text


def in_thread(call: Callable[[], Any]) -> Any:
    """What a call gives on a thread of its own, or the error that it raises."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:  # noqa: BLE001 - handed to the test
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


@LINUX
def test_a_thread_is_bound_and_no_other() -> None:
    mine, own = os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)
    one = min(mine)

    def bound() -> tuple[set[int], int]:
        bind_thread(Binding((one,), niceness=2))
        return os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)

    assert in_thread(bound) == ({one}, min(own + 2, 19))
    assert (os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)) == (mine, own)


@LINUX
def test_nobody_is_nicer_than_nicest() -> None:
    def bound() -> int:
        bind_thread(Binding(niceness=15))
        bind_thread(Binding(niceness=15))
        return os.getpriority(os.PRIO_PROCESS, 0)

    assert in_thread(bound) == 19


@LINUX
def test_processors_that_are_gone_are_an_error() -> None:
    error = in_thread(lambda: bind_thread(Binding((60000,))))
    assert isinstance(error, Unavailable)
    assert "no thread can be bound to the processors 60000: " in str(error)


@LINUX
def test_memory_of_a_node_is_preferred() -> None:
    """In a process of its own, whose memory policy the kernel tells."""
    if not Path("/sys/devices/system/node/node0").is_dir():
        pytest.skip("this host tells of no NUMA nodes")
    script = (
        "import logging; logging.basicConfig()\n"
        "from microkernel.binding import Binding, bind_process\n"
        "bind_process(Binding(node=0))\n"
        "kept = bytearray(1 << 22)\n"
        "print(open('/proc/self/numa_maps').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    if (
        "cannot be taken from NUMA node 0" in done.stderr
        or not Path("/proc/self/numa_maps").exists()
    ):
        pytest.skip("this host lets nobody choose memory")
    assert "prefer:0" in done.stdout or "prefer (many):0" in done.stdout


def test_a_node_that_is_not_there_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    in_thread(lambda: bind_thread(Binding(node=1000)))
    assert [record.getMessage() for record in caplog.records] == [
        "there is no NUMA node 1000 here; memory is taken from any"
    ]


Launch = Callable[[], Awaitable[ProcessWorker | ThreadWorker]]


@LINUX
async def test_the_threads_of_a_worker_are_bound(
    launch: Launch,
    odd_config: Callable[..., Any],
    run_batch: Callable[..., Awaitable[Any]],
    ask: Callable[..., Any],
) -> None:
    """In a process all of them, in the server only those of instances."""
    from odd_backend import DEEDS  # type: ignore[import-not-found]  # found by the fixture

    one = max(os.sched_getaffinity(0))
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    places = [
        Placement(f"odd_{i}", "KIND_CPU", binding=Binding((one,), niceness=5)) for i in (0, 1)
    ]
    worker = await launch()
    instances = await worker.start(odd_config(), places)
    try:
        seen = set()
        for instance in instances:
            (answer,) = (await run_batch(instance, ask(DEEDS["pid"], 0, 0))).answers
            pid, thread, _ = answer.outputs[0].as_numpy()[0].tolist()
            assert _status(f"{pid}/task/{thread}")["Cpus_allowed_list"] == str(one)
            assert os.getpriority(os.PRIO_PROCESS, thread) == min(mine + 5, 19)
            seen.add(pid)
        (pid,) = seen
        if pid != os.getpid():
            found = _allowed(pid)
            assert (set(found), len(found) > 2) == ({str(one)}, True)
    finally:
        await worker.stop()


def _allowed(pid: int) -> list[str]:
    """The processors that each thread of a process may run on."""
    tasks = [task.name for task in Path(f"/proc/{pid}/task").iterdir()]
    return [_status(f"{pid}/task/{task}")["Cpus_allowed_list"] for task in tasks]


def _status(task: str) -> dict[str, str]:
    lines = Path(f"/proc/{task}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def test_a_worker_that_cannot_be_bound_does_not_start(
    launch: Launch, odd_config: Callable[..., Any]
) -> None:
    worker = await launch()
    place = Placement("odd_0", "KIND_CPU", binding=Binding((60000,)))
    with pytest.raises(Unavailable, match="no thread can be bound to the processors 60000"):
        await worker.start(odd_config(), [place])
    await worker.stop()


def test_what_workers_import_is_plain() -> None:
    script = "import sys, json, microkernel.binding; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert not {"structlog", "pluggy", "google.protobuf"} & set(json.loads(done.stdout))
