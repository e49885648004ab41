"""What state machines of schedulers share."""

import os
import time
from collections.abc import Callable
from typing import TypeAlias

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

ALL_SECONDS = 600.0
"""How long the slow tests of all machines take together, where SCHEDULING_SECONDS does not say how
long each takes."""

SHORT = settings(max_examples=40, stateful_step_count=30, deadline=None)
LONG = settings(
    max_examples=20,
    stateful_step_count=150,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

RunLong: TypeAlias = Callable[[type[RuleBasedStateMachine]], None]


def seconds_each(machines: int) -> float:
    """How long one of so many machines is to run."""
    return float(os.environ.get("SCHEDULING_SECONDS") or ALL_SECONDS / machines)


def run_for(seconds: float, machine: type[RuleBasedStateMachine]) -> None:
    """Run a machine for so long, with long histories, one lot of them at least."""
    end = time.monotonic() + seconds
    while True:
        run_state_machine_as_test(machine, settings=LONG)
        if time.monotonic() >= end:
            return
