"""The server as a user starts it: a subprocess on free ports of 127.0.0.1, its log read as it is
written, its worker processes watched to the end."""

import http.client
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

COMMAND = Path(sys.executable).with_name("microkernel")
ADDRESS = "127.0.0.1"
PATIENCE = 60.0
"""Seconds after which what a test waits for is given up; nothing is expected to take that long."""

_STARTED = re.compile(r"Started (\w+)(?: Service)? at 127\.0\.0\.1:(\d+)")

Record = Mapping[str, Any]


def _event(line: Record) -> str:
    return str(line.get("event", ""))


class Log:
    """The lines of a server, JSON objects, collected by a thread until every process that could
    write to the log has ended. A line that is not JSON is kept under `raw`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.lines: list[Record] = []
        self.text = ""
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._thread.start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                with self._changed:
                    self.text += line
                    self.lines.append(_parsed(line))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, *events: str, since: int = 0, count: int = 1) -> Record:
        """Wait for `count` lines from the `since`-th on whose event begins with one of `events`;
        the last of them. Fails with the log where the log ends before."""

        def found() -> list[Record]:
            return [line for line in self.lines[since:] if _event(line).startswith(events)]

        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(found()) >= count, PATIENCE)
        assert len(found()) >= count, f"no {count} lines {events} in\n{self.text}"
        return found()[count - 1]

    def wait_text(self, words: str) -> None:
        """Wait until `words` stand anywhere in the log, whatever its format."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or words in self.text, PATIENCE)
        assert words in self.text

    def finish(self) -> None:
        """Wait until nobody can write to the log any more."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), f"a process still holds the log:\n{self.text}"


def _parsed(line: str) -> Record:
    try:
        document = json.loads(line)
    except ValueError:
        return {"raw": line}
    return document if isinstance(document, dict) else {"raw": line}


@dataclass(frozen=True)
class Answer:
    """What came back over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as a document."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message of an error."""
        return str(self.json["error"])


def ask(
    port: int,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=PATIENCE)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, response.read())
    finally:
        connection.close()


@dataclass
class Running:
    """A server process and, once it serves, its ports."""

    process: "subprocess.Popen[str]"
    log: Log
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def http(self) -> int:
        """The port of HTTP."""
        return self.ports["HTTPService"]

    @property
    def http_url(self) -> str:
        """Where `tritonclient.http` connects."""
        return f"{ADDRESS}:{self.http}"

    @property
    def grpc_url(self) -> str:
        """Where `tritonclient.grpc` connects."""
        return f"{ADDRESS}:{self.ports['GRPCInferenceService']}"

    def wait_started(self) -> Self:
        """Wait until it serves; fails with the log where it ends instead."""
        self.log.wait("server started")
        for line in self.log.lines:
            if found := _STARTED.match(_event(line)):
                self.ports[found[1]] = int(found[2])
        return self

    def get(self, path: str) -> Answer:
        """GET over HTTP."""
        return ask(self.http, "GET", path)

    def post(self, path: str, body: bytes = b"", **headers: str) -> Answer:
        """POST over HTTP; underscores in the names of headers stand for dashes."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask(self.http, "POST", path, body, sent)

    def infer(self, model: str, *inputs: tuple[str, str, list[Any]], version: str = "") -> Answer:
        """An infer request in JSON: each input is a name, a data type and rows of data, which give
        the shape."""
        document = {"inputs": [_input(*entry) for entry in inputs]}
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
        return self.post(path, json.dumps(document).encode())

    def metrics(self) -> dict[str, float]:
        """The metrics page: series by name and labels."""
        page = ask(self.ports["Metrics"], "GET", "/metrics").body.decode()
        pairs = [line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def index(self) -> dict[str, tuple[str, str]]:
        """State and reason of every model of one version at most, by name."""
        entries = self.post("/v2/repository/index").json
        return {e["name"]: (e.get("state", ""), e.get("reason", "")) for e in entries}

    def processes(self) -> list[psutil.Process]:
        """The processes that the server has started, theirs included."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def until(self, reached: Callable[[], object]) -> None:
        """Wait until something comes to be of which no line of the log tells; fails with the log
        where it does not, or the server ends before."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert self.process.poll() is None, f"the server has ended:\n{self.log.text}"
            assert time.monotonic() < deadline, f"waited in vain:\n{self.log.text}"

    def unload(self, model: str) -> None:
        """Have a model unloaded, and wait until nothing of it is left."""
        assert self.post(f"/v2/repository/models/{model}/unload").status == 200
        self.until_unloaded()

    def until_unloaded(self) -> None:
        """Wait until nothing is left of what was unloaded or replaced."""
        self.until(lambda: not self._unloading())

    def _unloading(self) -> bool:
        return any(e.get("state") == "UNLOADING" for e in self.post("/v2/repository/index").json)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server."""
        self.process.send_signal(number)

    def wait_exit(self) -> int:
        """The exit code, once the server and all it started have ended; fails where it does not
        end by itself."""
        try:
            code = self.process.wait(PATIENCE)
        finally:
            self.process.kill()
        self.log.finish()
        return code

    def stop(self) -> int:
        """Stop the server by SIGTERM if it still runs: its exit code. Fails where a process that
        it started outlives it."""
        children: list[psutil.Process] = []
        if self.process.poll() is None:
            children = self.processes()
            self.signal(signal.SIGTERM)
        code = self.wait_exit()
        _, alive = psutil.wait_procs(children, PATIENCE)
        assert alive == []
        return code


def _input(name: str, datatype: str, rows: list[Any]) -> dict[str, Any]:
    shape: list[int] = []
    level: Any = rows
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
    return {"name": name, "datatype": datatype, "shape": shape, "data": rows}


def launch(
    repositories: Path | Sequence[Path],
    *flags: str,
    environment: Mapping[str, str] | None = None,
    command: Path = COMMAND,
) -> Running:
    """Start `microkernel run` in the folder of the first repository; returns at once. Flags beat
    those given here: free ports of 127.0.0.1 and a log of JSON lines."""
    paths = [repositories] if isinstance(repositories, Path) else repositories
    arguments = [f"--model-repository={path}" for path in paths]
    arguments += [f"--{name}-address={ADDRESS}" for name in ("http", "grpc")]
    arguments += [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    process = subprocess.Popen(
        [str(command), "run", *arguments, "--log-format=json", *flags],
        cwd=paths[0].parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    return Running(process, Log(process))


@pytest.fixture(scope="module")
def start_server() -> Iterator[Callable[..., Running]]:
    """`start_server(repositories, *flags)`: a server that serves; see `launch`. Those that still
    run at the end of the module are stopped, which must leave no process."""
    started: list[Running] = []

    def start(*arguments: Any, **options: Any) -> Running:
        running = launch(*arguments, **options)
        started.append(running)
        return running.wait_started()

    yield start
    for running in started:
        running.stop()


def write_python_model(repository: Path, name: str, config: str, body: str) -> Path:
    """A Python model: its configuration, and the methods of its class. numpy is `np`; returns the
    model's directory."""
    folder = repository / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    if config:
        (folder / "config.pbtxt").write_text(f'backend: "python"\n{config}')
    source = (
        "import os, sys, time\n"
        "import numpy as np\n"
        "import triton_python_backend_utils as pb_utils\n\n\n"
        "def read(request, name):\n"
        "    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()\n\n\n"
        "def answer(**outputs):\n"
        "    tensors = [pb_utils.Tensor(name, array) for name, array in outputs.items()]\n"
        "    return pb_utils.InferenceResponse(tensors)\n\n\n"
        "class TritonPythonModel:\n"
    )
    lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
    (folder / "1" / "model.py").write_text(source + lines)
    return folder


class Gate:
    """A place where a model waits until the test lets it go on: a FIFO that both open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    def reached(self) -> int:
        """Wait until the model is there; the descriptor to pass to `open`."""
        return os.open(self.path, os.O_WRONLY)

    def shut(self) -> int:
        """Have the model wait whenever it comes, and wait for nobody; the descriptor to pass to
        `open`."""
        return os.open(self.path, os.O_RDWR)  # which Linux opens at once

    @staticmethod
    def open(descriptor: int) -> None:
        """Let the model go on."""
        os.close(descriptor)


def in_threads(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Make calls at the same time, each on a thread of its own, released together; their results
    in order, an exception in place of the result of a call that raised."""
    gate = threading.Barrier(len(calls))
    results: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def run(index: int, call: Callable[[], Any]) -> None:
        gate.wait(PATIENCE)
        try:
            results.put((index, call()))
        except Exception as error:  # noqa: BLE001 - handed to the test
            results.put((index, error))

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = dict(results.get() for _ in calls)
    return [found[index] for index in range(len(calls))]
