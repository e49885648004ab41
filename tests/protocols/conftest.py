"""Canned models, and front ends on free ports of 127.0.0.1."""

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from microkernel import (
    InferRequest,
    InferResponse,
    Internal,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Tensor,
    TransactionPolicy,
)
from microkernel.testing import FakeModel, FakeServer

NUMBERS = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
TYPES = (*NUMBERS, "FP16", "FP32", "FP64")


def _inputs(*names: str, kind: str, dims: tuple[int, ...]) -> tuple[ModelInput, ...]:
    return tuple(ModelInput(name=name, data_type=kind, dims=dims) for name in names)


def _outputs(*names: str, kind: str, dims: tuple[int, ...]) -> tuple[ModelOutput, ...]:
    return tuple(ModelOutput(name=name, data_type=kind, dims=dims) for name in names)


def _answer(request: InferRequest, *outputs: Tensor) -> InferResponse:
    wanted = request.outputs
    kept = tuple(output for output in outputs if not wanted or output.name in wanted)
    return InferResponse(request.model_name, request.version, request.id, kept)


async def _add_and_subtract(config: ModelConfig, request: InferRequest) -> InferResponse:
    a, b = request.inputs[0].as_numpy(), request.inputs[1].as_numpy()
    if a.flat[0] < 0:
        raise Internal("A starts below zero")
    return _answer(request, Tensor.from_numpy("SUM", a + b), Tensor.from_numpy("DIFF", a - b))


async def _upper(config: ModelConfig, request: InferRequest) -> InferResponse:
    text = request.inputs[0].as_numpy()
    upper = np.array([t.upper() for t in text.reshape(-1)], dtype=np.object_)
    length = np.array([len(t) for t in text.reshape(-1)], dtype=np.int64)
    return _answer(
        request,
        Tensor.from_numpy("UPPER", upper.reshape(text.shape)),
        Tensor.from_numpy("LENGTH", length.reshape(text.shape)),
    )


async def _types(config: ModelConfig, request: InferRequest) -> InferResponse:
    outputs = [Tensor(f"{t.name}_OUT", t.datatype, t.shape, t.data) for t in request.inputs]
    return _answer(request, *outputs)


def _models() -> list[FakeModel]:
    identity = ModelConfig(
        name="identity",
        backend="python",
        max_batch_size=8,
        input=_inputs("INPUT0", kind="TYPE_FP32", dims=(-1,)),
        output=_outputs("OUTPUT0", kind="TYPE_FP32", dims=(-1,)),
    )
    addsub = ModelConfig(
        name="addsub",
        backend="python",
        input=_inputs("A", "B", kind="TYPE_INT32", dims=(4,)),
        output=_outputs("SUM", "DIFF", kind="TYPE_INT32", dims=(4,)),
    )
    strings = ModelConfig(
        name="strings",
        backend="python",
        max_batch_size=4,
        input=_inputs("TEXT", kind="TYPE_STRING", dims=(-1,)),
        output=(
            *_outputs("UPPER", kind="TYPE_STRING", dims=(-1,)),
            *_outputs("LENGTH", kind="TYPE_INT64", dims=(-1,)),
        ),
    )
    types = ModelConfig(
        name="types",
        backend="python",
        input=tuple(ModelInput(name=t, data_type=f"TYPE_{t}", dims=(-1,)) for t in TYPES),
        output=tuple(
            ModelOutput(name=f"{t}_OUT", data_type=f"TYPE_{t}", dims=(-1,)) for t in TYPES
        ),
    )
    stream = ModelConfig(
        name="stream", backend="python", model_transaction_policy=TransactionPolicy(decoupled=True)
    )
    return [
        FakeModel(identity),
        FakeModel(addsub, _add_and_subtract),
        FakeModel(strings, _upper),
        FakeModel(types, _types),
        FakeModel(stream),
    ]


@pytest.fixture
def server() -> FakeServer:
    return FakeServer(_models())


@pytest.fixture
async def http_port(server: FakeServer) -> AsyncIterator[int]:
    pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
    from microkernel_http.frontend import HttpFrontend
    from microkernel_http.settings import HttpSettings

    frontend = HttpFrontend(server, HttpSettings(address="127.0.0.1", port=0))
    line = await frontend.start()
    assert line == f"Started HTTPService at 127.0.0.1:{frontend.port}"
    yield frontend.port
    await frontend.stop(5)


@pytest.fixture
async def grpc_port(server: FakeServer) -> AsyncIterator[int]:
    pytest.importorskip("grpc", reason="the extra 'grpc' is missing")
    from microkernel_grpc.frontend import GrpcFrontend
    from microkernel_grpc.settings import GrpcSettings

    frontend = GrpcFrontend(server, GrpcSettings(address="127.0.0.1", port=0))
    line = await frontend.start()
    assert line == f"Started GRPCInferenceService at 127.0.0.1:{frontend.port}"
    yield frontend.port
    await frontend.stop(5)


@pytest.fixture
async def channel(grpc_port: int) -> AsyncIterator[Any]:
    """A channel of gRPC to the front end."""
    grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as opened:
        yield opened


HttpServing: TypeAlias = Callable[..., AbstractAsyncContextManager[Any]]
"""Called with settings, serves HTTP on a free port of 127.0.0.1; gives the front end."""


@pytest.fixture
def http_serving(server: FakeServer) -> HttpServing:
    pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
    from microkernel_http.frontend import HttpFrontend
    from microkernel_http.settings import HttpSettings

    @asynccontextmanager
    async def serving(**settings: Any) -> AsyncIterator[HttpFrontend]:
        frontend = HttpFrontend(server, HttpSettings(**{"address": "127.0.0.1", **settings}))
        await frontend.start()
        try:
            yield frontend
        finally:
            await frontend.stop(5)

    return lambda **settings: serving(**{"port": 0, **settings})


class Site:
    """A front end over HTTP, to be asked anything."""

    def __init__(self, port: int, session: Any) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._session = session

    async def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of the answer; what is no bytes is sent as JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        asked = self._session.request(method, self._url + path, data=data, headers=headers)
        async with asked as answer:
            return answer.status, answer.headers, await answer.read()

    async def status(self, method: str, path: str, body: Any = None, **headers: str) -> int:
        """The status of the answer."""
        return (await self.ask(method, path, body, headers))[0]


@pytest.fixture
def http_site() -> Callable[[Any], AbstractAsyncContextManager[Site]]:
    """Called with a front end, serves it."""
    aiohttp = pytest.importorskip("aiohttp", reason="the extra 'http' is missing")

    @asynccontextmanager
    async def serving(frontend: Any) -> AsyncIterator[Site]:
        await frontend.start()
        plain = aiohttp.ClientSession(
            auto_decompress=False, skip_auto_headers=["Accept-Encoding", "Content-Type"]
        )
        try:
            async with plain:
                yield Site(frontend.port, plain)
        finally:
            await frontend.stop(5)

    return serving


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a root, certificates by it of a server and of a client, and one of a stranger,
    each NAME.crt with its NAME.key."""
    if shutil.which("openssl") is None:
        pytest.skip("the command openssl is missing")
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("root", "stranger"):
        _openssl(folder, f"req -x509 -subj /CN={name} {_NEW_KEY} {name}.key -out {name}.crt")
    for name in ("server", "client"):
        _openssl(folder, f"req -subj /CN={name} {_NEW_KEY} {name}.key -out {name}.csr")
        _openssl(
            folder,
            f"x509 -req -in {name}.csr -out {name}.crt -extfile names -days 2 "
            "-CA root.crt -CAkey root.key -CAcreateserial",
        )
    return folder


_NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout"


def _openssl(folder: Path, command: str) -> None:
    subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
