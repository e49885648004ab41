"""Which scheduler a model gets."""

from typing import TypeGuard

from microkernel.config.model import ModelConfig
from microkernel.scheduling.pending import Executor, Scheduler, SequenceKeeper
from microkernel.scheduling.queue import QueueScheduler


def scheduler_of(config: ModelConfig, executor: Executor) -> Scheduler:
    """The scheduler of a complete and normalised configuration: the sequence batcher, the dynamic
    batcher or the default one. Ensembles have none."""
    return QueueScheduler.of(config, executor)


def is_keeper(scheduler: Scheduler) -> TypeGuard[SequenceKeeper]:
    """Whether the scheduler must know what becomes of its requests."""
    return hasattr(scheduler, "advanced")
