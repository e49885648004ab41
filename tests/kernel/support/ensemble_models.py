"""Ensembles for tests, and models in memory for their steps."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from microkernel import InferRequest, InferResponse, MicrokernelError, ModelConfig, NotFound, Tensor
from microkernel.config.parse import parse_text
from microkernel.ensembles.fitting import fit
from microkernel.models.ensemble import EnsembleVersion, Equipment
from microkernel.models.serving import Company, Held, Holds
from microkernel.models.table import no_instance
from microkernel.responses import ResponseStream
from microkernel.stats import ModelStats
from microkernel.tracing.tracer import Tracer
from microkernel.workers.readiness import Readiness

Answers: TypeAlias = Callable[[InferRequest], Awaitable[InferResponse]]
Responses: TypeAlias = Callable[[InferRequest], AsyncIterator[InferResponse]]


def parsed(text: str) -> ModelConfig:
    """A configuration from its text."""
    return parse_text(text, "here")


def tensors(where: str, names: str, rest: str = "data_type: TYPE_INT32 dims: [ -1 ]") -> str:
    """Inputs or outputs of those names, apart by spaces."""
    return "".join(f'{where} {{ name: "{name}" {rest} }}\n' for name in names.split())


def step(model: str, inputs: str, outputs: str, version: int = -1) -> str:
    """A step; its maps are written `X=a Y=b`, the model's name first."""
    maps = [
        f'{kind} {{ key: "{key}" value: "{value}" }}'
        for kind, pairs in (("input_map", inputs), ("output_map", outputs))
        for key, _, value in (pair.partition("=") for pair in pairs.split())
    ]
    return f'step {{ model_name: "{model}" model_version: {version} {" ".join(maps)} }}\n'


def ensemble(
    name: str, inputs: str, outputs: str, *steps: str, more: str = "", limit: int = 0
) -> str:
    """The text of an ensemble's configuration; all its tensors are rows of integers."""
    limited = f"max_inflight_requests: {limit}\n" if limit else ""
    return (
        f'name: "{name}"\nplatform: "ensemble"\n{tensors("input", inputs)}'
        f"{tensors('output', outputs)}ensemble_scheduling {{\n{limited}{''.join(steps)}}}\n{more}"
    )


def model(name: str, inputs: str = "X", outputs: str = "Y", more: str = "") -> str:
    """The text of a model's configuration, for the step of an ensemble."""
    backend = f'name: "{name}"\nbackend: "odd"\n'
    return f"{backend}{tensors('input', inputs)}{tensors('output', outputs)}{more}"


DECOUPLED = "model_transaction_policy { decoupled: true }\n"


def row(name: str, *values: int) -> Tensor:
    """A tensor of integers."""
    return Tensor.from_numpy(name, np.array(values, np.int32))


def answer(request: InferRequest, *outputs: Tensor, **more: Any) -> InferResponse:
    """A response of a model."""
    return InferResponse(request.model_name, 1, request.id, outputs, **more)


async def doubled(request: InferRequest) -> InferResponse:
    """Twice the only input."""
    return answer(request, row("Y", *(2 * request.inputs[0].as_numpy())))


class Model:
    """A model in memory, which serves as loaded versions do. `requests` are those it got."""

    def __init__(
        self, config: ModelConfig, infer: Answers = doubled, responses: Responses | None = None
    ) -> None:
        self.config = config
        self.version = 1
        self.stats = ModelStats()
        self.labels: Mapping[str, tuple[str, ...]] = {}
        self.ready = True
        self.asked: list[Readiness] = []
        self.identity = None
        self.requests: list[InferRequest] = []
        self.abandoned = 0
        self._infer, self._responses = infer, responses
        self._holds = Holds()
        self.held = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def infer(self, request: InferRequest) -> InferResponse:
        self.requests.append(request)
        try:
            return await self._infer(request)
        except asyncio.CancelledError:
            self.abandoned += 1
            raise

    async def stream(self, request: InferRequest) -> ResponseStream:
        self.requests.append(request)

        def abandon() -> None:
            self.abandoned += 1
            task.cancel()

        stream = ResponseStream(abandon)
        task = asyncio.ensure_future(self._play(request, stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    async def _play(self, request: InferRequest, stream: ResponseStream) -> None:
        assert self._responses is not None
        try:
            async for response in self._responses(request):
                stream.put(response)
        except MicrokernelError as error:
            stream.put(answer(request, error=error))

    def check_ahead(self, request: InferRequest) -> None:
        raise AssertionError(request)

    def readiness(self) -> list[Readiness]:
        return self.asked

    def hold(self, company: Company) -> Held:
        if not self.ready:
            raise no_instance(self.config.name, self.version)
        self.held += 1
        return _Hold(self, self._holds.take(self, self.version))

    async def drain(self) -> None:
        await self._holds.gone()

    def abandon(self, reason: str) -> None:
        raise AssertionError(reason)

    async def stop(self) -> None:
        pass


class _Hold:
    def __init__(self, model: Model, hold: Held) -> None:
        self._model, self._hold = model, hold
        self.version, self.infer, self.stream = hold.version, hold.infer, hold.stream

    def release(self) -> None:
        self._model.held -= 1
        self._hold.release()


class Site:
    """Models by name, and ensembles made of them."""

    def __init__(self) -> None:
        self.models: dict[str, Model | EnsembleVersion] = {}
        self.tracer = Tracer()

    def add(self, text: str, infer: Answers = doubled, responses: Responses | None = None) -> Model:
        """A model for steps."""
        made = Model(parsed(text), infer, responses)
        self.models[made.config.name] = made
        return made

    def ensemble(self, text: str) -> EnsembleVersion:
        """An ensemble that fits the models that are there."""
        config = parsed(text)
        assert config.ensemble_scheduling is not None
        steps = [self.models[s.model_name] for s in config.ensemble_scheduling.step]
        graph = fit(config, [served.config for served in steps])
        if graph.decoupled:
            config = parsed(text + DECOUPLED)
        equipment = Equipment({"y": ("zero", "one", "two")}, self.tracer)
        made = EnsembleVersion(config, 1, graph, self.find, equipment)
        self.models[config.name] = made
        return made

    def find(self, name: str, version: int) -> Any:
        """What the table does for an ensemble."""
        found = self.models.get(name)
        if found is None:
            raise NotFound(f"Request for unknown model: '{name}' is not found")
        return found

    def idle(self) -> bool:
        """Whether no model is held."""
        return all(m.held == 0 for m in self.models.values() if isinstance(m, Model))
