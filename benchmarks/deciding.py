"""What does a scheduler's decision cost, and does it stay the same when very many requests wait?

The schedulers run as in the server; what stands below them runs nothing: a batch is answered when
the event loop comes round again.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Protocol, TypeAlias

from benchmarks.calm import calm_rounds
from benchmarks.measuring import Plan
from benchmarks.report import Check, Report
from benchmarks.stand_ins import STREAMS, Composed, Scheduled
from microkernel.config.model import (
    DynamicBatching,
    InstanceGroup,
    ModelConfig,
    QueuePolicy,
    SequenceBatching,
    StrategyDirect,
    StrategyOldest,
)
from microkernel.config.parse import parse_text
from microkernel.ensembles.fitting import fit

LARGEST = 16
DEPTHS = (100, 1_000, 10_000, 100_000)
REQUESTS = DEPTHS[-1]
"""How many requests there are at every depth, so that they take as much memory."""

ENOUGH = 20_000
"""Of so many requests the time is taken, where no more wait at a time."""

_GROUP = (InstanceGroup("nothing", "KIND_CPU", 1),)
_HOUR = 3_600_000_000
_TIMED = QueuePolicy(default_timeout_microseconds=_HOUR, max_queue_size=10 * REQUESTS)

CONFIGS = {
    "default": ModelConfig("m", instance_group=_GROUP),
    "dynamic": ModelConfig(
        "m",
        max_batch_size=LARGEST,
        dynamic_batching=DynamicBatching((LARGEST,)),
        instance_group=_GROUP,
    ),
    "dynamic, 3 priorities and timeouts": ModelConfig(
        "m",
        max_batch_size=LARGEST,
        instance_group=_GROUP,
        dynamic_batching=DynamicBatching(
            (LARGEST,), priority_levels=3, default_priority_level=2, default_queue_policy=_TIMED
        ),
    ),
    "sequence, direct": ModelConfig(
        "m",
        max_batch_size=STREAMS,
        instance_group=_GROUP,
        sequence_batching=SequenceBatching(StrategyDirect(), None, _HOUR),
    ),
    "sequence, oldest": ModelConfig(
        "m",
        max_batch_size=LARGEST,
        instance_group=_GROUP,
        sequence_batching=SequenceBatching(None, StrategyOldest(STREAMS, (LARGEST,)), _HOUR),
    ),
}

_TENSORS = """
input {{ name: "{0}" data_type: TYPE_FP32 dims: [ 1 ] }}
output {{ name: "{1}" data_type: TYPE_FP32 dims: [ 1 ] }}
"""
_STEP = """step {{
  model_name: "m" input_map {{ key: "x" value: "{0}" }} output_map {{ key: "y" value: "{1}" }}
}}
"""
_PATH = ("x", "a", "y")


class Waves(Protocol):
    """Something that requests come to in waves."""

    async def wave(self, first: int, last: int, *, held: bool) -> None:
        """Let the requests of these numbers come, and wait until they were answered. With `held`
        none runs before all have come."""
        ...


Make: TypeAlias = Callable[[], Waves]


def decisions(models: Path, folder: Path, plan: Plan) -> Report:
    """Decisions per second of each scheduler, and what a request costs by how many wait."""
    rounds = max(plan.small.rounds // 4, 1)
    return Report(
        checks=[
            check
            for name, make in _makers().items()
            for check in _checks(name, calm_rounds(rounds, partial(_round, make)))
        ]
    )


def _makers() -> Mapping[str, Make]:
    made: dict[str, Make] = {
        name: partial(Scheduled, config, REQUESTS) for name, config in CONFIGS.items()
    }
    made[f"ensemble of {len(_PATH) - 1} steps"] = _ensemble
    return made


def _ensemble() -> Composed:
    steps = "".join(map(_STEP.format, _PATH[:-1], _PATH[1:]))
    text = f'name: "e" platform: "ensemble" ensemble_scheduling {{ {steps} }}'
    config = parse_text(text + _TENSORS.format("x", "y"), "here")
    model = parse_text('name: "m" backend: "nothing"' + _TENSORS.format("x", "y"), "here")
    return Composed(fit(config, [model] * (len(_PATH) - 1)), REQUESTS)


def _round(make: Make) -> list[float]:
    """Seconds per request in a steady stream, then for each of the depths."""
    depths = (asyncio.run(_cost(make, depth, held=True)) for depth in DEPTHS)
    return [asyncio.run(_cost(make, STREAMS, held=False)), *depths]


async def _cost(make: Make, size: int, *, held: bool) -> float:
    """Seconds per request where they come in waves of that size."""
    waves, count = make(), max(size, ENOUGH)
    gc.collect()
    gc.freeze()  # in a server the requests that wait are not searched for garbage again and again
    try:
        began = time.perf_counter()
        for first in range(0, count, size):
            await waves.wave(first, min(first + size, count), held=held)
        return (time.perf_counter() - began) / count
    finally:
        gc.unfreeze()


def _checks(name: str, seen: list[list[float]]) -> list[Check]:
    steady, *curve = (median(column) for column in zip(*seen, strict=True))
    growth = median(round_[-1] / round_[1] for round_ in seen)
    costs = ", ".join(f"{1e6 * cost:.1f}" for cost in curve)
    depths = ", ".join(f"{depth:,}" for depth in DEPTHS)
    return [
        Check(
            f"decisions, {name}",
            1 / steady,
            "requests/s",
            note=f"{STREAMS} come and wait at a time",
        ),
        Check(
            f"a request among {DEPTHS[-1]:,} that wait, {name}",
            growth,
            f"times one among {DEPTHS[0]:,}",
            2.0,
            note=f"{costs} µs among {depths}",
        ),
    ]
