"""Instances of a running server: warmed up, taking turns, bound to processors, passive."""

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from identity_models import write_identity
from server_harness import Gate, Running, in_threads, launch, write_python_model

TENSORS = """
max_batch_size: 4
input { name: "X" data_type: TYPE_INT32 dims: [ 2 ] }
output { name: "Y" data_type: TYPE_INT32 dims: [ 2 ] }
"""
ECHO = """
def execute(self, requests):
    seen = os.path.dirname(os.path.dirname(__file__)) + "/__pycache__"
    os.makedirs(seen, exist_ok=True)
    with open(seen + "/seen", "a") as file:
        file.write(repr([read(r, "X").tolist() for r in requests]) + "\\n")
    if any((read(r, "X") == 66).any() for r in requests):
        raise ValueError("not this number")
    return [answer(Y=read(r, "X")) for r in requests]
"""
X = ("X", "INT32", [[1, 2]])
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")

Start = Callable[..., Running]


def warmup(name: str, data: str, size: int = 1, count: int = 1) -> str:
    return (
        f'model_warmup {{ name: "{name}" batch_size: {size} count: {count} inputs {{ key: "X" '
        f"value {{ data_type: TYPE_INT32 dims: [ 2 ] {data} }} }} }}\n"
    )


def seen(folder: Path) -> list[Any]:
    """The batches that a model has executed."""
    lines = (folder / "__pycache__" / "seen").read_text().splitlines()
    return [json.loads(line) for line in lines]


def write_file(folder: Path, *numbers: int) -> None:
    (folder / "warmup").mkdir(exist_ok=True)
    data = b"".join(number.to_bytes(4, "little") for number in numbers)
    (folder / "warmup" / "x.bin").write_bytes(data)


def test_a_model_is_warm_before_it_serves(start_server: Start, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    samples = warmup("zeros", "zero_data: true", 2, 2)
    samples += warmup("file", 'input_data_file: "x.bin"')
    samples += warmup("none", "zero_data: true", 0)
    folder = write_python_model(repository, "m", TENSORS + samples, ECHO)
    write_file(folder, 7, 8, 9)
    passive = "instance_group [ { kind: KIND_CPU }, { kind: KIND_CPU passive: true } ]\n"
    spare = write_python_model(repository, "spare", TENSORS + samples + passive, ECHO)
    write_file(spare, 7, 8, 9)

    server = start_server(repository)
    zeros = [[[0, 0]], [[0, 0]]]
    assert seen(folder) == [zeros, zeros, [[[7, 8]]]]
    assert seen(spare) == [zeros, zeros, [[[7, 8]]]]  # the passive one is left alone
    line = server.log.wait("instances warmed up")
    assert (len(line["instances"]), line["seconds"] >= 0) == (1, True)
    stats = server.get("/v2/models/m/stats").json["model_stats"][0]
    assert (stats["inference_count"], stats["execution_count"]) == (5, 3)
    assert [batch["batch_size"] for batch in stats["batch_stats"]] == [1, 2]
    assert server.infer("spare", X).json["outputs"][0]["data"] == [1, 2]


def test_warm_up_that_fails_fails_the_load(start_server: Start, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    samples = warmup("good", "zero_data: true") + warmup("bad", 'input_data_file: "x.bin"')
    folder = write_python_model(repository, "m", TENSORS + samples, ECHO)
    server = start_server(repository, "--model-control-mode=explicit")

    def refused() -> str:
        answer = server.post("/v2/repository/models/m/load")
        assert answer.status == 400
        return answer.error

    start = "load failed for model 'm': version 1 is at UNAVAILABLE state: Invalid argument: "
    assert refused().startswith(f"{start}warmup data file 'x.bin' is not a file in ")
    write_file(folder, 1)
    assert "warmup setting expects 8 bytes, but the data provided" in refused()
    write_file(folder, 66, 1)
    assert refused().startswith(f"{start}failed to run warmup sample 'bad': Failed to process the ")
    assert server.index()["m"][0] == "UNAVAILABLE"
    write_file(folder, 65, 1)
    assert server.post("/v2/repository/models/m/load").status == 200
    assert server.infer("m", X).status == 200


def test_a_warm_up_that_hangs_is_ended(start_server: Start, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    limit = 'parameters { key: "EXECUTION_TIMEOUT_SECS" value { string_value: "0.5" } }\n'
    body = "def execute(self, requests):\n    time.sleep(600)\n"
    config = TENSORS + limit + warmup("slow", "zero_data: true")
    write_python_model(repository, "m", config, body)
    server = start_server(repository, "--model-control-mode=explicit")
    answer = server.post("/v2/repository/models/m/load")
    assert "failed to run warmup sample 'slow': the worker process of model 'm' " in answer.error
    assert "an execution took longer than 0.5 seconds; " in answer.error


SHARED = "instance_group {{ kind: KIND_CPU rate_limiter {{ {} }} }}\n"
LOCKED = """
def execute(self, requests):
    place = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    held = os.open(place + "/held", os.O_CREAT | os.O_EXCL)  # fails where another runs
    gate = place + "/gate"
    if self.WAITS and os.path.exists(gate):
        open(gate).read()
    os.close(held)
    os.unlink(place + "/held")
    return [answer(Y=read(r, "X")) for r in requests]
"""


def locked_model(repository: Path, name: str, resources: str, *, waits: bool = False) -> None:
    config = TENSORS + SHARED.format(resources)
    write_python_model(repository, name, config, f"WAITS = {waits}\n{LOCKED}")


ONE = 'resources { name: "R" count: 1 }'


def test_models_that_share_a_resource_never_run_at_once(
    start_server: Start, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    locked_model(repository, "a", ONE, waits=True)
    locked_model(repository, "b", ONE)
    gate = Gate(repository / "gate")
    server = start_server(repository, "--rate-limit=execution_count")
    pending = 'nv_inference_pending_request_count{model="b",version="1"}'
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.infer, "a", X)
        inside = gate.reached()
        second = pool.submit(server.infer, "b", X)
        server.until(lambda: server.metrics()[pending] or second.done())
        assert not second.done()
        gate.path.unlink()
        Gate.open(inside)
        assert (first.result().status, second.result().status) == (200, 200)
    calls = [lambda name=name: server.infer(name, X).status for name in "abababab" * 4]
    assert set(in_threads(calls)) == {200}


def test_more_of_a_resource_lets_both_run(start_server: Start, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    locked_model(repository, "a", ONE, waits=True)
    write_python_model(repository, "b", TENSORS + SHARED.format(ONE), ECHO)
    gate = Gate(repository / "gate")
    flags = ["--rate-limit=execution_count", "--rate-limit-resource=R:2"]
    server = start_server(repository, *flags)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.infer, "a", X)
        inside = gate.reached()
        assert server.infer("b", X).status == 200
        Gate.open(inside)
        assert first.result().status == 200


def test_a_model_that_could_never_run_is_not_loaded(start_server: Start, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    locked_model(repository, "small", ONE)
    locked_model(repository, "large", 'resources { name: "R" count: 4 }')
    locked_model(repository, "other", 'resources { name: "R" count: 1 global: true }')
    flags = ["--rate-limit=execution_count", "--rate-limit-resource=R:3"]
    server = start_server(repository, *flags, "--model-control-mode=explicit")
    assert server.post("/v2/repository/models/small/load").status == 200
    head = "load failed for model '{}': version 1 is at UNAVAILABLE state: Invalid argument: "
    refused = [server.post(f"/v2/repository/models/{m}/load").error for m in ("large", "other")]
    assert refused == [
        head.format("large") + 'Resource count for "R" is limited to 3 which will prevent '
        "scheduling of one or more model instances, the minimum required count is 4;\n",
        head.format("other") + 'Resource "R" is present as both global and device-specific '
        "resource in the model configuration.;\n",
    ]
    assert server.infer("small", X).status == 200
    server.unload("small")
    assert server.post("/v2/repository/models/other/load").status == 200


def allowed(process: psutil.Process) -> set[str]:
    """The processors that the threads of a process may run on."""
    found = set()
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            lines = (task / "status").read_text().splitlines()
            found |= {line.split()[1] for line in lines if line.startswith("Cpus_allowed_list:")}
    return found


PLACE = """
def execute(self, requests):
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    row = np.array([[os.getpid(), nice]], np.int32)
    return [answer(Y=row) for request in requests]
"""


@LINUX
def test_instances_run_where_their_host_policy_says(start_server: Start, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    one, *others = sorted(os.sched_getaffinity(0))
    other = others[0] if others else one
    write_identity(repository, "script", "torch", "batching", ("FP32",))
    policy = 'instance_group { kind: KIND_CPU host_policy: "mine" }\n'
    write_python_model(repository, "mine", TENSORS + policy, PLACE)
    slow = "optimization { priority: PRIORITY_MIN }\n"
    write_python_model(repository, "slow", TENSORS + slow, PLACE)
    quick = 'optimization { priority: PRIORITY_MAX }\ninstance_group { host_policy: "nobody" }\n'
    write_python_model(repository, "quick", TENSORS + quick, PLACE)
    server = start_server(
        repository,
        f"--host-policy=cpu,cpu-cores={one}",
        f"--host-policy=mine,cpu-cores={other}",
        "--host-policy=mine,numa-node=0",
    )
    everywhere = allowed(psutil.Process(server.process.pid))

    def place(model: str) -> tuple[psutil.Process, int]:
        pid, niceness = server.infer(model, X).json["outputs"][0]["data"]
        return psutil.Process(pid), niceness

    own = psutil.Process(server.process.pid).nice()
    found = {name: place(name) for name in ("mine", "slow", "quick")}
    assert {name: allowed(process) for name, (process, _) in found.items()} == {
        "mine": {str(other)},
        "slow": {str(one)},
        "quick": everywhere,
    }
    assert {name: niceness for name, (_, niceness) in found.items()} == {
        "mine": own,
        "slow": 19,  # the most there is
        "quick": own,
    }
    rows = [[0.5] * 8] * 4
    assert server.infer("script", ("IN_FP32", "FP32", rows)).json["outputs"][0]["shape"] == [4, 8]
    strangers = {process.pid for process, _ in found.values()}
    bound = [p for p in server.processes() if p.pid not in strangers and allowed(p) == {str(one)}]
    assert [len(list(Path(f"/proc/{p.pid}/task").iterdir())) > 1 for p in bound] == [True]
    server.log.wait("host policy says nothing")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--host-policy=cpu,cpu-cores=60000", "the server may not use processor 60000"),
        ("--host-policy=cpu,colour=red", "the setting must be numa-node or cpu-cores"),
    ],
)
def test_flags_that_cannot_be(tmp_path: Path, flag: str, words: str) -> None:
    (tmp_path / "models").mkdir()
    server = launch(tmp_path / "models", flag)
    assert server.wait_exit() == 1
    assert words in server.log.text
