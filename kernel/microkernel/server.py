"""The server: the port's implementation over the model table."""

import asyncio
from collections.abc import Mapping, Sequence
from importlib.metadata import version as package_version
from pathlib import Path

import structlog

from microkernel.config.model import ModelConfig, ModelInput, ModelOutput
from microkernel.errors import InvalidArgument, NotFound, Unavailable, Unsupported
from microkernel.log import LogControl
from microkernel.metrics.custom import CustomMetrics
from microkernel.metrics.models import Series, labels_of
from microkernel.metrics.page import MetricsPage
from microkernel.models.catalogue import Catalogue, check_name, not_polled
from microkernel.models.table import ModelTable
from microkernel.port import (
    CudaRegion,
    LogChanges,
    LogSettings,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ServerMetadata,
    SystemRegion,
    TensorMetadata,
    TraceChanges,
    TraceContext,
    TraceSettings,
)
from microkernel.repository.override import Override
from microkernel.request import LATEST, InferRequest, InferResponse
from microkernel.responses import ResponseStream
from microkernel.settings import ServerSettings
from microkernel.shared_memory import SharedMemory
from microkernel.tensor import BY_CONFIG_NAME
from microkernel.trace import Trace
from microkernel.tracing.tracer import Tracer

log = structlog.get_logger()

EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
"""The protocol extensions that are offered, in Triton's order."""


class KernelServer:
    """Answers every call of the port; see `microkernel.port.Port`."""

    def __init__(
        self,
        table: ModelTable,
        catalogue: Catalogue,
        log: LogControl,
        settings: ServerSettings,
        tracer: Tracer | None = None,
        page: MetricsPage | None = None,
    ) -> None:
        self._table = table
        self._catalogue = catalogue
        self._log = log
        self._name = settings.id
        self._strict = settings.strict_readiness
        self._explicit = settings.model_control_mode == "explicit"
        self._memory = SharedMemory(allowed=settings.allow_client_shm)
        self._metrics = page or MetricsPage(settings)
        self._tracer = tracer or Tracer()
        self._started = False
        self._exiting = False

    def started(self) -> None:
        """Loading is over: the server is live."""
        self._started = True
        self._metrics.start()

    def exiting(self) -> None:
        """From now on the server is not healthy and loads nothing; requests are still answered."""
        self._exiting = True
        self._metrics.stop()

    @property
    def custom_metrics(self) -> CustomMetrics:
        """The families that models, and the program around the server, declare."""
        return self._metrics.custom

    async def infer(self, request: InferRequest) -> InferResponse:
        """See `Port.infer`."""
        model = self._table.find(request.model_name, request.version)
        if request.shared_inputs or request.shared_outputs:
            return await self._memory.infer(request, model.infer, model.check_ahead)
        return await model.infer(request)

    async def stream(self, request: InferRequest) -> ResponseStream:
        """See `Port.stream`."""
        model = self._table.find(request.model_name, request.version)
        if request.shared_inputs or request.shared_outputs:
            return await self._memory.stream(request, model.stream, model.check_ahead)
        return await model.stream(request)

    async def begin_trace(self, request: InferRequest, context: TraceContext) -> Trace | None:
        """See `Port.begin_trace`."""
        if not self._tracer.active and request.trace is None:
            return None
        try:
            model = self._table.find(request.model_name, request.version)
        except (NotFound, Unavailable):
            return None  # running the request says what is wrong
        return self._tracer.begin(request, model.version, context)

    async def end_trace(self, trace: Trace) -> None:
        """See `Port.end_trace`."""
        self._tracer.end(trace)

    async def trace_settings(
        self, model: str = "", changes: TraceChanges | None = None
    ) -> TraceSettings:
        """See `Port.trace_settings`."""
        if model and not self._table.ready(model):
            raise InvalidArgument(f"Request for unknown model : {model}")
        if changes is not None and changes.values:
            self._tracer.change(model, changes)
        return self._tracer.settings(model)

    async def live(self) -> bool:
        """See `Port.live`."""
        self._check_exit()
        return self._started

    async def ready(self) -> bool:
        """See `Port.ready`."""
        self._check_exit()
        return self._started and (not self._strict or await self._table.all_say_ready())

    def _check_exit(self) -> None:
        if self._exiting:
            raise Unavailable("Server exiting")

    async def model_ready(self, name: str, version: int = LATEST) -> bool:
        """See `Port.model_ready`."""
        return not self._exiting and await self._table.says_ready(name, version)

    async def metadata(self) -> ServerMetadata:
        """See `Port.metadata`."""
        return ServerMetadata(self._name, package_version("microkernel"), EXTENSIONS)

    async def model_metadata(self, name: str, version: int = LATEST) -> ModelMetadata:
        """See `Port.model_metadata`."""
        config = self._table.find(name, version).config
        versions = self._table.ready_versions(name) if version == LATEST else [version]
        return ModelMetadata(
            name,
            [str(v) for v in versions],
            config.platform or config.backend,
            _tensors(config.input, config),
            _tensors(config.output, config),
        )

    async def model_config(self, name: str, version: int = LATEST) -> ModelConfig:
        """See `Port.model_config`."""
        return self._table.find(name, version).config

    async def repository_index(self, *, ready: bool = False) -> Sequence[ModelIndex]:
        """See `Port.repository_index`."""
        return self._table.index(ready=True) if ready else await self._catalogue.index()

    async def statistics(self, name: str = "", version: int = LATEST) -> Sequence[ModelStatistics]:
        """See `Port.statistics`."""
        models = [m for m in self._table.serving() if m.ready]
        if name:
            models = [m for m in models if m.config.name == name]
            if not models:
                raise InvalidArgument(f"requested model '{name}' is not available")
        if version != LATEST:
            models = [m for m in models if m.version == version]
            if not models:
                raise InvalidArgument(
                    f"requested model version is not available for model '{name}'"
                )
        return [ModelStatistics(m.config.name, str(m.version), m.stats.copy()) for m in models]

    async def load_model(
        self,
        name: str,
        config: str | None = None,
        files: Mapping[str, bytes] | None = None,
        directory: str = "",
    ) -> None:
        """See `Port.load_model`."""
        self._check_explicit()
        self._check_exit()
        check_name(name)
        try:
            override = await asyncio.to_thread(Override.of, config, files or {})
        except InvalidArgument as error:
            log.error("bad load request", model=name, reason=str(error))  # noqa: TRY400
            raise not_polled(name) from None
        await self._catalogue.load(name, override, Path(directory) if directory else None)

    async def unload_model(self, name: str, *, unload_dependents: bool = False) -> None:
        """See `Port.unload_model`."""
        self._check_explicit()
        await self._catalogue.unload(name, dependents=unload_dependents)

    async def register_repository(self, repository: Path) -> None:
        """Look for models in one more repository. Raises Unsupported unless the control mode is
        explicit, AlreadyExists for one that is known, InvalidArgument for one that is not there."""
        self._check_registration()
        await self._catalogue.register(repository)

    async def unregister_repository(self, repository: Path) -> None:
        """Look there no more; what was loaded from it goes on serving. Raises Unsupported unless
        the control mode is explicit, and NotFound."""
        self._check_registration()
        self._catalogue.unregister(repository)

    def _check_registration(self) -> None:
        if not self._explicit:
            raise Unsupported(
                "repository registration is not allowed if model control mode is not EXPLICIT"
            )

    def _check_explicit(self) -> None:
        if not self._explicit:
            raise Unavailable("explicit model load / unload is not allowed if polling is enabled")

    async def register_system_shared_memory(self, region: SystemRegion) -> None:
        """See `Port.register_system_shared_memory`."""
        self._memory.register(region)

    async def system_shared_memory(self, name: str = "") -> Sequence[SystemRegion]:
        """See `Port.system_shared_memory`."""
        return self._memory.status(name)

    async def unregister_system_shared_memory(self, name: str = "") -> None:
        """See `Port.unregister_system_shared_memory`."""
        self._memory.unregister(name)

    async def register_cuda_shared_memory(self, region: CudaRegion) -> None:
        """See `Port.register_cuda_shared_memory`."""
        await self._memory.register_cuda(region)

    async def cuda_shared_memory(self, name: str = "") -> Sequence[CudaRegion]:
        """See `Port.cuda_shared_memory`."""
        return self._memory.cuda_status(name)

    async def unregister_cuda_shared_memory(self, name: str = "") -> None:
        """See `Port.unregister_cuda_shared_memory`."""
        self._memory.unregister_cuda(name)

    async def log_settings(self, changes: LogChanges | None = None) -> LogSettings:
        """See `Port.log_settings`."""
        return self._log.settings if changes is None else self._log.change(changes)

    async def metrics(self) -> bytes:
        """See `Port.metrics`."""
        await self._metrics.ready()
        gpus = self._metrics.gpus
        return await self._metrics.render(
            [
                Series(labels_of(model.config, model.version, gpus), model.stats)
                for model in self._table.loaded_versions()
            ]
        )


def _tensors(
    tensors: Sequence[ModelInput] | Sequence[ModelOutput], config: ModelConfig
) -> list[TensorMetadata]:
    lead = (-1,) if config.max_batch_size > 0 else ()
    return [
        TensorMetadata(
            t.name,
            BY_CONFIG_NAME[t.data_type].name,
            t.dims if t.is_shape_tensor else (*lead, *t.dims),
        )
        for t in tensors
    ]
