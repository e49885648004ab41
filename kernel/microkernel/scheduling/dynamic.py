"""The default scheduler and the dynamic batcher of a configuration."""

import asyncio
import os
from collections.abc import Callable, Mapping

from microkernel.config.model import ModelConfig
from microkernel.config.queue_rules import ADAPTIVE
from microkernel.errors import InvalidArgument
from microkernel.scheduling.adaptive import Adaptive
from microkernel.scheduling.fairness import Fairness
from microkernel.scheduling.hopeless import Prospects
from microkernel.scheduling.levels import LevelledQueue
from microkernel.scheduling.limits import Limits
from microkernel.scheduling.pending import Executor
from microkernel.scheduling.policy import Batching, Joins, OneByOne
from microkernel.scheduling.queue import QueueScheduler
from microkernel.scheduling.waiting import PlainQueue, Queue, plain_lane

DELAY = "TRITONSERVER_DELAY_SCHEDULER"
"""How many requests must be queued before a batcher starts, once: for tests that must know which
requests meet."""


def queue_scheduler(
    config: ModelConfig, executor: Executor, open_batch: Callable[[], Joins] | None = None
) -> QueueScheduler:
    """The default scheduler, or the dynamic batcher where the configuration asks for one.
    `open_batch` is what else its policy asks."""
    limits = Limits.of(config)
    prospects = Prospects.of(config)
    queue = _queue(limits, Fairness.of(config), prospects)
    executed = None if prospects is None else prospects.executed
    if config.dynamic_batching is None:
        return QueueScheduler(OneByOne(), executor, queue, executed=executed)
    policy = Batching.of(config, open_batch)
    first = first_needed(DELAY, os.environ)
    if not config.switch(ADAPTIVE):
        return QueueScheduler(policy, executor, queue, first=first, executed=executed)
    adaptive = Adaptive(policy)
    time = asyncio.get_running_loop().time

    def learn(size: int, seconds: float) -> None:
        adaptive.executed(size, seconds, time())
        if prospects is not None:
            prospects.executed(size, seconds)

    return QueueScheduler(
        adaptive, executor, queue, first=first, executed=learn, arrived=adaptive.arrived
    )


def _queue(limits: Limits, fairness: Fairness | None, prospects: Prospects | None) -> Queue:
    if limits.none and fairness is None:
        return PlainQueue()
    new_lane = plain_lane if fairness is None else fairness.lanes()
    return LevelledQueue(limits, new_lane, None if prospects is None else prospects.admit)


def first_needed(variable: str, environment: Mapping[str, str]) -> int:
    """How many requests a variable of the environment has a scheduler wait for before it starts; 0
    where it is not set. Raises InvalidArgument for what is no number."""
    text = environment.get(variable, "") or "0"
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgument(f"{variable} must be a number of requests, got '{text}'")
    return int(text)
