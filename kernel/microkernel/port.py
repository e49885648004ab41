"""The port: what every caller of the server uses, front ends, command line and nested calls alike.

Requests and answers are plain data and every call is a coroutine, so that the port can be spoken
across a process boundary. All errors are `MicrokernelError`s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from microkernel.config.model import ModelConfig
from microkernel.request import LATEST, InferRequest, InferResponse
from microkernel.tensor import Shape


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """The server's name and version, and the protocol extensions it offers."""

    name: str
    version: str
    extensions: Sequence[str]


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """A tensor as clients see it: the batch dimension leads as -1 where the model batches."""

    name: str
    datatype: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model's ready versions (or just the one asked for), platform, inputs and outputs."""

    name: str
    versions: Sequence[str]
    platform: str
    inputs: Sequence[TensorMetadata]
    outputs: Sequence[TensorMetadata]


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """One line of the repository index. `version`, `state` and `reason` are "" where there is
    none."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


class Server(Protocol):
    """The port. A version of LATEST (-1) means the highest ready one."""

    async def infer(self, request: InferRequest) -> InferResponse:
        """Run one request. The tensors of the response are views that stay valid as long as the
        response lives.

        Raises NotFound or Unavailable for a model that does not serve, InvalidArgument for a
        request that does not fit the model's configuration, Unsupported for a decoupled model,
        Unavailable when a queue or a worker gave the request up, and whatever error the backend
        answered. Cancelling the call abandons the request.
        """
        ...

    async def live(self) -> bool:
        """Whether the server has started. Raises Unavailable while it exits."""
        ...

    async def ready(self) -> bool:
        """Whether the server is ready for requests, by `--strict-readiness`. Raises Unavailable
        while it exits."""
        ...

    async def model_ready(self, name: str, version: int = LATEST) -> bool:
        """Whether a model version is ready; False for an unknown one."""
        ...

    async def metadata(self) -> ServerMetadata:
        """Name, version and extensions of the server."""
        ...

    async def model_metadata(self, name: str, version: int = LATEST) -> ModelMetadata:
        """Names, types and shapes of a model's tensors. Raises NotFound and Unavailable as `infer`
        does."""
        ...

    async def model_config(self, name: str, version: int = LATEST) -> ModelConfig:
        """The configuration in force. Raises NotFound and Unavailable as `infer` does."""
        ...

    async def repository_index(self, *, ready: bool = False) -> Sequence[ModelIndex]:
        """Every model version in name order, or only those that are ready."""
        ...

    async def metrics(self) -> bytes:
        """The metrics page in Prometheus' text format."""
        ...
