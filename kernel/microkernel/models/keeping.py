"""What a model's answers mean to the scheduler, before their callers see them: where requests
depend on each other it hears of each one first, and some go to nobody."""

import time
from collections.abc import Sequence

from microkernel.errors import InvalidArgument, MicrokernelError
from microkernel.models.serving import charge
from microkernel.request import Answered, Reschedule
from microkernel.scheduling.pending import Outcome, Pending, SequenceKeeper
from microkernel.scheduling.sequences import NOT_ITERATIVE
from microkernel.stats import Execution, ModelStats
from microkernel.workers.contract import Result


def settle(
    keeper: SequenceKeeper, batch: Sequence[Pending], result: Result, stats: ModelStats
) -> list[tuple[Pending, Answered]]:
    """The answers of a batch for the callers of its requests. There is none for a row that is no
    request, and none for a request that the model wants to see again, of which the step is
    counted."""
    settled: list[tuple[Pending, Answered]] = []
    for pending, answer in zip(batch, result.answers, strict=True):
        if pending.null:
            continue
        outcome = heard(keeper, pending, answer, final=True)
        if isinstance(outcome, Reschedule):
            step_over(pending, result.times, stats)
        elif outcome is not None:
            settled.append((pending, outcome))
    return settled


def heard(
    keeper: SequenceKeeper | None, pending: Pending, outcome: Outcome, *, final: bool
) -> Outcome:
    """An outcome as the caller of its request may see it, which is the last with `final`. With
    RESCHEDULE the request waits to run again; it is an error where it cannot."""
    if keeper is None:
        return InvalidArgument(NOT_ITERATIVE) if isinstance(outcome, Reschedule) else outcome
    outcome = keeper.advanced(pending, outcome)
    if final:
        try:
            keeper.released(pending, again=isinstance(outcome, Reschedule))
        except MicrokernelError as error:
            return error
    return outcome


def step_over(pending: Pending, times: Execution, stats: ModelStats) -> None:
    """Count a step of a request that runs again; the next one is charged from now on."""
    now = time.monotonic_ns()
    stats.succeeded(pending.arrived_ns, now, pending.size, times)
    if pending.request.spent is not None:
        charge(pending.request.spent, times)
    pending.arrived_ns = now
