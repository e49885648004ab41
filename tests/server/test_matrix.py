"""Every data type in every form over both protocols to a model of every backend and back, with the
official clients."""

import asyncio
import queue
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from identity_models import (
    BACKENDS,
    CARRIED,
    FORMS,
    NOT_CARRIED,
    write_identities,
    write_identity,
)
from server_harness import PATIENCE, Running

from microkernel import DATA_TYPES, encode_bytes

http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")
grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

from tritonclient.utils import shared_memory as shm  # noqa: E402
from tritonclient.utils import triton_to_np_dtype  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Array = np.ndarray[Any, Any]

UNICODE = ["", 'a\nb"\\', "h\u00e9llo", "\U0001f600 and more"]
OUT, SIZE = 2048, 4096
"""Where in the region outputs go, and how large the region is."""
POISON = b"\xaa" * (SIZE - OUT)


def edges(kind: str) -> Array:
    """Four elements of a data type, as the client takes them, most of them at its ends."""
    match kind[:3]:
        case "BOO":
            return np.array([True, False, False, True])
        case "BYT":
            return np.array([text.encode() for text in UNICODE], np.object_)
        case "INT" | "UIN":
            info = np.iinfo(kind.lower())
            return np.array([info.min, info.max, 0, info.max - 1], kind.lower())
        case "BF1":
            bits = np.array([0x7FC0, 0xFF80, 0x0001, 0x8000], np.uint32) << 16
            return bits.view(np.float32).astype(triton_to_np_dtype("BF16"))
        case _:
            dtype = np.dtype(DATA_TYPES[kind].numpy)
            return np.array([np.nan, -np.inf, np.finfo(dtype).smallest_subnormal, -0.0], dtype)


def raw(kind: str, array: Array) -> bytes:
    """An array of the client as the protocol lays it out."""
    if kind == "BYTES":
        return encode_bytes(array.reshape(-1).tolist())
    if kind == "BF16":
        return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return bytes(array.tobytes())


@dataclass(frozen=True)
class Case:
    """A data type at a model."""

    backend: str
    form: str
    kind: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.form}-{self.kind}"

    @property
    def model(self) -> str:
        return f"{self.backend}_{self.form}"

    @property
    def output(self) -> str:
        return f"OUT_{self.kind}"

    @property
    def given(self) -> Array:
        """What is sent of the data type, in the shape that the model wants."""
        return edges(self.kind).reshape(self._shape(self.kind, 4))

    @property
    def inputs(self) -> Mapping[str, Array]:
        """What is sent, by data type: nothing of those that the case is not about."""
        empty = {kind: self._empty(kind) for kind in CARRIED[self.backend]}
        return {**empty, self.kind: self.given}

    def _listed(self, kind: str) -> bool:
        return (self.backend, kind) == ("torch", "BYTES")

    def _shape(self, kind: str, count: int) -> tuple[int, ...]:
        if self._listed(kind):
            return (count, 1) if self.form == "batching" else (count,)
        return (2, count // 2) if self.form == "batching" else (count // 2, 2)

    def _empty(self, kind: str) -> Array:
        batch = self._shape(self.kind, 4)[0] if self.form == "batching" else 0
        if self.form == "batching" and self._listed(kind):
            return np.full((batch, 1), b"", np.object_)  # it has an element in every row
        shape = (batch, 0) if self.form == "batching" else self._shape(kind, 0)
        return np.empty(shape, triton_to_np_dtype(kind))


CASES = [Case(b, form, kind) for b in BACKENDS for form in FORMS for kind in CARRIED[b]]


class Over:
    """A client and how it sends a case, in each way that it has. `kinds` is its module."""

    def __init__(self, kinds: Any, calls: Any) -> None:
        self.kinds = kinds
        self.calls = calls

    @classmethod
    def connected(cls, kinds: Any, url: str) -> "Over":
        return cls(kinds, kinds.InferenceServerClient(url))

    def binary(self, case: Case) -> Array:
        """The output, everything in the protocol's binary form."""
        found: Array = self.calls.infer(case.model, **self.asked(case)).as_numpy(case.output)
        return found

    def asked(self, case: Case) -> dict[str, Any]:
        """The arguments of `infer` for the binary form."""
        return {"inputs": self._inputs(case), "outputs": [self._wanted(case.output)]}

    def shared(self, case: Case, region: "Region") -> bytes:
        """The output's bytes, from shared memory to shared memory."""
        data = raw(case.kind, case.given)
        region.write(data + POISON[: OUT - len(data)] + POISON)
        inputs = self._inputs(case)
        inputs[CARRIED[case.backend].index(case.kind)].set_shared_memory("r", len(data), 0)
        wanted = self._wanted(case.output)
        wanted.set_shared_memory("r", SIZE - OUT, OUT)
        result = self.calls.infer(case.model, inputs, outputs=[wanted])
        about = result.get_output(case.output)
        found = (
            about
            if isinstance(about, dict)
            else {"datatype": about.datatype, "shape": list(about.shape)}
        )
        assert (found["datatype"], found["shape"]) == (case.kind, list(case.given.shape))
        written = region.read()[OUT:]
        assert written[len(data) :] == POISON[len(data) :]
        return written[: len(data)]

    def explicit(self, case: Case) -> Array:
        """The output, sent and answered as JSON over HTTP, sent in typed fields over gRPC."""
        return self._json(case) if self.kinds is http else self._typed(case)

    def _json(self, case: Case) -> Array:
        inputs = self._inputs(case)
        position = CARRIED[case.backend].index(case.kind)
        inputs[position].set_data_from_numpy(case.given, binary_data=False)
        wanted = [http.InferRequestedOutput(case.output, binary_data=False)]
        result = self.calls.infer(case.model, inputs, outputs=wanted)
        assert "data" in result.get_output(case.output)
        found: Array = result.as_numpy(case.output)
        return found

    def _typed(self, case: Case) -> Array:
        request = grpc.service_pb2.ModelInferRequest(model_name=case.model)
        for kind, array in case.inputs.items():
            entry = request.inputs.add(name=f"IN_{kind}", datatype=kind, shape=array.shape)
            entry.contents.SetInParent()
            getattr(entry.contents, FIELDS.get(kind, "int_contents")).extend(
                array.reshape(-1).tolist()
            )
        request.outputs.add(name=case.output)
        found: Array = grpc.InferResult(
            self.calls._client_stub.ModelInfer(request, timeout=PATIENCE)
        ).as_numpy(case.output)
        return found

    def _inputs(self, case: Case) -> list[Any]:
        return [self._filled(kind, array) for kind, array in case.inputs.items()]

    def _filled(self, kind: str, array: Array) -> Any:
        made = self.kinds.InferInput(f"IN_{kind}", list(array.shape), kind)
        made.set_data_from_numpy(array)
        return made

    def _wanted(self, name: str) -> Any:
        return self.kinds.InferRequestedOutput(name)


FIELDS = {
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Those that are not `int_contents`."""


class Region:
    """Shared memory as the client's library makes it, registered as `r`."""

    def __init__(self) -> None:
        self.key = f"/microkernel-{uuid.uuid4().hex}"
        self._handle = shm.create_shared_memory_region("r", self.key, SIZE)

    def write(self, data: bytes) -> None:
        shm.set_shared_memory_region(self._handle, [np.frombuffer(data, np.uint8)])

    def read(self) -> bytes:
        return bytes(shm.get_contents_as_numpy(self._handle, np.uint8, [SIZE]).tobytes())

    def close(self) -> None:
        shm.destroy_shared_memory_region(self._handle)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    repository = tmp_path_factory.mktemp("matrix") / "models"
    write_identities(repository)
    return start_server(repository, "--allow-client-shm=true")


@pytest.fixture(scope="module")
def clients(server: Running) -> Iterator[Mapping[str, Over]]:
    made = {
        "http": Over.connected(http, server.http_url),
        "grpc": Over.connected(grpc, server.grpc_url),
    }
    yield made
    for client in made.values():
        client.calls.close()


@pytest.fixture(scope="module")
def region(clients: Mapping[str, Over]) -> Iterator[Region]:
    made = Region()
    clients["http"].calls.register_system_shared_memory("r", made.key, SIZE)
    yield made
    clients["grpc"].calls.unregister_system_shared_memory("r")
    made.close()


PROTOCOLS = pytest.mark.parametrize("protocol", ["http", "grpc"])
EVERY = pytest.mark.parametrize("case", CASES, ids=str)
NUMBERED = [case for case in CASES if case.kind not in ("FP16", "BF16")]
"""Those that JSON and typed fields can carry."""


@PROTOCOLS
@EVERY
def test_binary(clients: Mapping[str, Over], protocol: str, case: Case) -> None:
    found = clients[protocol].binary(case)
    assert (found.shape, raw(case.kind, found)) == (case.given.shape, raw(case.kind, case.given))


@PROTOCOLS
@EVERY
def test_shared_memory(
    clients: Mapping[str, Over], region: Region, protocol: str, case: Case
) -> None:
    assert clients[protocol].shared(case, region) == raw(case.kind, case.given)


@PROTOCOLS
@pytest.mark.parametrize("case", NUMBERED, ids=str)
def test_json_and_typed_fields(clients: Mapping[str, Over], protocol: str, case: Case) -> None:
    found = clients[protocol].explicit(case)
    assert (found.shape, raw(case.kind, found)) == (case.given.shape, raw(case.kind, case.given))


@PROTOCOLS
@pytest.mark.parametrize("kind", DATA_TYPES)
async def test_many_at_once(server: Running, protocol: str, kind: str) -> None:
    if protocol == "http":
        import tritonclient.http.aio as aio
    else:
        import tritonclient.grpc.aio as aio
    url = server.http_url if protocol == "http" else server.grpc_url
    cases = [case for case in CASES if case.kind == kind] * 4
    async with aio.InferenceServerClient(url) as client:
        over = Over(aio, client)
        results = await asyncio.gather(
            *(client.infer(case.model, **over.asked(case)) for case in cases)
        )
    for case, result in zip(cases, results, strict=True):
        assert raw(kind, result.as_numpy(case.output)) == raw(kind, case.given), case


def test_a_stream_of_everything(server: Running) -> None:
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    over = Over.connected(grpc, server.grpc_url)
    with over.calls as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for case in CASES:
            client.async_stream_infer(case.model, **over.asked(case), request_id=str(case))
        for case in CASES:
            result, error = answers.get(timeout=PATIENCE)
            assert (error, result.get_response().id) == (None, str(case))
            assert raw(case.kind, result.as_numpy(case.output)) == raw(case.kind, case.given)
        client.stop_stream()


@pytest.fixture(scope="module")
def refusing(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    repository: Path = tmp_path_factory.mktemp("refusals") / "models"
    for backend, kind in NOT_CARRIED:
        write_identity(repository, f"{backend}_{kind}", backend, "plain", [kind])
    return start_server(repository, "--exit-on-error=false")


REFUSALS = {
    "onnx": "Unsupported: unable to load model '{model}', input 'IN_{kind}' is TYPE_{kind}, which "
    "this backend cannot pass to onnxruntime",
}
"""Why a model is not loaded whose backend cannot carry a data type."""


@pytest.mark.parametrize(("backend", "kind"), NOT_CARRIED)
def test_what_a_backend_cannot_carry_is_refused_at_load(
    refusing: Running, backend: str, kind: str
) -> None:
    model = f"{backend}_{kind}"
    state, reason = refusing.index()[model]
    assert state == "UNAVAILABLE"
    assert reason.startswith(REFUSALS[backend].format(model=model, kind=kind))
    assert refusing.get(f"/v2/models/{model}/ready").status == 400
