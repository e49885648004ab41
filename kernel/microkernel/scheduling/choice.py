"""Which scheduler a model gets."""

from collections.abc import Callable, Mapping
from typing import TypeGuard

from microkernel.config.model import ModelConfig
from microkernel.scheduling.dynamic import queue_scheduler
from microkernel.scheduling.pending import Executor, Scheduler, SequenceKeeper
from microkernel.scheduling.policy import Joins
from microkernel.scheduling.sequences import SequenceBatcher
from microkernel.tensor import Tensor


def scheduler_of(
    config: ModelConfig,
    executor: Executor,
    open_batch: Callable[[], Joins] | None = None,
    initial_states: Mapping[str, Tensor] | None = None,
) -> Scheduler:
    """The scheduler of a complete and normalised configuration: the sequence batcher, the dynamic
    batcher or the default one. Ensembles have none. `open_batch` is what the dynamic batcher asks
    beside its own rules; `initial_states` are those of sequences that do not begin as zeros, by the
    name of their input. Raises InvalidArgument for Triton's variables for tests that are wrong."""
    if config.sequence_batching is not None:
        return SequenceBatcher(config, executor, initial_states or {})
    return queue_scheduler(config, executor, open_batch)


def is_keeper(scheduler: Scheduler) -> TypeGuard[SequenceKeeper]:
    """Whether the scheduler must know what becomes of its requests."""
    return hasattr(scheduler, "advanced")


def learner(scheduler: Scheduler) -> Callable[[int, float], None] | None:
    """Takes the size of every batch that was executed and the seconds that it took; None where the
    scheduler does not want to know."""
    executed: Callable[[int, float], None] | None = getattr(scheduler, "executed", None)
    return executed
