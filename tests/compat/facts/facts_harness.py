"""The models and the server that the tables of protocol facts are tried on, and what a row of such
a table is."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from server_harness import Answer, Running, ask, launch, write_python_model

JSON, TEXT = "application/json", "text/plain"
OCTETS = "application/octet-stream"
EVENTS = "text/event-stream; charset=utf-8"
LENGTH = "Inference-Header-Content-Length"

FORWARDED = "^x-|^sequence_|^priority$|^timeout$|^headers$|^triton_x"
"""Headers of a custom name, and those whose names cannot be forwarded."""

NUMBERS = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
TYPES = (*NUMBERS, "FP16", "BF16", "FP32", "FP64", "STRING")


def tensor(kind: str, name: str, data_type: str, dims: str, more: str = "") -> str:
    """An input or output of a configuration."""
    return f'{kind} {{ name: "{name}" data_type: TYPE_{data_type} dims: {dims} {more} }}\n'


ECHO = "def execute(self, requests):\n    return [answer(Y=read(r, 'X')) for r in requests]\n"

PAIR = """
def execute(self, requests):
    return [self.one(read(r, "A"), read(r, "B")) for r in requests]

def one(self, a, b):
    if a[0] < 0:
        code = list(type(pb_utils.TritonError.UNKNOWN))[-a[0] - 1]
        error = pb_utils.TritonError("the model refuses", code)
        return pb_utils.InferenceResponse(error=error)
    return answer(SUM=a + b, DIFF=a - b)
"""

KINDS = """
def execute(self, requests):
    return [pb_utils.InferenceResponse([self.copy(t) for t in r.inputs()]) for r in requests]

def copy(self, tensor):
    return pb_utils.Tensor.from_dlpack(tensor.name() + "_OUT", tensor.to_dlpack()) \\
        if tensor.name() == "BF16" else pb_utils.Tensor(tensor.name() + "_OUT", tensor.as_numpy())
"""

TOLD = """
def execute(self, requests):
    return [self.one(r) for r in requests]

def one(self, r):
    import json
    about = {"id": r.request_id(), "parameters": json.loads(r.parameters()), "flags": r.flags(),
             "sequence": r.correlation_id(), "timeout": r.timeout()}
    text = np.array([json.dumps(about)], np.object_)
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor("TOLD", text)], parameters={"on": True, "count": 3, "word": "w"})
"""

MANY = """
def execute(self, requests):
    for r in requests:
        sender, count = r.get_response_sender(), int(read(r, "COUNT")[0])
        for number in range(count):
            sender.send(answer(Y=np.array([number], np.int32)))
        if count < 0:
            error = pb_utils.TritonError("fewer than none", pb_utils.TritonError.INVALID_ARG)
            sender.send(pb_utils.InferenceResponse(error=error))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

FAILS = "def initialize(self, args):\n    raise ValueError('it cannot start')\n"


def one(data_type: str, dims: str, batch: int = 0) -> str:
    """A configuration of one input X and one output Y of the same form."""
    both = tensor("input", "X", data_type, dims) + tensor("output", "Y", data_type, dims)
    return f"max_batch_size: {batch}\n{both}"


def configurations() -> Mapping[str, tuple[str, str]]:
    """The configuration and the methods of each model."""
    pair = "".join(tensor("input", name, "INT32", "[ 4 ]") for name in "AB")
    pair += tensor("output", "SUM", "INT32", "[ 4 ]", 'label_filename: "labels.txt"')
    pair += tensor("output", "DIFF", "INT32", "[ 4 ]")
    kinds = "".join(
        tensor("input", t, t, "[ -1 ]", "optional: true")
        + tensor("output", f"{t}_OUT", t, "[ -1 ]")
        for t in TYPES
    )
    told = tensor("input", "X", "INT32", "[ 1 ]") + tensor("output", "TOLD", "STRING", "[ 1 ]")
    many = tensor("input", "COUNT", "INT32", "[ 1 ]") + tensor("output", "Y", "INT32", "[ 1 ]")
    return {
        "echo": (one("FP32", "[ -1 ]", 8), ECHO),
        "grid": (one("FP32", "[ 2, -1 ]"), ECHO),
        "plane": (one("FP32", "[ -1, -1 ]", 4), ECHO),
        "text": (one("STRING", "[ -1 ]", 4), ECHO),
        "word": (one("STRING", "[ 1 ]", 4), ECHO),
        "pair": (pair, PAIR),
        "kinds": (kinds, KINDS),
        "told": (told, TOLD),
        "many": (many + "model_transaction_policy { decoupled: true }", MANY),
        "fails": (one("FP32", "[ 1 ]"), FAILS),
        "two": (one("FP32", "[ -1 ]", 8) + "version_policy { all {} }", ECHO),
        "later": (one("FP32", "[ 1 ]"), ECHO),
    }


SERVED = ("echo", "grid", "plane", "text", "word", "pair", "kinds", "told", "many", "two")


def write_models(repository: Path) -> Path:
    """A repository of every model, of which `two` has two versions; and of two more that cannot be
    loaded, one without a version and one whose configuration cannot be read."""
    for name, (config, body) in configurations().items():
        write_python_model(repository, name, config, body)
    shutil.copytree(repository / "two" / "1", repository / "two" / "2")
    (repository / "pair" / "labels.txt").write_text("north\neast\nsouth\nwest\n")
    for name, config in (("empty", 'backend: "python"\n' + one("FP32", "[ 1 ]")), ("odd", "{{")):
        (repository / name).mkdir()
        (repository / name / "config.pbtxt").write_text(config)
    return repository


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of the models of SERVED; the others may be loaded. Clients may use shared memory,
    and the headers of FORWARDED become parameters."""
    running = launch(
        write_models(tmp_path_factory.mktemp("facts") / "models"),
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in SERVED),
        "--allow-client-shm=true",
        f"--http-header-forward-pattern={FORWARDED}",
        f"--grpc-header-forward-pattern={FORWARDED}",
    )
    yield running.wait_started()
    running.stop()


@pytest.fixture(scope="module")
def failing(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    """A server of the same models that has loaded none, for what would keep the other from being
    ready."""
    repository = write_models(tmp_path_factory.mktemp("failing") / "models")
    return start_server(repository, "--model-control-mode=explicit")


@pytest.fixture(scope="module")
def channel(facts: Running) -> Iterator[Any]:
    """A gRPC channel to the server."""
    grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")
    with grpc.insecure_channel(facts.grpc_url) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel: Any) -> Any:
    """The calls of the service, on the channel."""
    services = pytest.importorskip(
        "tritonclient.grpc.service_pb2_grpc", reason="tritonclient[grpc] is not installed"
    )
    return services.GRPCInferenceServiceStub(channel)


@dataclass(frozen=True, slots=True)
class Fact:
    """A request over HTTP and what its answer must be: the status, the content type, and a phrase
    that its body holds; a phrase of None stands for an empty body."""

    method: str
    path: str
    status: int
    type: str | None = JSON
    phrase: str | None = ""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def ask(self, server: Running) -> Answer:
        """Send the request."""
        return ask(server.http, self.method, self.path, self.body, self.headers)

    def check(self, server: Running) -> None:
        """Send the request and compare."""
        found = self.ask(server)
        assert found.status == self.status, found.body
        assert found.headers.get("content-type") == self.type
        if self.phrase is None:
            assert found.body == b""
        elif self.status >= 400:
            assert list(found.json) == ["error"]
            assert self.phrase in found.error
        else:
            assert self.phrase in found.body.decode(errors="replace")


def an_input(name: str, datatype: str, shape: list[int], **fields: Any) -> dict[str, Any]:
    """An input of an infer request."""
    return {"name": name, "datatype": datatype, "shape": shape, **fields}


def request(*inputs: dict[str, Any], **members: Any) -> bytes:
    """The JSON of an infer request."""
    return json.dumps({"inputs": inputs, **members}).encode()


X = an_input("X", "FP32", [1, 2], data=[1, 2])
A, B = (an_input(name, "INT32", [4], data=[1, 2, 3, 4]) for name in "AB")


def parameters(**given: Any) -> bytes:
    """The JSON of a request of repository control."""
    return json.dumps({"parameters": given}).encode()
