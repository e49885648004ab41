"""A server in memory that answers as the test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

from microkernel import port
from microkernel.classification import Labels, classify_outputs
from microkernel.config.model import ModelConfig, ModelInput, ModelOutput
from microkernel.errors import (
    InvalidArgument,
    MicrokernelError,
    NotFound,
    Unavailable,
    Unsupported,
)
from microkernel.log import LogControl
from microkernel.models.catalogue import check_name, not_polled
from microkernel.repository.override import Override
from microkernel.request import LATEST, InferRequest, InferResponse
from microkernel.responses import ResponseStream
from microkernel.shared_memory import SharedMemory
from microkernel.stats import ModelStats
from microkernel.tensor import BY_CONFIG_NAME
from microkernel.trace import Trace

Answer: TypeAlias = Callable[[ModelConfig, InferRequest], Awaitable[InferResponse]]
Responses: TypeAlias = Callable[[ModelConfig, InferRequest], AsyncIterator[InferResponse]]


async def echo(config: ModelConfig, request: InferRequest) -> InferResponse:
    """Answer each input under the name of the configuration's output at the same place, in the
    order of the outputs; only those that were asked for."""
    pairs = zip(config.input, config.output, strict=True)
    outputs = tuple(
        replace(tensor, name=there.name)
        for here, there in pairs
        if (tensor := request.input(here.name)) is not None
        and (not request.outputs or there.name in request.outputs)
    )
    return InferResponse(request.model_name, request.version, request.id, outputs)


async def echo_once(config: ModelConfig, request: InferRequest) -> AsyncIterator[InferResponse]:
    """One final response, as `echo` gives it."""
    yield await echo(config, request)


@dataclass(slots=True)
class FakeModel:
    """One canned model: its configuration, the coroutine that answers its requests, the labels of
    its outputs, and its counters, which stay as the test sets them.

    The coroutine gets the request with the version that runs in place of LATEST; what it raises
    goes to the caller. `responses` gives those of a decoupled model.
    """

    config: ModelConfig
    answer: Answer = echo
    responses: Responses = echo_once
    version: int = 1
    ready: bool = True
    labels: Labels = field(default_factory=dict)
    stats: ModelStats = field(default_factory=ModelStats)

    def metadata(self) -> port.ModelMetadata:
        """What clients are told, derived from the configuration."""
        config = self.config
        return port.ModelMetadata(
            config.name,
            [str(self.version)],
            config.platform or config.backend,
            [self._tensor(tensor) for tensor in config.input],
            [self._tensor(tensor) for tensor in config.output],
        )

    def _tensor(self, tensor: ModelInput | ModelOutput) -> port.TensorMetadata:
        batch = (-1,) if self.config.max_batch_size else ()
        datatype = BY_CONFIG_NAME[tensor.data_type].name
        return port.TensorMetadata(tensor.name, datatype, (*batch, *tensor.dims))


class FakeServer:
    """The port in memory, for the tests of front ends.

    It looks models up and refuses what does not serve as the real server does, and serves tensors
    in shared memory; it checks nothing else about a request. Everything it answers from is public
    and may be changed by a test at any time: `models` by name, `is_live` and `is_ready`, `about`,
    `log`, `memory`, `page` (the metrics), and `failure`, an error that every call raises while it
    is set. `requests` collects what `infer` and `stream` received; `loads` and `unloads` what
    was to be loaded and unloaded, `directories` from where, by name; `traces` the traces of
    requests, made while `traced` is set, and `trace_changes` what was to be changed of `tracing`.
    """

    def __init__(self, models: Iterable[FakeModel] = ()) -> None:
        self.models = {model.config.name: model for model in models}
        self.is_live = self.is_ready = True
        self.log = LogControl(port.LogSettings())
        self.memory = SharedMemory(allowed=False)
        self.about = port.ServerMetadata("triton", "0.0.0", ["binary_tensor_data", "parameters"])
        self.page = b""
        self.failure: MicrokernelError | None = None
        self.requests: list[InferRequest] = []
        self.loads: list[tuple[str, str | None, Mapping[str, bytes]]] = []
        self.directories: dict[str, str] = {}
        self.unloads: list[tuple[str, bool]] = []
        self.traced = False
        self.traces: list[Trace] = []
        self.tracing = port.TraceSettings()
        self.trace_changes: list[tuple[str, port.TraceChanges]] = []
        self._playing: set[asyncio.Future[None]] = set()

    async def infer(self, request: InferRequest) -> InferResponse:
        """Record the request and give the model's answer, with the classes that are asked for."""
        model = self._model(request.model_name, request.version)
        if model.config.decoupled:
            raise Unsupported("doesn't support models with decoupled transaction policy")
        self.requests.append(request)
        request = replace(request, version=model.version)
        answer = partial(model.answer, model.config)
        if request.shared_inputs or request.shared_outputs:
            response = await self.memory.infer(request, answer)
        else:
            response = await answer(request)
        if not request.classifications:
            return response
        batches = model.config.max_batch_size > 0
        return classify_outputs(response, request.classifications, model.labels, batches=batches)

    async def stream(self, request: InferRequest) -> ResponseStream:
        """Record the request and give the model's responses; an error that the model raises is the
        last one."""
        model = self._model(request.model_name, request.version)
        self.requests.append(request)
        request = replace(request, version=model.version)
        start = partial(self._start, model)
        if request.shared_inputs or request.shared_outputs:
            return await self.memory.stream(request, start)
        return await start(request)

    async def _start(self, model: FakeModel, request: InferRequest) -> ResponseStream:
        task = asyncio.ensure_future(self._play(model, request, lambda r: stream.put(r)))
        self._playing.add(task)
        task.add_done_callback(self._playing.discard)
        stream = ResponseStream(task.cancel)
        return stream

    async def _play(
        self, model: FakeModel, request: InferRequest, put: Callable[[InferResponse], None]
    ) -> None:
        try:
            if not model.config.decoupled:
                put(await model.answer(model.config, request))
                return
            async for response in model.responses(model.config, request):
                put(response)
        except MicrokernelError as error:
            put(InferResponse(request.model_name, model.version, request.id, (), error=error))

    async def begin_trace(self, request: InferRequest, context: port.TraceContext) -> Trace | None:
        """A trace while `traced` says so, which keeps what the caller said of its own."""
        if not self.traced:
            return None
        return Trace(1, request.model_name, 1, request.id, context=context.traceparent)

    async def end_trace(self, trace: Trace) -> None:
        """Keep the trace in `traces`."""
        self.traces.append(trace)

    async def trace_settings(
        self, model: str = "", changes: port.TraceChanges | None = None
    ) -> port.TraceSettings:
        """`tracing`; what is to be changed is kept in `trace_changes`."""
        self._fail()
        if changes is not None:
            self.trace_changes.append((model, changes))
        return self.tracing

    async def live(self) -> bool:
        """`is_live`."""
        self._fail()
        return self.is_live

    async def ready(self) -> bool:
        """`is_ready`."""
        self._fail()
        return self.is_ready

    async def model_ready(self, name: str, version: int = LATEST) -> bool:
        """Whether there is such a model, in that version, and it is ready."""
        self._fail()
        model = self.models.get(name)
        return model is not None and model.ready and version in (LATEST, model.version)

    async def metadata(self) -> port.ServerMetadata:
        """`about`."""
        self._fail()
        return self.about

    async def model_metadata(self, name: str, version: int = LATEST) -> port.ModelMetadata:
        """The model's metadata, or NotFound."""
        return self._model(name, version).metadata()

    async def model_config(self, name: str, version: int = LATEST) -> ModelConfig:
        """The model's configuration, or NotFound."""
        return self._model(name, version).config

    async def repository_index(self, *, ready: bool = False) -> Sequence[port.ModelIndex]:
        """A line per model; one that is not ready was unloaded."""
        self._fail()
        return [
            port.ModelIndex(name, str(model.version), "READY")
            if model.ready
            else port.ModelIndex(name, str(model.version), "UNAVAILABLE", "unloaded")
            for name, model in sorted(self.models.items())
            if model.ready or not ready
        ]

    async def statistics(
        self, name: str = "", version: int = LATEST
    ) -> Sequence[port.ModelStatistics]:
        """The counters of the models, or of the one of that name."""
        self._fail()
        models = [m for m in self.models.values() if m.ready and name in ("", m.config.name)]
        if name and not models:
            raise InvalidArgument(f"requested model '{name}' is not available")
        if version != LATEST and all(model.version != version for model in models):
            raise InvalidArgument(f"requested model version is not available for model '{name}'")
        return [port.ModelStatistics(m.config.name, str(m.version), m.stats) for m in models]

    async def load_model(
        self,
        name: str,
        config: str | None = None,
        files: Mapping[str, bytes] | None = None,
        directory: str = "",
    ) -> None:
        """Record the call; the model is ready then, with the configuration that is given."""
        self._fail()
        check_name(name)
        self.loads.append((name, config, files or {}))
        if directory:
            self.directories[name] = directory
        try:
            model, override = self.models[name], Override.of(config, files or {})
        except (InvalidArgument, KeyError):
            raise not_polled(name) from None
        model.ready = True
        if override is not None:
            model.config = replace(override.config, name=name)

    async def unload_model(self, name: str, *, unload_dependents: bool = False) -> None:
        """Record the call; the model, if there is one, is not ready then."""
        self._fail()
        self.unloads.append((name, unload_dependents))
        if name in self.models:
            self.models[name].ready = False

    async def log_settings(self, changes: port.LogChanges | None = None) -> port.LogSettings:
        """The settings of `log`, changed first where `changes` says so."""
        self._fail()
        return self.log.settings if changes is None else self.log.change(changes)

    async def register_system_shared_memory(self, region: port.SystemRegion) -> None:
        """Register with `memory`."""
        self.memory.register(region)

    async def system_shared_memory(self, name: str = "") -> Sequence[port.SystemRegion]:
        """The regions of `memory`."""
        return self.memory.status(name)

    async def unregister_system_shared_memory(self, name: str = "") -> None:
        """Unregister from `memory`."""
        self.memory.unregister(name)

    async def register_cuda_shared_memory(self, region: port.CudaRegion) -> None:
        """Register with `memory`."""
        await self.memory.register_cuda(region)

    async def cuda_shared_memory(self, name: str = "") -> Sequence[port.CudaRegion]:
        """The regions of GPUs of `memory`."""
        return self.memory.cuda_status(name)

    async def unregister_cuda_shared_memory(self, name: str = "") -> None:
        """Unregister from `memory`."""
        self.memory.unregister_cuda(name)

    async def metrics(self) -> bytes:
        """`page`."""
        self._fail()
        return self.page

    def _model(self, name: str, version: int) -> FakeModel:
        self._fail()
        model, unknown = self.models.get(name), f"Request for unknown model: '{name}'"
        if model is None:
            raise NotFound(f"{unknown} is not found")
        if version not in (LATEST, model.version):
            raise NotFound(f"{unknown} version {version} is not found")
        if not model.ready and version == LATEST:
            raise NotFound(f"{unknown} has no available versions")
        if not model.ready:
            raise Unavailable(f"{unknown} version {version} is not at ready state")
        return model

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure
