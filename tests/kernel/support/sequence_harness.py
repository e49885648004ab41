"""A model with sequences on workers in memory, scripts of requests, and what became of them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from microkernel import (
    InferRequest,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Placement,
    Tensor,
    Unavailable,
)
from microkernel.config.model import Control, ControlInput, SequenceBatching
from microkernel.models.crew import Crew, CrewEvents
from microkernel.models.version import ModelFiles, ModelVersion
from microkernel.request import Answer, InferResponse
from microkernel.request import Sequence as SequenceOf

SECOND = 1_000_000
FLAGS = tuple(
    ControlInput(kind, (Control(f"CONTROL_SEQUENCE_{kind}", int32_false_true=(0, 1)),))
    for kind in ("START", "END", "READY")
)


def sequence_config(
    batching: SequenceBatching | None = None, *, largest: int = 2, idle: float = 1000, **more: Any
) -> ModelConfig:
    """A model from X to Y that keeps sequences; `idle` is in seconds."""
    batching = replace(
        batching or SequenceBatching(), max_sequence_idle_microseconds=round(idle * SECOND)
    )
    return replace(
        ModelConfig(
            name="m",
            backend="odd",
            max_batch_size=largest,
            input=(ModelInput("X", "TYPE_INT32", dims=(-1,)),),
            output=(ModelOutput("Y", "TYPE_INT32", dims=(-1,)),),
            sequence_batching=batching,
        ),
        **more,
    )


def request_of(
    name: str, flags: str = "", *, sequence: int | str | None = None, **more: Any
) -> InferRequest:
    """A request whose sequence is the first letter of its name as a number, A is 1; `flags` are of
    S for START and E for END."""
    number = ord(name[0]) - ord("A") + 1 if sequence is None else sequence
    tensor = Tensor.from_numpy("X", np.array([[len(name)]], np.int32))
    made = InferRequest("m", (tensor,), version=1, id=name)
    made.sequence = SequenceOf(number, "S" in flags, "E" in flags)
    return replace(made, **more)


@dataclass
class Served:
    """A version on a worker in memory. `rows` are the requests that its instances were given, null
    ones included, in order; `ends` when each call returned, and `errors` what it raised, by the
    request's id."""

    model: ModelVersion
    worker: Any
    rows: list[InferRequest] = field(default_factory=list)
    ends: dict[str, float] = field(default_factory=dict)
    errors: dict[str, MicrokernelError] = field(default_factory=dict)
    responses: dict[str, InferResponse] = field(default_factory=dict)
    reply: Callable[[InferRequest], Any] = lambda request: Answer(())

    @property
    def batches(self) -> list[tuple[float, list[str]]]:
        """When each batch of the first instance began, and of which requests it was."""
        found: list[tuple[float, list[str]]] = self.worker.instances[0].batches
        return found

    def watch(self) -> None:
        """Note what the instances are given; again after a restart of the worker."""
        for instance in self.worker.instances:
            instance.answer = self._answer
            instance.stream = partial(self._stream, instance.stream)

    def _stream(self, stream: Callable[..., int], requests: Any, *rest: Any) -> int:
        self.rows += requests
        return stream(requests, *rest)

    def _answer(self, request: InferRequest) -> Any:
        self.rows.append(request)
        return self.reply(request)

    async def ask(self, request: InferRequest) -> None:
        """Make a call and note how it ends."""
        try:
            self.responses[request.id] = await self.model.infer(request)
        except MicrokernelError as error:
            self.errors[request.id] = error
        self.ends[request.id] = asyncio.get_running_loop().time()

    async def play(self, *script: tuple[float, str, str]) -> None:
        """Make calls at their times: when, name and flags of each; all have ended then."""
        start = asyncio.get_running_loop().time()

        async def at(when: float, name: str, flags: str) -> None:
            await asyncio.sleep(start + when - asyncio.get_running_loop().time())
            await self.ask(request_of(name, flags))

        await asyncio.gather(*(at(*entry) for entry in script))

    def controls(self, name: str) -> list[list[int]]:
        """The values of an input in the batches of the first instance, one per row."""
        values = iter(self.rows)
        return [
            [int(_input(next(values), name).as_numpy().item()) for _ in names]
            for _, names in self.batches
        ]


def _input(request: InferRequest, name: str) -> Tensor:
    tensor = request.input(name)
    assert tensor is not None
    return tensor


async def serve(
    config: ModelConfig,
    worker: Any,
    *,
    instances: int = 1,
    launch: Callable[[], Any] | None = None,
    files: ModelFiles | None = None,
) -> Served:
    """A version of that configuration on `worker`; `launch` makes further ones, without it there
    are none."""
    places: Sequence[Placement] = [Placement(f"m_{i}", "KIND_CPU") for i in range(instances)]

    async def again() -> Any:
        if launch is None:
            raise Unavailable("no process")
        return launch()

    def crew(events: CrewEvents) -> Crew:
        return Crew(again, config, [places], events)

    model = ModelVersion(config, 1, crew, files)
    await model.start(worker)
    served = Served(model, worker)
    served.watch()
    return served
