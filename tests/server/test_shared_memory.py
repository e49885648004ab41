"""Inputs and outputs in POSIX shared memory that the official clients make, register and fill."""

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_harness import PATIENCE, Gate, Running, write_python_model

shm = pytest.importorskip("tritonclient.utils.shared_memory", reason="tritonclient is missing")

SIZE = 4096
OUT = 1024
"""Where in a region outputs are put."""
CONFIG = """
max_batch_size: 4
input [
  { name: "x" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "text" data_type: TYPE_STRING dims: [ -1 ] optional: true }
]
output [
  { name: "y" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "upper" data_type: TYPE_STRING dims: [ -1 ] }
]
"""
BODY = """
def execute(self, requests):
    gate = os.path.dirname(os.path.dirname(__file__)) + "/gate"
    if os.path.exists(gate):
        open(gate).read()
    return [self.one(request) for request in requests]

def one(self, request):
    outputs = {"y": 2 * read(request, "x")}
    text = pb_utils.get_input_tensor_by_name(request, "text")
    if text is not None:
        upper = [t.upper() for t in text.as_numpy().reshape(-1)]
        outputs["upper"] = np.array(upper, np.object_).reshape(text.shape())
    return answer(**outputs)
"""


def write_onnx_model(repository: Path) -> None:
    """y = x + x, without a configuration file."""
    onnx = pytest.importorskip("onnx", reason="onnx, of the group 'dev', is missing")
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is missing")
    helper = onnx.helper
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in "xy"
    ]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", *zip(values))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (repository / "graph" / "1").mkdir(parents=True)
    onnx.save(model, repository / "graph" / "1" / "model.onnx")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shared") / "models"
    write_python_model(made, "script", CONFIG, BODY)
    write_onnx_model(made)
    return made


@pytest.fixture(scope="module")
def server(repository: Path, start_server: Callable[..., Running]) -> Running:
    return start_server(repository, "--allow-client-shm=true")


class Client:
    """An official client, of either protocol; both have the same calls."""

    def __init__(self, protocol: str, server: Running) -> None:
        name = f"tritonclient.{protocol}"
        self.protocol, self.server = protocol, server
        self.kinds = pytest.importorskip(name, reason=f"tritonclient[{protocol}] is missing")
        url = {"http": server.http_url, "grpc": server.grpc_url}[protocol]
        self.calls = self.kinds.InferenceServerClient(url)

    def input(self, name: str, shape: list[int], datatype: str, *place: Any) -> Any:
        """An input, in shared memory where a place is given: region, size and offset."""
        made = self.kinds.InferInput(name, shape, datatype)
        if place:
            made.set_shared_memory(*place)
        return made

    def output(self, name: str, *place: Any) -> Any:
        """A requested output, in shared memory where a place is given."""
        made = self.kinds.InferRequestedOutput(name)
        if place:
            made.set_shared_memory(*place)
        return made

    def double(self, region: str, model: str = "script") -> Any:
        """Ask for two times the four numbers at the region's start, written to OUT."""
        return self.calls.infer(
            model,
            [self.input("x", [1, 4], "FP32", region, 16, 0)],
            outputs=[self.output("y", region, 16, OUT)],
        )

    def names(self) -> set[str]:
        """The names of the registered regions."""
        status = self.calls.get_system_shared_memory_status()
        return {r["name"] for r in status} if isinstance(status, list) else set(status.regions)

    def refused(self, call: Callable[[], Any]) -> str:
        """The message of the error that a call must raise."""
        with pytest.raises(self.kinds.InferenceServerException) as caught:
            call()
        return str(caught.value)


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: Running) -> Iterator[Client]:
    """Each client; what it leaves registered goes."""
    made = Client(request.param, server)
    yield made
    made.calls.unregister_system_shared_memory()
    made.calls.close()


class Memory:
    """A region as the client's library makes it."""

    def __init__(self) -> None:
        self.key = f"/microkernel-{uuid.uuid4().hex}"
        self._handle = shm.create_shared_memory_region("region", self.key, SIZE)

    def write(self, *arrays: np.ndarray[Any, Any], offset: int = 0) -> None:
        """Put arrays there, one after the other."""
        shm.set_shared_memory_region(self._handle, list(arrays), offset=offset)

    def read(self, datatype: Any, shape: list[int], offset: int = 0) -> list[Any]:
        """What is there, as lists."""
        found: list[Any] = shm.get_contents_as_numpy(self._handle, datatype, shape, offset).tolist()
        return found

    def close(self) -> None:
        """Give the object back."""
        shm.destroy_shared_memory_region(self._handle)


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory()
    made.write(np.arange(4, dtype=np.float32))
    yield made
    made.close()


DOUBLED = [[0.0, 2.0, 4.0, 6.0]]


@pytest.mark.parametrize("model", ["script", "graph"])
def test_tensors_in_shared_memory(client: Client, memory: Memory, model: str) -> None:
    client.calls.register_system_shared_memory("r", memory.key, SIZE)
    result = client.double("r", model)
    assert memory.read(np.float32, [1, 4], OUT) == DOUBLED
    assert memory.read(np.uint8, [8], OUT + 16) == [0] * 8
    output = result.get_output("y")
    kept = output if isinstance(output, dict) else {"shape": list(output.shape)}
    assert kept["shape"] == [1, 4]
    assert "data" not in kept


def test_only_some_tensors_in_shared_memory(client: Client, memory: Memory) -> None:
    client.calls.register_system_shared_memory("r", memory.key, SIZE)
    words = np.array([[b"one", b"\xffthree"]], np.object_)
    inputs = [
        client.input("x", [1, 4], "FP32", "r", 16, 0),
        client.input("text", [1, 2], "BYTES"),
    ]
    inputs[1].set_data_from_numpy(words)
    wanted = [client.output("upper", "r", 100, OUT), client.output("y")]
    result = client.calls.infer("script", inputs, outputs=wanted)
    assert memory.read(np.object_, [1, 2], OUT) == [[b"ONE", b"\xffTHREE"]]
    assert result.as_numpy("y").tolist() == DOUBLED


def test_a_region_may_start_within_its_object(client: Client) -> None:
    memory = Memory()
    os.truncate(f"/dev/shm{memory.key}", 3 * SIZE)
    try:
        client.calls.register_system_shared_memory("low", memory.key, SIZE)
        client.calls.register_system_shared_memory("high", memory.key, 64, offset=2 * SIZE)
        memory.write(np.arange(4, dtype=np.float32))
        wanted = [client.output("y", "high", 16, 48)]
        inputs = [client.input("x", [1, 4], "FP32", "low", 16, 0)]
        client.calls.infer("script", inputs, outputs=wanted)
        with Path(f"/dev/shm{memory.key}").open("rb") as file:
            file.seek(2 * SIZE + 48)
            assert np.frombuffer(file.read(16), np.float32).tolist() == DOUBLED[0]
    finally:
        memory.close()


def test_outputs_need_room(client: Client, memory: Memory) -> None:
    client.calls.register_system_shared_memory("r", memory.key, SIZE)
    inputs = [client.input("x", [1, 4], "FP32", "r", 16, 0)]
    wanted = [client.output("y", "r", 15, OUT)]
    error = client.refused(lambda: client.calls.infer("script", inputs, outputs=wanted))
    assert error.endswith(
        "shared memory size specified with the request for output 'y' (15 bytes) should be at "
        "least 16 bytes to hold the results"
    )


def test_inputs_must_have_the_size_of_their_shape(client: Client, memory: Memory) -> None:
    client.calls.register_system_shared_memory("r", memory.key, SIZE)
    inputs = [client.input("x", [1, 4], "FP32", "r", 20, 0)]
    error = client.refused(lambda: client.calls.infer("script", inputs))
    assert "input byte size mismatch for input 'x' for model 'script'. Expected 16, got 20" in error


def test_a_region_that_is_unregistered_cannot_be_used(client: Client, memory: Memory) -> None:
    client.calls.register_system_shared_memory("r", memory.key, SIZE)
    client.calls.register_system_shared_memory("s", memory.key, SIZE)
    client.calls.unregister_system_shared_memory("r")
    assert client.names() == {"s"}
    error = client.refused(lambda: client.double("r"))
    assert error.endswith("Unable to find shared memory region: 'r'")
    assert any(number in error for number in ("[404]", "NOT_FOUND"))


def test_a_region_that_is_unregistered_while_in_use(
    client: Client, memory: Memory, repository: Path
) -> None:
    register = client.calls.register_system_shared_memory
    register("r", memory.key, SIZE)
    gate = Gate(repository / "script" / "gate")
    errors: list[Exception] = []

    def ask() -> None:
        mine = Client(client.protocol, client.server)  # that of HTTP belongs to its thread
        try:
            mine.double("r")
        except Exception as error:  # noqa: BLE001 - shown by the test
            errors.append(error)
        mine.calls.close()

    thread = threading.Thread(target=ask)
    thread.start()
    descriptor = gate.reached()
    gate.path.unlink()
    try:
        client.calls.unregister_system_shared_memory("r")
        assert client.names() == set()
        error = client.refused(lambda: register("r", memory.key, SIZE))
        assert error.endswith("shared memory region 'r' already in manager")
    finally:
        gate.open(descriptor)
        thread.join(PATIENCE)
    assert errors == []
    assert memory.read(np.float32, [1, 4], OUT) == DOUBLED
    register("r", memory.key, SIZE)
    assert client.names() == {"r"}


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (8, "shared memory region 'r' has become shorter than it was when it was registered"),
        (OUT, "output 'y' cannot be written to shared memory region 'r', which has become shorter"),
    ],
)
def test_an_object_that_is_cut_short(client: Client, size: int, message: str) -> None:
    memory = Memory()
    try:
        client.calls.register_system_shared_memory("r", memory.key, SIZE)
        os.truncate(f"/dev/shm{memory.key}", size)
        assert message in client.refused(lambda: client.double("r"))
    finally:
        memory.close()
    assert client.calls.is_server_live()


def test_an_object_may_go_before_its_region(client: Client) -> None:
    memory = Memory()
    client.calls.register_system_shared_memory("r", memory.key, SIZE)
    memory.close()
    inputs = [client.input("x", [1, 4], "FP32", "r", 16, 0)]
    assert client.calls.infer("script", inputs).as_numpy("y").tolist() == [[0.0] * 4]


@pytest.fixture(scope="module")
def closed(repository: Path, start_server: Callable[..., Running]) -> Running:
    return start_server(repository)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_everything_is_off_by_default(closed: Running, memory: Memory, protocol: str) -> None:
    client = Client(protocol, closed)
    text = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to"
    calls = client.calls
    for call in (
        lambda: calls.register_system_shared_memory("r", memory.key, SIZE),
        lambda: calls.unregister_system_shared_memory("r"),
        lambda: calls.unregister_system_shared_memory(),
        lambda: calls.register_cuda_shared_memory("r", b"AAAA", 0, SIZE),
        lambda: calls.unregister_cuda_shared_memory(),
    ):
        error = client.refused(call)
        assert error.startswith(("[501] " + text, "[StatusCode.UNIMPLEMENTED] " + text))
    assert client.names() == set()
    assert "Unable to find shared memory region: 'r'" in client.refused(lambda: client.double("r"))
    calls.close()
