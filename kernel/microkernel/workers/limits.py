"""What a worker process may use of the host, by parameters of its model, and holding it to that.

The limits are those that a process without privileges can set for itself on Linux. They hold before
anything of the backend runs, and cannot be lifted by it.
"""

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microkernel.config.model import ModelConfig
from microkernel.errors import InvalidArgument

MEMORY, FILES, NETWORK = "WORKER_MEMORY_LIMIT", "WORKER_OPEN_FILES_LIMIT", "WORKER_NETWORK"
"""The parameters."""

FEWEST_FILES = 64
"""What a worker needs at least for its sockets and the memory that tensors travel in."""

_UNITS: Mapping[str, int] = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]iB)?", re.ASCII)
_LARGEST = 1 << 60
_NETWORKS = ("host", "none")
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


@dataclass(frozen=True, slots=True)
class Limits:
    """The most bytes of private writable memory and the most open files, 0 for no limit of ours;
    whether the process has a network."""

    memory: int = 0
    files: int = 0
    network: bool = True


NO_LIMITS = Limits()


def parse_limits(config: ModelConfig) -> Limits:
    """The limits that a model's parameters ask for. Raises InvalidArgument for a value that is
    wrong."""
    memory, files, network = (config.parameters.get(key) for key in (MEMORY, FILES, NETWORK))
    return Limits(
        0 if memory is None else _memory(config.name, memory.string_value),
        0 if files is None else _files(config.name, files.string_value),
        network is None or _network(config.name, network.string_value),
    )


def refuse_limits(config: ModelConfig, limits: Limits) -> None:
    """Raise InvalidArgument where a model that runs in the server's process has limits."""
    if limits != NO_LIMITS:
        keys = [key for key in (MEMORY, FILES, NETWORK) if key in config.parameters]
        raise needs_process(config.name, keys)


def needs_process(model: str, keys: Sequence[str]) -> InvalidArgument:
    """The error of a model that runs in the server's process and has parameters that need a process
    of its own."""
    names = ", ".join(f"'{key}'" for key in keys)
    return InvalidArgument(
        f"parameter {names} of model '{model}' holds for a worker process, but its parameter "
        "'WORKER' is 'thread', which runs it in the server's; use 'process' or 'instance'"
    )


def _memory(model: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if not 0 < size <= _LARGEST:
        raise _wrong(
            model, MEMORY, "a number of bytes, also with a unit, like '800MiB' or '2.5 GiB'", text
        )
    return size


def _files(model: str, text: str) -> int:
    count = int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else 0
    if count < FEWEST_FILES:
        raise _wrong(model, FILES, f"a whole number from {FEWEST_FILES} on", text)
    return count


def _network(model: str, text: str) -> bool:
    if text not in _NETWORKS:
        raise _wrong(model, NETWORK, "'host' or 'none'", text)
    return text == "host"


def _wrong(model: str, key: str, right: str, text: str) -> InvalidArgument:
    return InvalidArgument(f"parameter '{key}' of model '{model}' must be {right}, got '{text}'")


def limits_to_json(limits: Limits) -> list[Any]:
    """Limits as plain data."""
    return [limits.memory, limits.files, limits.network]


def limits_from_json(document: Any) -> Limits:
    """The limits that `limits_to_json` described."""
    return Limits(*document)


def apply_limits(limits: Limits) -> str:
    """Hold this process to the limits; why that cannot be done, empty where it was. The process
    must not have started a thread yet."""
    if limits == NO_LIMITS:
        return ""
    if sys.platform != "linux":
        return "the limits of workers need Linux"
    return _limit_files(limits.files) or _take_network(limits) or _limit_memory(limits.memory)


def _limit_files(count: int) -> str:
    import resource  # noqa: PLC0415 - not on every system

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if not count:
        return ""
    if most != resource.RLIM_INFINITY and count > most:
        return f"parameter '{FILES}' is {count}, but the server itself may open no more than {most}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))
    return ""


def _limit_memory(size: int) -> str:
    """RLIMIT_DATA and not RLIMIT_AS, for what frameworks reserve or map from files and never write
    to is many times what they use. Shared memory is the server's."""
    import resource  # noqa: PLC0415 - not on every system

    if not size:
        return ""
    used = data_size(Path("/proc/self/status").read_text())
    if size <= used:
        return (
            f"parameter '{MEMORY}' is {size}, but a worker of this backend has {used} bytes before "
            "its model is loaded"
        )
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    return ""


def data_size(status: str) -> int:
    """Bytes of private writable memory, from the text of `/proc/<pid>/status`."""
    for line in status.splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0


def _take_network(limits: Limits) -> str:
    """An empty network of its own, without even a loopback interface. A process without the
    privilege for that gets it in a user namespace, in which nothing changes for files."""
    if limits.network:
        return ""
    ids = os.getuid(), os.getgid()
    if _unshare(_CLONE_NEWNET):
        return ""
    if not _unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        return (
            f"parameter '{NETWORK}' is 'none', but this system lets the server take the network "
            f"from no worker ({os.strerror(ctypes.get_errno())}): it must allow user namespaces, "
            "which containers often do not, or the server needs the capability CAP_SYS_ADMIN"
        )
    _keep_ids(*ids)
    return ""


def _unshare(flags: int) -> bool:
    return bool(ctypes.CDLL(None, use_errno=True).unshare(flags) == 0)


def _keep_ids(user: int, group: int) -> None:
    """Go by the same user and group in the new user namespace, where the system lets us: files are
    the same to the process even if not."""
    folder = Path("/proc/self")
    with contextlib.suppress(OSError):
        (folder / "setgroups").write_text("deny")  # else the group may not be mapped
        (folder / "gid_map").write_text(f"{group} {group} 1")
        (folder / "uid_map").write_text(f"{user} {user} 1")
