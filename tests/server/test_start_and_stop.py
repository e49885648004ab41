"""Starting and stopping: signals, exit codes, the log, and which models are loaded."""

import json
import os
import resource
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from server_harness import (
    COMMAND,
    PATIENCE,
    Answer,
    Gate,
    Running,
    ask,
    launch,
    write_python_model,
)

CONFIG = """
input { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] }
instance_group { kind: KIND_CPU count: 1 }
"""
BODY = """
def initialize(self, args):
    self.folder = os.path.dirname(os.path.dirname(__file__))
    if os.path.exists(self.folder + "/start"):
        open(self.folder + "/start").read()

def execute(self, requests):
    if os.path.exists(self.folder + "/gate"):
        open(self.folder + "/gate").read()
    return [answer(Y=read(r, "X")) for r in requests]
"""
SUMS = """
def initialize(self, args):
    self.sum = 0

def execute(self, requests):
    self.sum += sum(int(read(r, "X").sum()) for r in requests)
    return [answer(Y=np.array([[self.sum]], np.int32)) for r in requests]
"""
X = ("X", "INT32", [7])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_python_model(tmp_path / "models", "slow", CONFIG, BODY)
    return tmp_path / "models"


class InFlight:
    """A request that the model has begun and, behind it, one that waits."""

    def __init__(self, server: Running, gate: Gate, *, grpc: bool = False) -> None:
        self._ends: list[Answer | Exception] = []
        call = partial(self._ask, partial(over_grpc if grpc else over_http, server))
        self._threads = [threading.Thread(target=call) for _ in range(2)]
        self._threads[0].start()
        self._descriptor = gate.reached()
        self._threads[1].start()
        series = 'nv_inference_pending_request_count{model="slow",version="1"}'
        server.until(lambda: server.metrics()[series] > 0)
        assert self._threads[1].is_alive()
        gate.path.unlink()  # the second does not wait

    def _ask(self, send: Callable[[], Answer]) -> None:
        try:
            self._ends.append(send())
        except Exception as error:  # noqa: BLE001 - shown by the test
            self._ends.append(error)

    def release(self) -> None:
        """Let the model go on."""
        Gate.open(self._descriptor)

    def ends(self) -> list[Answer | Exception]:
        """What came of both: an answer, or the exception that the client met."""
        for thread in self._threads:
            thread.join(PATIENCE)
        assert len(self._ends) == 2
        return self._ends


def over_http(server: Running) -> Answer:
    """What the model answers to seven."""
    return server.infer("slow", X)


def over_grpc(server: Running) -> Answer:
    """The same over gRPC, in the form of the answer over HTTP."""
    client = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")
    tensor = client.InferInput("X", [1], "INT32")
    tensor.set_data_from_numpy(np.array([7], np.int32))
    with client.InferenceServerClient(server.grpc_url) as connection:
        numbers = connection.infer("slow", [tensor]).as_numpy("Y").tolist()
    return Answer(200, {}, json.dumps({"outputs": [{"data": numbers}]}).encode())


@contextmanager
def started(repository: Path, *flags: str, command: Path = COMMAND) -> Iterator[Running]:
    """A server of this test's own; killed where the test does not end it."""
    running = launch(repository, *flags, command=command)
    try:
        yield running.wait_started()
    finally:
        running.process.kill()
        running.wait_exit()


@pytest.mark.parametrize("grpc", [False, True], ids=["http", "grpc"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_answered_before_the_end(
    repository: Path, number: signal.Signals, grpc: bool
) -> None:
    gate = Gate(repository / "slow" / "gate")
    with started(repository) as server:
        waiting = InFlight(server, gate, grpc=grpc)
        server.signal(number)
        assert server.log.wait("stopping")["signal"] == number.name
        assert server.metrics()  # reachable to the end
        server.until(lambda: server.get("/v2/health/ready").status == 503)
        for path in ("ready", "live"):
            assert server.get(f"/v2/health/{path}").json == {"error": "Server exiting"}
        refused = server.infer("slow", X)
        assert (refused.status, "Server is stopping" in refused.error) == (503, True)
        waiting.release()
        assert server.wait_exit() == 0
    for found in waiting.ends():
        assert isinstance(found, Answer), found
        assert found.status == 200
        assert found.json["outputs"][0]["data"] == [7]
    assert server.log.lines[-1]["event"] == "stopped"


def test_sequences_that_have_begun_may_end_while_the_server_stops(repository: Path) -> None:
    write_python_model(repository, "sums", "max_batch_size: 1\nsequence_batching {}" + CONFIG, SUMS)

    def ask_for(number: int, **parameters: object) -> Answer:
        tensor = {"name": "X", "datatype": "INT32", "shape": [1, 1], "data": [number]}
        document = {"inputs": [tensor], "parameters": parameters}
        return server.post("/v2/models/sums/infer", json.dumps(document).encode())

    gate = Gate(repository / "slow" / "gate")
    with started(repository, "--model-control-mode=explicit", "--load-model=*") as server:
        assert ask_for(1, sequence_id=5, sequence_start=True).status == 200
        waiting = InFlight(server, gate)
        server.signal(signal.SIGTERM)
        server.until(lambda: server.get("/v2/health/ready").status == 503)
        assert ask_for(20, sequence_id=5).json["outputs"][0]["data"] == [21]
        refused = ask_for(1, sequence_id=6, sequence_start=True)
        assert (refused.status, "Server is stopping" in refused.error) == (503, True)
        refused = server.post("/v2/repository/models/slow/load")
        assert (refused.status, refused.error) == (503, "Server exiting")
        assert ask_for(300, sequence_id=5, sequence_end=True).json["outputs"][0]["data"] == [321]
        waiting.release()
        assert server.wait_exit() == 0
    waiting.ends()


def test_what_takes_longer_than_the_exit_timeout_is_cut_off(repository: Path) -> None:
    gate = Gate(repository / "slow" / "gate")
    with started(repository, "--exit-timeout-secs=1") as server:
        children = server.processes()
        waiting = InFlight(server, gate)
        server.signal(signal.SIGTERM)
        assert server.process.wait(1 + 10) == 1
        assert server.wait_exit() == 1
    for found in waiting.ends():
        assert isinstance(found, Answer), found
        assert found.status == 503
        assert "exit timeout has expired" in found.error
    psutil.wait_procs(children, PATIENCE)
    assert not any(child.is_running() for child in children)
    assert "Exit timeout expired. Exiting immediately." in server.log.text
    waiting.release()


def test_a_second_signal_ends_at_once(repository: Path) -> None:
    gate = Gate(repository / "slow" / "gate")
    with started(repository, "--exit-timeout-secs=3600") as server:
        waiting = InFlight(server, gate)
        server.signal(signal.SIGTERM)
        server.log.wait("stopping")
        server.signal(signal.SIGINT)
        assert server.wait_exit() == 1
        assert "second signal" in server.log.text
    assert all(isinstance(end, OSError) for end in waiting.ends())
    waiting.release()


def test_a_signal_while_loading_ends_cleanly(repository: Path) -> None:
    gate = Gate(repository / "slow" / "start")
    running = launch(repository)
    descriptor = gate.reached()
    children = running.processes()
    running.signal(signal.SIGTERM)
    assert running.wait_exit() == 0
    Gate.open(descriptor)
    assert children
    psutil.wait_procs(children, PATIENCE)
    assert not any(child.is_running() for child in children)
    assert running.log.lines[-1]["event"] == "stopped"
    assert not any(line["level"] == "error" for line in running.log.lines)


def test_idle_connections_do_not_delay_the_end(repository: Path) -> None:
    import http.client

    with started(repository, "--exit-timeout-secs=3600") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=PATIENCE)
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().read() == b""
        assert server.stop() == 0
        connection.close()


def test_health_before_and_after_loading(repository: Path) -> None:
    """Nothing listens before the models are loaded, so whoever is answered may ask for them."""
    gate = Gate(repository / "slow" / "start")
    running = launch(repository)
    try:
        descriptor = gate.reached()
        assert not any("Started" in line["event"] for line in running.log.lines)
        Gate.open(descriptor)
        running.wait_started()
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/slow/ready"):
            assert running.get(path).status == 200
    finally:
        assert running.stop() == 0


def test_every_line_of_the_log_is_json(repository: Path) -> None:
    with started(repository) as server:
        server.infer("slow", X)
        server.infer("absent", X)
        assert server.stop() == 0
    events = [line["event"] for line in server.log.lines]
    for line in map(json.loads, server.log.text.splitlines()):
        assert {"event", "level", "timestamp"} <= line.keys()
    order = ["model loaded", "models", "Started", "server started", "stopping", "stopped"]
    places = [next(i for i, e in enumerate(events) if e.startswith(word)) for word in order]
    assert places == sorted(places)
    loaded = server.log.lines[places[0]]
    assert (loaded["model"], loaded["version"]) == ("slow", 1)
    assert server.log.lines[places[1]]["table"] == [
        {"model": "slow", "version": "1", "state": "READY", "reason": ""}
    ]


def test_a_log_for_people(repository: Path) -> None:
    running = launch(repository, "--log-format=console")
    try:
        running.log.wait_text("server started")
    finally:
        assert running.stop() == 0
    text = running.log.text
    assert not any(line.startswith("{") for line in text.splitlines())
    assert "slow   1        READY" in text
    assert "Started HTTPService at 127.0.0.1:" in text
    assert "\x1b[" not in text  # no colours where no terminal is


def test_a_log_file_is_opened_again_at_sighup(repository: Path, tmp_path: Path) -> None:
    file, moved = tmp_path / "server.log", tmp_path / "server.log.1"
    running = launch(repository, f"--log-file={file}", "--http-port=0")
    try:
        running.until(lambda: file.exists() and "server started" in file.read_text())
        file.rename(moved)
        running.signal(signal.SIGHUP)
        running.until(lambda: file.exists() and "log file opened again" in file.read_text())
    finally:
        assert running.stop() == 0
    assert running.log.text == ""
    assert '"stopped"' in file.read_text()
    assert '"stopped"' not in moved.read_text()


SHOUTING = """
def execute(self, requests):
    pb_utils.Logger.log_warn("careful")
    return [answer(Y=read(r, "X")) for r in requests]
"""


def test_lines_of_a_model_name_its_requests(tmp_path: Path) -> None:
    write_python_model(tmp_path / "models", "slow", CONFIG, SHOUTING)
    with started(tmp_path / "models") as server:
        tensor = {"name": "X", "datatype": "INT32", "shape": [1], "data": [7]}
        document = {"id": "mine", "inputs": [tensor]}
        assert server.post("/v2/models/slow/infer", json.dumps(document).encode()).status == 200
        line = server.log.wait("careful")
    assert (line["model"], line["version"], line["request_ids"]) == ("slow", 1, ["mine"])


CHATTY = """
def execute(self, requests):
    pb_utils.Logger.log_verbose("in detail")
    return [answer(Y=read(r, "X")) for r in requests]
"""


def test_models_are_verbose_when_the_log_becomes_so(tmp_path: Path) -> None:
    write_python_model(tmp_path / "models", "slow", CONFIG, CHATTY)
    with started(tmp_path / "models") as server:
        assert server.infer("slow", X).status == 200
        assert server.post("/v2/logging", b'{"log_verbose_level": 1}').status == 200
        server.until(
            lambda: server.infer("slow", X).status == 200 and "in detail" in server.log.text
        )
        assert server.log.wait("in detail")["model"] == "slow"


def test_flags_without_effect_warn_once_each(repository: Path) -> None:
    flags = ["--http-thread-count=4", "--cache-directory=/caches", "--id=mine"]
    flags += ["--strict-model-config=true", "--backend-config=tensorflow,version=2"]
    with started(repository, *flags) as server:
        assert server.infer("slow", X).status == 200
        assert server.stop() == 0
    warnings = [line["event"] for line in server.log.lines if line["level"] == "warning"]
    assert warnings == [
        "--cache-directory has no effect: caches are plug-ins, which are installed with pip",
        "--strict-model-config is deprecated; write --disable-auto-complete-config",
        "--http-thread-count has no effect: one event loop serves every connection",
        "--backend-config tensorflow,version=2 has no effect: there is no backend 'tensorflow'",
    ]


def test_the_log_can_be_quieter(repository: Path) -> None:
    flags = ["--log-info=false", "--load-model=absent", "--model-control-mode=explicit"]
    running = launch(repository, *flags)
    assert running.wait_exit() == 1
    assert [line["level"] for line in running.log.lines] == ["error"]


def test_only_the_models_named_are_loaded(
    tmp_path: Path, start_server: Callable[..., Running]
) -> None:
    for name in ("one", "two", "three"):
        write_python_model(tmp_path / "models", name, CONFIG, BODY)
    flags = ["--model-control-mode=explicit", "--load-model=one", "--load-model", "three"]
    server = start_server(tmp_path / "models", *flags)
    assert server.index() == {"one": ("READY", ""), "three": ("READY", ""), "two": ("", "")}
    assert server.get("/v2/health/ready").status == 200
    found = server.infer("two", X)
    assert (found.status, found.error) == (
        404,
        "Request for unknown model: 'two' is not found",
    )


def test_explicit_mode_without_names_loads_nothing(
    repository: Path, start_server: Callable[..., Running]
) -> None:
    server = start_server(repository, "--model-control-mode=explicit")
    assert {state for state, _ in server.index().values()} == {""}
    assert server.get("/v2/health/ready").status == 200


def test_protocols_can_be_switched_off(repository: Path) -> None:
    flags = ["--allow-grpc=false", "--allow-metrics=false", "--id=mine"]
    with started(repository, *flags) as server:
        assert set(server.ports) == {"HTTPService"}
        assert server.get("/v2").json["name"] == "mine"
        assert ask(server.http, "GET", "/metrics").status == 404


def test_settings_come_from_a_file_and_flags_beat_it(repository: Path) -> None:
    file = repository.parent / "plugins.toml"
    file.write_text("[plugins.grpc]\nenabled = false\n[plugins.http]\nmax_input_size = 10\n")
    with started(repository) as server:
        assert set(server.ports) == {"HTTPService", "Metrics"}
        found = server.infer("slow", X)
        assert found.status == 400
        assert "Use --http-max-input-size to increase the limit." in found.error
    with started(repository, "--http-max-input-size=1000") as server:
        assert server.infer("slow", X).status == 200


def test_the_server_may_open_all_the_files_it_can_and_models_what_is_usual(
    repository: Path,
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= 512:
        pytest.skip("too few files are allowed")
    command = repository.parent / "microkernel"
    command.write_text(f'#!/bin/sh\nulimit -S -n 512\nexec {shlex.quote(str(COMMAND))} "$@"\n')
    command.chmod(0o755)
    with started(repository, command=command) as server:
        process = psutil.Process(server.process.pid)
        assert process.rlimit(psutil.RLIMIT_NOFILE) == (hard, hard)
        workers = [child.rlimit(psutil.RLIMIT_NOFILE) for child in process.children(True)]
        assert set(workers) == {(512, hard)}


def test_nothing_is_left_where_the_server_was_started(repository: Path) -> None:
    before = {path for path in repository.parent.rglob("*") if "__pycache__" not in path.parts}
    with started(repository) as server:
        assert server.infer("slow", X).status == 200
        assert server.stop() == 0
    after = {path for path in repository.parent.rglob("*") if "__pycache__" not in path.parts}
    assert after == before
    assert os.access(COMMAND, os.X_OK)
