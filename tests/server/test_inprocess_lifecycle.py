"""Starting and stopping an in-process server, and what is left of it."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import structlog
from inprocess_models import own_log, write_echo, write_gated
from server_harness import PATIENCE, Gate, in_threads

import microkernel
import microkernel.inprocess as tritonserver
from microkernel.inprocess import ModelControlMode, Server

NUMBER = {"X": np.array([7], np.int32)}


@pytest.fixture(autouse=True)
def the_log_of_the_tests() -> Iterator[None]:
    """What a server sets up is taken back."""
    with own_log():
        yield


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_gated(tmp_path / "models")
    return tmp_path / "models"


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def still_there(pids: Iterable[int]) -> list[psutil.Process]:
    """Those processes that there are."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "microkernel" in thread.name}


def test_the_front_door_has_the_server() -> None:
    assert microkernel.Server is Server
    assert microkernel.Options is tritonserver.Options


def test_before_the_start_and_after_the_end(repository: Path) -> None:
    before = children()
    server = Server(model_repository=repository)
    for _ in range(2):
        for call in (server.live, server.ready, server.models, server.metrics):
            with pytest.raises(tritonserver.InvalidArgumentError, match="Server not started"):
                call()
        server.stop()
        with server.start(wait_until_ready=True) as running:
            assert running is server
            assert children() - before
            assert next(server.model("gated").infer(inputs=NUMBER)).final
            with pytest.raises(tritonserver.InvalidArgumentError, match="already started"):
                server.start()
        assert children() == before
        assert threads() == set()


async def test_the_asynchronous_forms(repository: Path) -> None:
    before = children()
    options = tritonserver.Options(
        model_repository=repository, model_control_mode=ModelControlMode.EXPLICIT
    )
    async with Server(options) as server:
        model = await server.async_load("gated")
        responses = [r async for r in model.async_infer(inputs=NUMBER)]
        assert np.asarray(responses[0].outputs["Y"]).tolist() == [7]
        await server.async_unload(model, wait_until_unloaded=True, timeout=PATIENCE)
        assert not model.ready()
    assert children() == before
    with pytest.raises(tritonserver.InvalidArgumentError):
        server.ready()


def test_two_servers_beside_each_other(repository: Path, tmp_path: Path) -> None:
    write_echo(tmp_path / "others")
    with (
        Server(model_repository=repository, server_id="one") as one,
        Server(model_repository=tmp_path / "others", server_id="two") as two,
    ):
        assert [s.metadata()["name"] for s in (one, two)] == ["one", "two"]
        assert {name for name, _ in one.models()} == {"gated"}
        assert {name for name, _ in two.models()} == {"echo"}
        one.stop()
        assert two.ready()


def test_polling_by_a_call(repository: Path) -> None:
    with Server(model_repository=repository, model_control_mode=ModelControlMode.POLL) as server:
        write_echo(repository)
        assert not server.model("echo").ready()
        server.poll_model_repository()
        assert server.model("echo").ready()
        shutil.rmtree(repository / "gated")
        server.poll_model_repository()
        assert not server.model("gated").ready()
        assert server.model("echo").ready()


def test_loading_and_unloading(repository: Path, tmp_path: Path) -> None:
    with Server(
        model_repository=repository, model_control_mode=ModelControlMode.EXPLICIT
    ) as server:
        assert server.models(exclude_not_ready=True) == {}
        model = server.load("gated")
        assert model.ready()
        server.unload(model, wait_until_unloaded=True, timeout=PATIENCE)
        assert not model.ready()
        assert server.models()["gated", 1].reason == "unloaded"
        config: dict[str, Any] = {"backend": "python", "max_batch_size": 4}
        config["input"] = [{"name": "X", "data_type": "TYPE_INT32", "dims": [1]}]
        config["output"] = [{"name": "Y", "data_type": "TYPE_INT32", "dims": [1]}]
        source = (repository / "gated" / "1" / "model.py").read_bytes()
        server.load("brought", {"config": json.dumps(config), "file:1/model.py": source})
        assert server.model("brought").config()["max_batch_size"] == 4
        with pytest.raises(tritonserver.InternalError, match="failed to load 'absent'"):
            server.load("absent")
        with pytest.raises(tritonserver.InvalidArgumentError, match="load parameter 'colour'"):
            server.load("gated", {"colour": "blue"})


def test_registering_a_repository(repository: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    write_echo(others)
    with Server(
        model_repository=repository, model_control_mode=ModelControlMode.EXPLICIT
    ) as server:
        with pytest.raises(tritonserver.InternalError, match="failed to load 'echo'"):
            server.load("echo")
        server.register_model_repository(others)
        assert server.load("echo").ready()
        with pytest.raises(tritonserver.AlreadyExistsError, match="already been registered"):
            server.register_model_repository(f"{tmp_path}/models/../others")
        with pytest.raises(tritonserver.InvalidArgumentError, match="absent"):
            server.register_model_repository(tmp_path / "absent")
        with pytest.raises(tritonserver.UnsupportedError, match="name_mapping"):
            server.register_model_repository(others, {"echo": "other"})
        server.unregister_model_repository(others)
        assert server.model("echo").ready()
        with pytest.raises(tritonserver.NotFoundError, match="repository not found"):
            server.unregister_model_repository(others)
        with pytest.raises(tritonserver.InternalError, match="failed to load 'echo'"):
            server.load("echo")


def test_metrics_need_a_server(repository: Path) -> None:
    declare = (tritonserver.MetricKind.COUNTER, "asked", "How often.")
    with pytest.raises(tritonserver.InvalidArgumentError, match="none runs; start one first"):
        tritonserver.MetricFamily(*declare)
    with Server(model_repository=repository):
        metric = tritonserver.Metric(tritonserver.MetricFamily(*declare))
        metric.increment(1)
    with pytest.raises(tritonserver.UnavailableError, match="the server has stopped"):
        metric.increment(1)


def test_waiting_for_a_model_to_be_unloaded_has_a_limit(repository: Path) -> None:
    gate = Gate(repository / "gated" / "gate")
    with Server(
        model_repository=repository, model_control_mode=ModelControlMode.EXPLICIT
    ) as server:
        model = server.load("gated")
        running = model.infer(inputs={"X": np.array([1], np.int32)})
        descriptor = gate.reached()
        with pytest.raises(tritonserver.UnavailableError, match="'gated' is not unloaded"):
            server.unload("gated", wait_until_unloaded=True, timeout=0)
        gate.open(descriptor)
        assert len(list(running)) == 1
        server.unload("gated", wait_until_unloaded=True, timeout=PATIENCE)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("{", "InternalError", "failed to load all models: gated"),
        (None, "InvalidArgumentError", "absent"),
    ],
)
def test_a_start_that_fails_leaves_nothing(
    repository: Path, change: str | None, error: str, words: str
) -> None:
    before = children()
    if change is not None:
        (repository / "gated" / "config.pbtxt").write_text(change)
    path = repository if change is not None else repository / "absent"
    server = Server(model_repository=path)
    with pytest.raises(getattr(tritonserver, error), match=words):
        server.start()
    assert (children(), threads()) == (before, set())
    with pytest.raises(tritonserver.InvalidArgumentError, match="not started"):
        server.ready()


@pytest.mark.slow
def test_a_start_that_takes_too_long(repository: Path) -> None:
    before = children()
    gate = Gate(repository / "gated" / "start")
    server = Server(model_repository=repository)
    ends: list[Any] = []

    def start() -> None:
        try:
            server.start(timeout=5)
        except tritonserver.UnavailableError as error:
            ends.append(str(error))

    descriptor = gate.shut()
    thread = threading.Thread(target=start)
    thread.start()
    thread.join(PATIENCE)
    assert ends == ["the server was not ready after 5 seconds"]
    gate.open(descriptor)
    assert (children(), threads()) == (before, set())


def test_what_was_accepted_is_answered_before_the_end(repository: Path) -> None:
    gate = Gate(repository / "gated" / "gate")
    server = Server(model_repository=repository).start()
    running = server.model("gated").infer(inputs={"X": np.array([1], np.int32)})
    waiting = server.model("gated").infer(inputs=NUMBER)
    descriptor = gate.reached()
    stopping = [threading.Thread(target=server.stop) for _ in range(2)]
    for thread in stopping:
        thread.start()
    gate.open(descriptor)
    assert [np.asarray(r.outputs["Y"]).tolist() for r in running] == [[1]]
    assert [np.asarray(r.outputs["Y"]).tolist() for r in waiting] == [[7]]
    for thread in stopping:
        thread.join(PATIENCE)
    assert threads() == set()


def test_what_takes_longer_than_the_exit_timeout_is_cut_off(repository: Path) -> None:
    gate = Gate(repository / "gated" / "gate")
    server = Server(model_repository=repository, exit_timeout=0).start()
    running = server.model("gated").infer(inputs={"X": np.array([1], np.int32)})
    descriptor = gate.reached()
    server.stop()
    with pytest.raises(tritonserver.UnavailableError, match="exit timeout has expired"):
        next(running)
    gate.open(descriptor)
    assert threads() == set()


def test_outputs_outlive_the_server(tmp_path: Path) -> None:
    write_echo(tmp_path / "models")
    given = np.arange(50_000, dtype=np.float32).reshape(1, -1)
    with Server(model_repository=tmp_path / "models") as server:
        [response] = server.model("echo").infer(inputs={"X": given})
    found = np.from_dlpack(response.outputs["Y"])
    assert np.array_equal(found, given)
    del response, found


def test_a_server_that_is_dropped_stops(repository: Path) -> None:
    before = children()
    model = Server(model_repository=repository).start().model("gated")
    assert next(model.infer(inputs=NUMBER)).final  # the model keeps its server
    workers = children() - before
    assert workers
    del model
    _, alive = psutil.wait_procs(still_there(workers), PATIENCE)
    assert alive == []
    for thread in threading.enumerate():
        if "microkernel" in thread.name:
            thread.join(PATIENCE)


SCRIPT = """
import os, sys
import numpy as np, psutil
import microkernel.inprocess as tritonserver

server = tritonserver.Server(model_repository=sys.argv[1]).start(wait_until_ready=True)
[response] = server.model("gated").infer(inputs={"X": np.array([7], np.int32)})
print(np.from_dlpack(response.outputs["Y"])[0])
print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
"""


@pytest.mark.parametrize(
    ("end", "code"), [("", 0), ("raise SystemExit(4)", 4), ("os._exit(5)", 5), ("1 / 0", 1)]
)
def test_a_program_that_ends_without_stopping(repository: Path, end: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT) + end, str(repository)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == code, done.stderr
    number, pids = done.stdout.splitlines()
    assert number == "7"
    assert pids
    left = still_there(map(int, pids.split()))
    _, alive = psutil.wait_procs(left, 0 if end != "os._exit(5)" else PATIENCE)
    assert alive == []
    assert done.stderr == "" or "1 / 0" in end


def test_a_fork_does_not_use_its_parents_server(repository: Path) -> None:
    with Server(model_repository=repository) as server:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                server.ready()
            except tritonserver.UnavailableError as error:
                os.write(write, str(error).encode())
            server.stop()
            os._exit(0)
        os.close(write)
        assert os.read(read, 1000).decode().startswith("the server runs in process")
        os.close(read)
        os.waitpid(pid, 0)
        assert server.ready()


def test_calls_that_cross_the_end(repository: Path) -> None:
    """Every call ends, with an answer or an error, whatever moment the server stops at."""
    server = Server(model_repository=repository).start()
    begun = threading.Barrier(4, timeout=PATIENCE)

    def ask() -> str:
        begun.wait()
        while True:
            try:
                list(server.model("gated").infer(inputs=NUMBER))
            except tritonserver.TritonError as error:
                return type(error).__name__

    def stop() -> str:
        begun.wait()
        server.stop()
        return "stopped"

    ends = in_threads([ask, ask, ask, stop])
    assert ends[3] == "stopped"
    assert set(ends[:3]) <= {"Unavailable", "InvalidArgument", "NotFound"}


def test_the_log_goes_to_a_file(repository: Path, tmp_path: Path, capfd: Any) -> None:
    structlog.reset_defaults()  # as in a program that has not set it up
    file = tmp_path / "server.log"
    with Server(model_repository=repository, log_info=True, log_file=file):
        pass
    events = [json.loads(line)["event"] for line in file.read_text().splitlines()]
    assert "model loaded" in events
    assert events[-1] == "stopped"
    with pytest.raises(tritonserver.InvalidArgumentError, match="log_file: cannot write"):
        Server(model_repository=repository, log_file=tmp_path / "no" / "log").start()
    with Server(model_repository=repository):
        pass
    assert capfd.readouterr() == ("", "")


def test_a_program_keeps_its_own_log(repository: Path) -> None:
    lines: list[str] = []

    def keep(_logger: Any, _method: str, event: Any) -> Any:
        lines.append(event["event"])
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    with Server(model_repository=repository, log_info=True):
        pass
    assert "model loaded" in lines


async def test_the_event_loop_of_the_caller_is_not_blocked(repository: Path) -> None:
    gate = Gate(repository / "gated" / "start")
    server = Server(model_repository=repository)
    starting = asyncio.create_task(server.async_start())
    descriptor = await asyncio.to_thread(gate.reached)
    assert not starting.done()
    gate.open(descriptor)
    assert await starting is server
    await server.async_stop()
