"""The port: what every caller of the server uses, front ends, command line and nested calls alike.

Requests and answers are plain data and every call is a coroutine, so that the port can be spoken
across a process boundary. All errors are `MicrokernelError`s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from microkernel.config.model import ModelConfig
from microkernel.request import LATEST, InferRequest, InferResponse
from microkernel.stats import ModelStats
from microkernel.tensor import Shape
from microkernel.trace import Trace

if TYPE_CHECKING:
    from microkernel.responses import ResponseStream  # asyncio, which a worker has no use for


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


@dataclass(frozen=True, slots=True)
class SystemRegion:
    """A region of POSIX shared memory that a client registers: `byte_size` bytes of the object
    `key`, from `offset`."""

    name: str
    key: str
    byte_size: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class CudaRegion:
    """A region of a GPU's memory that a client registers: the first `byte_size` bytes of the
    allocation behind `raw_handle`, a handle of CUDA's inter-process communication."""

    name: str
    raw_handle: bytes
    device_id: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged: the file ("" for the console), the severities, the verbosity, the form
    (`default` or `ISO8601`)."""

    log_file: str = ""
    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_verbose_level: int = 0
    log_format: str = "default"


@dataclass(frozen=True, slots=True)
class LogChanges:
    """Which settings of the log to change; None leaves one as it is."""

    log_info: bool | None = None
    log_warning: bool | None = None
    log_error: bool | None = None
    log_verbose_level: int | None = None
    log_format: str | None = None


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What a model version has done since it was loaded: a copy of its counters."""

    name: str
    version: str
    stats: ModelStats


@dataclass(frozen=True, slots=True)
class TraceContext:
    """What a caller says of the trace its request belongs to, as the W3C headers have it."""

    traceparent: str = ""
    tracestate: str = ""


NO_CONTEXT = TraceContext()


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """How requests are traced: `levels` of OFF, TIMESTAMPS and TENSORS; one of `rate` requests;
    `count` traces are left to collect, -1 for any number; the file is written every `log_frequency`
    traces, 0 for at the end. `options` are those of the OpenTelemetry mode by name."""

    trace_file: str = ""
    trace_level: tuple[str, ...] = ("OFF",)
    trace_rate: int = 1000
    trace_count: int = -1
    log_frequency: int = 0
    trace_mode: str = "triton"
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TraceChanges:
    """Which settings of tracing to change, as clients write them, by name; None takes back what was
    set before."""

    values: Mapping[str, tuple[str, ...] | None]


class Port(Protocol):
    """The port. A version of LATEST (-1) means the highest ready one."""

    async def infer(self, request: InferRequest) -> InferResponse:
        """Run one request. The tensors of the response are views that stay valid as long as the
        response lives.

        Raises NotFound or Unavailable for a model that does not serve, InvalidArgument for a
        request that does not fit the model's configuration, Unsupported for a decoupled model
        that does not answer exactly once, Unavailable when a queue or a worker gave the request up,
        and whatever error the backend answered. Cancelling the call abandons the request.
        """
        ...

    async def stream(self, request: InferRequest) -> "ResponseStream":
        """Run one request of any model, also a decoupled one, and give its responses as they come.

        Returns when the request is accepted; raises for one that is refused what `infer` raises
        for it. What goes wrong later is a response with an `error`. The stream ends with the first
        response that is `final`. A model that is not decoupled gives exactly one response. Closing
        the stream abandons the request.
        """
        ...

    async def begin_trace(self, request: InferRequest, context: TraceContext) -> Trace | None:
        """The trace to put on a request before it is run, by the settings of its model; None for
        one that is not sampled. A valid W3C `context` in OpenTelemetry mode forces sampling. A
        request whose `trace` is set is made on behalf of the one which that trace is of: it gets
        a trace of its own, the child of that one, whatever the settings say."""
        ...

    async def end_trace(self, trace: Trace) -> None:
        """The request is answered and nothing more will be recorded: hand the trace in. One that
        has been handed in before is left alone."""
        ...

    async def trace_settings(
        self, model: str = "", changes: TraceChanges | None = None
    ) -> TraceSettings:
        """The settings of tracing for a model, or the global ones; changed first where `changes`
        says so. Raises InvalidArgument for an unknown model and settings that cannot be, and
        Unsupported for the file, which cannot be changed."""
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

    async def statistics(self, name: str = "", version: int = LATEST) -> Sequence[ModelStatistics]:
        """The counters of a model's ready versions, or of one of them; of all models where no name
        is given. Raises InvalidArgument for a model or version that is not ready."""
        ...

    async def load_model(
        self,
        name: str,
        config: str | None = None,
        files: Mapping[str, bytes] | None = None,
        directory: str = "",
    ) -> None:
        """Load a model, or load it again if it changed; returns when it serves. `config` is a
        configuration as JSON text in place of the repository's, `files` the model's files by their
        path below its directory in place of the repository's directory. With `directory` the model
        that lies there goes by `name`, whatever its configuration says, until it is unloaded.

        Raises Unavailable unless the control mode is explicit, InvalidArgument for a name that
        cannot be one and where a version does not come up, and Internal where there is no such
        model or its configuration cannot be used. What served before goes on serving then.
        """
        ...

    async def unload_model(self, name: str, *, unload_dependents: bool = False) -> None:
        """Take a model down: it gets no new requests when this returns, what it accepted still
        finishes. Ensembles that need it go with it, and come back when it does. With
        `unload_dependents`, what an ensemble is composed of goes too, unless it was loaded by its
        own name or others need it. A model that is not loaded is left alone. Raises Unavailable
        unless the control mode is explicit."""
        ...

    async def log_settings(self, changes: LogChanges | None = None) -> LogSettings:
        """The log's settings, changed first where `changes` says so."""
        ...

    async def register_system_shared_memory(self, region: SystemRegion) -> None:
        """Register a region. Raises Unsupported unless `--allow-client-shm`, InvalidArgument for a
        name or key that cannot be one and a region beyond its object, AlreadyExists for a name that
        is taken, and Internal where the object cannot be opened."""
        ...

    async def system_shared_memory(self, name: str = "") -> Sequence[SystemRegion]:
        """The registered regions, or the one of that name. Raises NotFound."""
        ...

    async def unregister_system_shared_memory(self, name: str = "") -> None:
        """Forget a region, or all of them; requests that use it go on. Raises Unsupported unless
        `--allow-client-shm`."""
        ...

    async def register_cuda_shared_memory(self, region: CudaRegion) -> None:
        """Register a region of a GPU's memory; names are shared with the system's regions. Raises
        Unsupported unless `--allow-client-shm`, InvalidArgument without a name, without GPUs and
        for a handle, device or size that cannot be one, AlreadyExists for a name that is taken, and
        Internal where the handle cannot be opened."""
        ...

    async def cuda_shared_memory(self, name: str = "") -> Sequence[CudaRegion]:
        """The registered regions of GPUs, or the one of that name. Raises NotFound."""
        ...

    async def unregister_cuda_shared_memory(self, name: str = "") -> None:
        """As `unregister_system_shared_memory`, for regions of GPUs."""
        ...

    async def metrics(self) -> bytes:
        """The metrics page in Prometheus' text format."""
        ...
