"""A worker that dies takes only the batch it was running with it; a server that dies leaves
nothing."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from server_harness import PATIENCE, Answer, Gate, Running, in_threads, write_python_model

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

CONFIG = """
input { name: "CODE" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "PID" data_type: TYPE_INT32 dims: [ 1 ] }
instance_group { kind: KIND_CPU count: %d }
"""
BODY = """
def initialize(self, args):
    self.folder = os.path.dirname(os.path.dirname(__file__))
    if os.path.exists(self.folder + "/start"):
        open(self.folder + "/start").read()

def execute(self, requests):
    import ctypes
    [request] = requests
    code = int(read(request, "CODE")[0])
    if code == self.EXIT:
        os._exit(3)
    if code == self.SEGMENT:
        ctypes.string_at(0)
    if code == self.WAIT:
        open(self.folder + "/gate").read()
    return [answer(PID=np.array([os.getpid()], np.int32))]
"""
PID, EXIT, SEGMENT, WAIT = range(4)
SHARED = Path("/dev/shm")


def write_crasher(repository: Path, name: str, instances: int = 1) -> Path:
    """A model that answers with the pid of its worker, or dies or waits on request."""
    codes = f"EXIT, SEGMENT, WAIT = {EXIT}, {SEGMENT}, {WAIT}\n"
    return write_python_model(repository, name, CONFIG % instances, codes + BODY)


def write_neighbours(repository: Path) -> None:
    """A TorchScript and an ONNX model: y = 2 x + 1."""
    onnx = pytest.importorskip("onnx", reason="onnx, of the group 'dev', is missing")
    torch = pytest.importorskip("torch", reason="the extra 'torchscript' is missing")
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is missing")
    for name, config in (
        ("scripted", 'platform: "pytorch_libtorch"'),
        ("graph", 'backend: "onnxruntime"'),
    ):
        (repository / name / "1").mkdir(parents=True)
        tensors = (
            'input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }\n'
            'output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }\n'
        )
        text = f"{config}\nmax_batch_size: 8\n{tensors}dynamic_batching {{ }}\n"
        (repository / name / "config.pbtxt").write_text(text)
    layer = torch.nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.copy_(2 * torch.eye(4))
        layer.bias.fill_(1)
    torch.jit.trace(layer, torch.zeros(1, 4)).save(repository / "scripted" / "1" / "model.pt")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    made = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["twice"]),
            helper.make_node("Add", ["twice", "one"], ["y"]),
        ],
        "neighbour",
        [helper.make_tensor_value_info("x", kind, ["N", 4])],
        [helper.make_tensor_value_info("y", kind, ["N", 4])],
        [onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, repository / "graph" / "1" / "model.onnx")


class Load:
    """Neighbours under load: a thread for each asks without a pause and checks what it gets."""

    def __init__(self, calls: dict[str, Callable[[], bool]]) -> None:
        self.good = dict.fromkeys(calls, 0)
        self.bad: list[str] = []
        self.calls = calls
        self._changed = threading.Condition()
        self._over = False

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """The load, while the block lasts."""
        threads = [threading.Thread(target=self._ask, args=pair) for pair in self.calls.items()]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over = True
            for thread in threads:
                thread.join()

    def _ask(self, name: str, call: Callable[[], bool]) -> None:
        while not self._over:
            try:
                right = call()
            except Exception as error:  # noqa: BLE001 - shown by the test
                self.bad.append(f"{name}: {error!r}")
                return
            with self._changed:
                self.good[name] += right
                if not right:
                    self.bad.append(f"{name}: wrong answer")
                self._changed.notify_all()

    def go_on(self, requests: int = 20) -> None:
        """Wait until every neighbour has answered so many more requests."""
        with self._changed:
            goals = {name: count + requests for name, count in self.good.items()}
            assert self._changed.wait_for(
                lambda: self.bad or all(self.good[name] >= n for name, n in goals.items()), PATIENCE
            )
        assert self.bad == []


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("crashes") / "models"
    write_crasher(repository, "single")
    write_crasher(repository, "pair", instances=2)
    write_crasher(repository, "bystander")
    limited = write_crasher(repository, "limited") / "config.pbtxt"
    limit = 'parameters { key: "EXECUTION_TIMEOUT_SECS" value { string_value: "2" } }'
    limited.write_text(limited.read_text() + limit)
    write_neighbours(repository)
    return repository


@pytest.fixture(scope="module")
def server(repository: Path, start_server: Callable[..., Running]) -> Running:
    return start_server(repository)


def ask(server: Running, model: str, code: int) -> Answer:
    return server.infer(model, ("CODE", "INT32", [code]))


def pid_of(found: Answer) -> int:
    assert found.status == 200, found.body
    return int(found.json["outputs"][0]["data"][0])


def neighbours(server: Running) -> Load:
    """TorchScript, ONNX and another Python model, asked without a pause."""

    def line(model: str) -> bool:
        found = server.infer(model, ("x", "FP32", [[1, 2, 3, 4]]))
        return bool(found.json["outputs"][0]["data"] == [3, 5, 7, 9])

    own = pid_of(ask(server, "bystander", PID))
    calls: dict[str, Callable[[], bool]] = {
        name: partial(line, name) for name in ("scripted", "graph")
    }
    calls["bystander"] = lambda: pid_of(ask(server, "bystander", PID)) == own
    return Load(calls)


def kill_worker(server: Running, model: str, gate: Gate) -> Answer:
    """Have the model wait in the middle of a batch, then kill its worker from outside."""
    pid = pid_of(ask(server, model, PID))

    def from_outside() -> None:
        descriptor = gate.reached()
        os.kill(pid, signal.SIGKILL)
        gate.open(descriptor)

    found, _ = in_threads([partial(ask, server, model, WAIT), from_outside])
    assert isinstance(found, Answer)
    return found


@pytest.fixture
def gate(repository: Path) -> Iterator[Gate]:
    """Where `single` waits during an execution."""
    gate = Gate(repository / "single" / "gate")
    yield gate
    gate.path.unlink()


@pytest.fixture
def start_gate(repository: Path) -> Iterator[Gate]:
    """Where a new worker of `single` waits before it is ready."""
    gate = Gate(repository / "single" / "start")
    yield gate
    gate.path.unlink()


@pytest.mark.parametrize(
    ("death", "cause"),
    [
        (EXIT, "exit code 3"),
        (SEGMENT, "killed by signal SIGSEGV"),
        (WAIT, "killed by signal SIGKILL"),
    ],
)
def test_only_the_batch_of_a_dead_worker_fails(
    server: Running, gate: Gate, start_gate: Gate, death: int, cause: str
) -> None:
    since = len(server.log.lines)
    with neighbours(server).running() as load:
        load.go_on()
        failed = killed(server, gate, death)
        load.go_on()
        assert_not_ready(server)
        # A request that names a model without an instance is refused, not left waiting.
        refused = ask(server, "single", PID)
        assert refused.status == 503
        start_gate.open(start_gate.reached())
        server.log.wait("worker restarted", since=since)
        load.go_on()
    assert failed.status == 503
    assert failed.error == (
        f"the worker process of model 'single' (instances: 'single_0_0') ended: {cause}"
    )
    assert "Request for unknown model: 'single' version 1 is not at ready state" in refused.error
    assert load.bad == []
    assert pid_of(ask(server, "single", PID)) > 0
    assert server.get("/v2/health/ready").status == 200
    assert server.index()["single"] == ("READY", "")


def killed(server: Running, gate: Gate, death: int) -> Answer:
    """The answer to the batch during which the worker died."""
    return kill_worker(server, "single", gate) if death == WAIT else ask(server, "single", death)


def assert_not_ready(server: Running) -> None:
    assert server.get("/v2/models/single/ready").status == 400
    assert server.get("/v2/health/ready").status == 400
    assert server.get("/v2/health/live").status == 200
    assert server.index()["single"] == ("UNAVAILABLE", "no instance is alive")
    assert server.get("/v2/models/pair/ready").status == 200


def test_requests_that_wait_for_a_dead_worker_are_served_by_the_next(
    server: Running, gate: Gate
) -> None:
    """Behind the batch that dies another request waits; it is answered by the new worker."""
    since = len(server.log.lines)
    old = pid_of(ask(server, "single", PID))
    pending = 'nv_inference_pending_request_count{model="single",version="1"}'

    def from_outside() -> None:
        descriptor = gate.reached()
        [second] = in_threads([partial(queue_and_kill, descriptor)])
        assert pid_of(second) != old

    def queue_and_kill(descriptor: int) -> Answer:
        waiting: list[Any] = []
        thread = threading.Thread(target=lambda: waiting.append(ask(server, "single", PID)))
        thread.start()
        server.until(lambda: server.metrics()[pending] > 0)
        assert thread.is_alive()
        os.kill(old, signal.SIGKILL)
        gate.open(descriptor)
        thread.join()
        assert isinstance(waiting[0], Answer)
        return waiting[0]

    first, error = in_threads([partial(ask, server, "single", WAIT), from_outside])
    assert error is None
    assert first.status == 503
    server.log.wait("worker restarted", since=since)


def test_an_execution_that_hangs_is_ended(server: Running, repository: Path) -> None:
    since = len(server.log.lines)
    gate = Gate(repository / "limited" / "gate")  # which nobody opens
    failed = ask(server, "limited", WAIT)
    gate.path.unlink()
    assert failed.status == 503
    assert failed.error == (
        "the worker process of model 'limited' (instances: 'limited_0_0') ended: "
        "an execution took longer than 2 seconds"
    )
    server.log.wait("worker restarted", since=since)
    assert ask(server, "limited", PID).status == 200


def test_a_model_is_ready_while_one_of_its_instances_lives(
    server: Running, repository: Path
) -> None:
    since = len(server.log.lines)
    start = Gate(repository / "pair" / "start")
    try:
        failed = ask(server, "pair", EXIT)
        assert failed.status == 503
        assert "'pair_0_" in failed.error
        assert server.get("/v2/models/pair/ready").status == 200
        assert server.get("/v2/health/ready").status == 200
        pids = {pid_of(ask(server, "pair", PID)) for _ in range(5)}
        assert len(pids) == 1
        start.open(start.reached())
    finally:
        start.path.unlink()
    server.log.wait("worker restarted", since=since)


def test_the_end_of_a_fork_server_is_survived(server: Running) -> None:
    """Its workers end with it, and a new one starts them again; those of others go on."""
    since = len(server.log.lines)
    load = neighbours(server)
    parent = psutil.Process(pid_of(ask(server, "bystander", PID))).parent()
    assert parent is not None
    assert parent.pid != server.process.pid
    lost = parent.children()
    with Load({n: c for n, c in load.calls.items() if n != "bystander"}).running() as others:
        others.go_on()
        parent.kill()
        server.log.wait("worker restarted", since=since, count=len(lost))
        others.go_on()
    for model in ("single", "pair", "bystander"):
        assert pid_of(ask(server, model, PID)) not in [process.pid for process in lost]
    assert server.get("/v2/health/ready").status == 200


def memory_files(pid: int) -> set[int]:
    """The inodes of the memory files that a process holds open."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(entry.readlink()).startswith("/memfd:microkernel"):
                found.add(entry.stat().st_ino)
        except OSError:
            continue  # closed while we looked
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_killed_server_leaves_nothing(
    tmp_path: Path, start_server: Callable[..., Running]
) -> None:
    shared = set(SHARED.iterdir())
    write_crasher(tmp_path / "models", "single", instances=2)
    gate = Gate(tmp_path / "models" / "single" / "gate")
    write_neighbours(tmp_path / "models")
    server = start_server(tmp_path / "models")
    assert server.infer("graph", ("x", "FP32", [[1, 2, 3, 4]])).status == 200
    children = server.processes()
    assert len(children) >= 5  # workers and those that fork them
    thread = threading.Thread(target=in_threads, args=([partial(ask, server, "single", WAIT)],))
    thread.start()
    descriptor = gate.reached()  # one dies in the middle of a batch, the other idle
    owned = memory_files(server.process.pid)
    assert owned
    server.signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, PATIENCE)
    gate.open(descriptor)
    thread.join()
    assert alive == []
    assert server.wait_exit() == -signal.SIGKILL
    for process in psutil.process_iter():
        try:
            assert not memory_files(process.pid) & owned, process
        except OSError:
            continue  # another's, or gone
    assert set(SHARED.iterdir()) <= shared
