"""How is the server started, and what do its processes use? As a user starts it, with the command
that pip installs."""

import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

READY_LIMIT = 120.0
POLL = 0.002
PROGRAM = Path(sys.executable).parent / "microkernel"


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process holds, in bytes: resident, its proportional share, and private."""

    resident: int
    proportional: int
    private: int


class RunningServer:
    """A server with the models of one repository; a context manager that stops it at the end.

    `seconds` is the time from its start to the first answer that it is ready.
    """

    def __init__(self, repository: Path, *others: str) -> None:
        """`others` are flags beside those that every server here gets."""
        http_port, grpc_port, metrics_port = free_ports(3)
        self.ports = {"http": http_port, "grpc": grpc_port}
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        flags = {
            "--model-repository": str(repository),
            "--http-address": "127.0.0.1",
            "--http-port": str(http_port),
            "--grpc-address": "127.0.0.1",
            "--grpc-port": str(grpc_port),
            "--metrics-port": str(metrics_port),
        }
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [PROGRAM, "run", *(word for pair in flags.items() for word in pair), *others],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,  # Ctrl-C is for the runner, which stops the server
        )
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            self.log.close()
            raise
        self.seconds = time.perf_counter() - began
        self._tree = psutil.Process(self._process.pid)

    def _wait_ready(self) -> None:
        until = time.monotonic() + READY_LIMIT
        while not _ready(self.ports["http"]):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not become ready:\n{self._said()}")
            time.sleep(POLL)

    def _said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.log.close()

    def stop(self) -> None:
        """Stop the server the polite way, and by force where that takes long."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cpu(self) -> float:
        """Processor seconds, user and system, that all processes of the server have used."""
        return sum(cpu_of(p) for p in (self._tree, *self._tree.children(recursive=True)))

    def memory(self) -> Memory:
        """What the server process itself holds."""
        return memory_of(self._tree.pid)

    def workers(self) -> Iterator[int]:
        """The pids of the worker processes: the children of fork servers."""
        for fork_server in self._tree.children():
            yield from (worker.pid for worker in fork_server.children())

    def processes(self) -> Iterator[int]:
        """The pids of all processes: the server and what it has started."""
        yield from (process.pid for process in (self._tree, *self._tree.children(recursive=True)))

    def wait_workers(self, count: int) -> None:
        """Wait until there are no more worker processes than that."""
        while sum(1 for _ in self.workers()) > count:
            time.sleep(POLL)


def cpu_of(process: psutil.Process) -> float:
    """Processor seconds, user and system, of one process; 0 for one that is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def memory_of(pid: int) -> Memory:
    """The sums that Linux keeps of a process's mappings."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        sizes[name] = int(value.split()[0]) * 1024
    return Memory(sizes["Rss"], sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"])


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
