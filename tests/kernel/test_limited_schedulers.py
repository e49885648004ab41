"""Every scheduler in one line with others: whatever arrives, all of it is answered, and no more of
a resource is taken than there is."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microkernel import (
    DynamicBatching,
    InferRequest,
    InferResponse,
    InstanceGroup,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Placement,
    Tensor,
)
from microkernel import Sequence as SequenceOf
from microkernel.config.model import RateLimiter as Limits
from microkernel.config.model import (
    Resource,
    SequenceBatching,
    StrategyDirect,
    StrategyOldest,
)
from microkernel.models.crew import Crew
from microkernel.models.roster import seats
from microkernel.models.version import ModelVersion
from microkernel.scheduling.rate_limiter import RateLimiter
from microkernel.testing import VirtualTimeLoop

SECONDS = 10
"""How long an execution takes."""

IDLE = 1_000_000_000
SCHEDULERS: dict[str, dict[str, Any]] = {
    "default": {},
    "dynamic": {"dynamic_batching": DynamicBatching((4,))},
    "delayed": {"dynamic_batching": DynamicBatching((4,), 7_000_000)},
    "ordered": {"dynamic_batching": DynamicBatching((2,), 3_000_000, preserve_ordering=True)},
    "direct": {"sequence_batching": SequenceBatching(StrategyDirect(), None, IDLE)},
    "utilised": {"sequence_batching": SequenceBatching(StrategyDirect(5_000_000, 0.5), None, IDLE)},
    "oldest": {
        "sequence_batching": SequenceBatching(None, StrategyOldest(3, (4,), 2_000_000), IDLE)
    },
}


def config_of(name: str, scheduler: str, needs: dict[str, int], instances: int) -> ModelConfig:
    resources = tuple(Resource(resource, False, count) for resource, count in needs.items())
    return ModelConfig(
        name=name,
        max_batch_size=4,
        input=(ModelInput("X", "TYPE_INT32", dims=(1,)),),
        output=(ModelOutput("Y", "TYPE_INT32", dims=(1,)),),
        instance_group=(InstanceGroup("g", "KIND_CPU", instances, Limits(resources)),),
        **SCHEDULERS[scheduler],
    )


class Server:
    """Models with one limiter, on workers in memory."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self._limiter = RateLimiter()
        self.models: list[ModelVersion] = []
        self.workers: list[list[Any]] = []

    async def load(self, config: ModelConfig) -> None:
        mine: list[Any] = []

        async def launch() -> Any:
            mine.append(self._make(seconds=SECONDS))
            return mine[-1]

        count = config.instance_group[0].count
        places = [Placement(f"{config.name}_{i}", "KIND_CPU") for i in range(count)]
        model = ModelVersion(
            config,
            1,
            lambda events: Crew(
                launch, config, seats(places, "instance"), events, limiter=self._limiter
            ),
        )
        await model.start(await launch())
        self.models.append(model)
        self.workers.append(mine)

    def most_taken(self) -> dict[str, int]:
        """The most of each resource that was taken at a time."""
        changes: dict[str, list[tuple[float, int]]] = {}
        for model, workers in zip(self.models, self.workers, strict=True):
            limits = model.config.instance_group[0].rate_limiter
            assert limits is not None
            began = [when for w in workers for i in w.instances for when, _ in i.batches]
            for resource in limits.resources:
                for when in began:
                    moves = (when, resource.count), (when + SECONDS, -resource.count)
                    changes.setdefault(resource.name, []).extend(moves)
        most = {}
        for name, steps in changes.items():
            level = highest = 0
            for _, change in sorted(steps):
                level += change
                highest = max(highest, level)
            most[name] = highest
        return most


async def ask(model: ModelVersion, number: int, when: float, steps: int) -> list[InferResponse]:
    """Requests one after another, which are a sequence where the model has such."""
    await asyncio.sleep(when)
    tensor = Tensor.from_numpy("X", np.array([[number]], np.int32))
    answers = []
    for step in range(steps):
        sequence = SequenceOf(number + 1, step == 0, step == steps - 1)
        request = InferRequest(model.config.name, (tensor,), sequence=sequence)
        answers.append(await model.infer(request))
    return answers


needs = st.dictionaries(st.sampled_from(("R1", "R2")), st.integers(1, 3), max_size=2)
kinds = st.tuples(st.sampled_from(sorted(SCHEDULERS)), needs, st.integers(1, 2))
arrivals = st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(1, 3))


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # it is a class
)
@given(models=st.lists(kinds, min_size=1, max_size=3), arrivals=st.lists(arrivals, max_size=14))
def test_everything_is_answered(
    fake_worker: Any,
    models: Sequence[tuple[str, dict[str, int], int]],
    arrivals: Sequence[tuple[int, int, int]],
) -> None:
    async def serve() -> Server:
        server = Server(fake_worker)
        for place, (scheduler, need, instances) in enumerate(models):
            await server.load(config_of(f"m{place}", scheduler, need, instances))
        calls = [
            ask(server.models[place % len(models)], number, when, steps)
            for number, (place, when, steps) in enumerate(arrivals)
        ]
        async with asyncio.timeout(5000):
            answers = await asyncio.gather(*calls)
        assert [len(found) for found in answers] == [steps for _, _, steps in arrivals]
        for model in server.models:
            await model.drain()
            await model.stop()
        return server

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        server = runner.run(serve())
    sizes: dict[str, int] = {}
    for _, need, _ in models:
        for name, count in need.items():
            sizes[name] = max(sizes.get(name, 0), count)
    assert all(taken <= sizes[name] for name, taken in server.most_taken().items())
