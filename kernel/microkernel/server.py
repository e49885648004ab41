"""The server: the port's implementation over the model table."""

from collections.abc import Sequence
from importlib.metadata import version as package_version

from microkernel.config.model import ModelConfig, ModelInput, ModelOutput
from microkernel.errors import Unavailable
from microkernel.models.table import ModelTable
from microkernel.port import ModelIndex, ModelMetadata, ServerMetadata, TensorMetadata
from microkernel.request import LATEST, InferRequest, InferResponse
from microkernel.tensor import BY_CONFIG_NAME

EXTENSIONS = ("model_repository", "model_configuration", "binary_tensor_data", "parameters")
"""The protocol extensions that are offered, in Triton's order."""


class KernelServer:
    """Answers every call of the port; see `microkernel.port.Server`."""

    def __init__(self, table: ModelTable, *, name: str, strict_readiness: bool) -> None:
        self._table = table
        self._name = name
        self._strict = strict_readiness
        self._started = False
        self._exiting = False

    def started(self) -> None:
        """Loading is over: the server is live."""
        self._started = True

    def exiting(self) -> None:
        """From now on the server is not healthy; requests are still answered."""
        self._exiting = True

    async def infer(self, request: InferRequest) -> InferResponse:
        """See `Server.infer`."""
        return await self._table.find(request.model_name, request.version).infer(request)

    async def live(self) -> bool:
        """See `Server.live`."""
        self._check_exit()
        return self._started

    async def ready(self) -> bool:
        """See `Server.ready`."""
        self._check_exit()
        return self._started and (not self._strict or self._table.all_ready())

    def _check_exit(self) -> None:
        if self._exiting:
            raise Unavailable("Server exiting")

    async def model_ready(self, name: str, version: int = LATEST) -> bool:
        """See `Server.model_ready`."""
        return not self._exiting and self._table.ready(name, version)

    async def metadata(self) -> ServerMetadata:
        """See `Server.metadata`."""
        return ServerMetadata(self._name, package_version("microkernel"), EXTENSIONS)

    async def model_metadata(self, name: str, version: int = LATEST) -> ModelMetadata:
        """See `Server.model_metadata`."""
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
        """See `Server.model_config`."""
        return self._table.find(name, version).config

    async def repository_index(self, *, ready: bool = False) -> Sequence[ModelIndex]:
        """See `Server.repository_index`."""
        return self._table.index(ready=ready)

    async def metrics(self) -> bytes:
        """See `Server.metrics`."""
        from microkernel.metrics import Series, page  # noqa: PLC0415 - imports prometheus_client

        return page(
            Series(
                {
                    "model": model.config.name,
                    "version": str(model.version),
                    **{f"_{tag}": value for tag, value in model.config.metric_tags.items()},
                },
                model.stats,
            )
            for model in self._table.loaded_versions()
        )


def _tensors(
    tensors: Sequence[ModelInput] | Sequence[ModelOutput], config: ModelConfig
) -> list[TensorMetadata]:
    lead = (-1,) if config.max_batch_size > 0 else ()
    return [
        TensorMetadata(t.name, BY_CONFIG_NAME[t.data_type].name, (*lead, *t.dims)) for t in tensors
    ]
