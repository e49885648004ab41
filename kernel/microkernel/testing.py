"""What tests of plug-ins may use: a server in memory that answers as the test says."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from microkernel.config.model import ModelConfig, ModelInput, ModelOutput
from microkernel.errors import MicrokernelError, NotFound, Unavailable, Unsupported
from microkernel.port import ModelIndex, ModelMetadata, ServerMetadata, TensorMetadata
from microkernel.request import LATEST, InferRequest, InferResponse
from microkernel.tensor import BY_CONFIG_NAME

Answer: TypeAlias = Callable[[ModelConfig, InferRequest], Awaitable[InferResponse]]


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


@dataclass(slots=True)
class FakeModel:
    """One canned model: its configuration, and the coroutine that answers its requests.

    The coroutine gets the request with the version that runs in place of LATEST; what it raises
    goes to the caller.
    """

    config: ModelConfig
    answer: Answer = echo
    version: int = 1
    ready: bool = True

    def metadata(self) -> ModelMetadata:
        """What clients are told, derived from the configuration."""
        config = self.config
        return ModelMetadata(
            config.name,
            [str(self.version)],
            config.platform or config.backend,
            [self._tensor(tensor) for tensor in config.input],
            [self._tensor(tensor) for tensor in config.output],
        )

    def _tensor(self, tensor: ModelInput | ModelOutput) -> TensorMetadata:
        batch = (-1,) if self.config.max_batch_size else ()
        return TensorMetadata(
            tensor.name, BY_CONFIG_NAME[tensor.data_type].name, (*batch, *tensor.dims)
        )


class FakeServer:
    """The port `Server` in memory, for the tests of front ends.

    It looks models up and refuses what does not serve as the real server does; it checks nothing
    else about a request. Everything it answers from is public and may be changed by a test at any
    time: `models` by name, `is_live` and `is_ready`, `about`, `page` (the metrics), and
    `failure`, an error that every call raises while it is set. `requests` collects what `infer`
    received.
    """

    def __init__(self, models: Iterable[FakeModel] = ()) -> None:
        self.models = {model.config.name: model for model in models}
        self.is_live = True
        self.is_ready = True
        self.about = ServerMetadata("triton", "0.0.0", ["binary_tensor_data", "parameters"])
        self.page = b""
        self.failure: MicrokernelError | None = None
        self.requests: list[InferRequest] = []

    async def infer(self, request: InferRequest) -> InferResponse:
        """Record the request and give the model's answer."""
        model = self._model(request.model_name, request.version)
        if model.config.decoupled:
            raise Unsupported("doesn't support models with decoupled transaction policy")
        self.requests.append(request)
        return await model.answer(model.config, replace(request, version=model.version))

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

    async def metadata(self) -> ServerMetadata:
        """`about`."""
        self._fail()
        return self.about

    async def model_metadata(self, name: str, version: int = LATEST) -> ModelMetadata:
        """The model's metadata, or NotFound."""
        return self._model(name, version).metadata()

    async def model_config(self, name: str, version: int = LATEST) -> ModelConfig:
        """The model's configuration, or NotFound."""
        return self._model(name, version).config

    async def repository_index(self, *, ready: bool = False) -> Sequence[ModelIndex]:
        """A line per model; one that is not ready was unloaded."""
        self._fail()
        return [
            ModelIndex(name, str(model.version), "READY")
            if model.ready
            else ModelIndex(name, str(model.version), "UNAVAILABLE", "unloaded")
            for name, model in sorted(self.models.items())
            if model.ready or not ready
        ]

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
