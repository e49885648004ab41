"""What of the host the threads of an instance use: processors, memory of a NUMA node, niceness.

Workers import it: it needs the standard library only.
"""

import ctypes
import logging
import os
import platform
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from microkernel.errors import InvalidArgument, Unavailable

log = logging.getLogger("microkernel.worker")

FLAG = "--host-policy"
_CORES, _NODE = "cpu-cores", "numa-node"
_LARGEST_NODE = 1023
_MPOL_PREFERRED = 1
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
_NICEST = 19


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """What `--host-policy` says under one name: the `processors` to run on, () for any, and the
    NUMA `node` whose memory is preferred, None for any."""

    processors: tuple[int, ...] = ()
    node: int | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """Where the threads of an instance run: the processors, () for any, the NUMA node of their
    memory, None for any, and by how much they are nicer than the server."""

    processors: tuple[int, ...] = ()
    node: int | None = None
    niceness: int = 0


FREE = Binding()


def parse_host_policies(
    entries: Sequence[str], available: Collection[int]
) -> Mapping[str, HostPolicy]:
    """The values of the flag, each `name,setting=value`, by the names of the policies; the last one
    counts. `available` are the processors that the server may use.

    Raises InvalidArgument for another form, an unknown setting, and processors that it may not use.
    """
    policies: dict[str, HostPolicy] = {}
    for entry in entries:
        name, comma, setting = entry.partition(",")
        key, equals, value = setting.partition("=")
        if not (name and comma and key and equals):
            raise InvalidArgument(f"{FLAG} must be <name>,<setting>=<value>, got '{entry}'")
        known = policies.get(name, HostPolicy())
        policies[name] = _changed(known, entry, key, value, available)
    return policies


def _changed(
    known: HostPolicy, entry: str, key: str, value: str, available: Collection[int]
) -> HostPolicy:
    if key == _CORES:
        processors = _processors(entry, value)
        if missing := [number for number in processors if number not in available]:
            raise InvalidArgument(
                f"{FLAG}={entry}: the server may not use processor {missing[0]}; it may use "
                f"{ranges(available)}"
            )
        return HostPolicy(processors, known.node)
    if key != _NODE:
        raise InvalidArgument(f"{FLAG}={entry}: the setting must be {_NODE} or {_CORES}")
    if not value.isdecimal() or int(value) > _LARGEST_NODE:
        raise InvalidArgument(f"{FLAG}={entry}: {_NODE} must be a number up to {_LARGEST_NODE}")
    return HostPolicy(known.processors, int(value))


def _processors(entry: str, text: str) -> tuple[int, ...]:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 1 << 16):
            raise InvalidArgument(
                f"{FLAG}={entry}: {_CORES} must be numbers and ranges such as 0-3,8"
            )
        found.update(range(int(first), int(last) + 1))
    return tuple(sorted(found))


def ranges(numbers: Collection[int]) -> str:
    """Numbers as Linux writes them: `0-3,8`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in parts)


def bind_thread(binding: Binding) -> None:
    """Bind the calling thread, and with it the threads that it starts from now on.

    Raises Unavailable where the processors cannot be used any more; what the system cannot do at
    all is logged as a warning.
    """
    _bind(binding, [0])


def bind_process(binding: Binding) -> None:
    """As `bind_thread`, but every thread that there is runs on the processors from now on."""
    tasks = Path("/proc/self/task")
    _bind(binding, [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else [0])


def _bind(binding: Binding, threads: Sequence[int]) -> None:
    if binding.processors:
        _run_on(binding.processors, threads)
    if binding.node is not None:
        _remember_on(binding.node)
    if binding.niceness and sys.platform == "linux":  # elsewhere it is the whole process's
        _give_way(binding.niceness)


def _give_way(niceness: int) -> None:
    try:
        level = os.getpriority(os.PRIO_PROCESS, 0) + niceness
        os.setpriority(os.PRIO_PROCESS, 0, min(level, _NICEST))
    except OSError as error:  # a sandbox may forbid it, and models run without
        log.warning("threads of the model are no nicer than the server: %s", error.strerror)


def _run_on(processors: Collection[int], threads: Sequence[int]) -> None:
    if not hasattr(os, "sched_setaffinity"):
        log.warning("this system cannot bind threads to processors")
        return
    try:
        for thread in threads:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(thread, processors)
    except OSError as error:
        raise Unavailable(
            f"no thread can be bound to the processors {ranges(processors)}: {error.strerror}"
        ) from None


def _remember_on(node: int) -> None:
    """Prefer the memory of a NUMA node: other nodes' is taken where that is full."""
    number = _SET_MEMPOLICY.get(platform.machine()) if sys.platform == "linux" else None
    if number is None or not Path(f"/sys/devices/system/node/node{node}").is_dir():
        log.warning("there is no NUMA node %d here; memory is taken from any", node)
        return
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (node // bits + 1))()
    mask[node // bits] = 1 << node % bits
    libc = ctypes.CDLL(None, use_errno=True)
    # The number of bits counts one more than it says.
    if libc.syscall(number, _MPOL_PREFERRED, mask, len(mask) * bits + 1) != 0:
        reason = os.strerror(ctypes.get_errno())
        log.warning("memory cannot be taken from NUMA node %d: %s", node, reason)
