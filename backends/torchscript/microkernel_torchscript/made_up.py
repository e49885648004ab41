"""Telling that calls with made-up inputs go on for long, for a model that never returns from one
keeps its own load from ending."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from enum import Enum

from microkernel import ModelConfig

logger = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds after which it is told, at the latest."""

_TIMEOUT = "LOAD_TIMEOUT_SECS"
_LIMIT = f"its parameter {_TIMEOUT} limits how long it may take to load"


class Purpose(Enum):
    """What a model is called with made-up inputs for: to see what its configuration leaves out; to
    be fast when clients call; for that, where `torch.compile` works in the first calls."""

    COMPLETING = "completing"
    WARMING = "warming"
    COMPILING = "compiling"


def notice(name: str, purpose: Purpose, seconds: float) -> tuple[int, str]:
    """The level and the text for a model that has been called for so long: what is going on, and
    what would end it or do without. Compiling takes minutes without anything being wrong."""
    if purpose is Purpose.COMPLETING:
        return logging.WARNING, (
            f"model '{name}' has been running on made-up inputs for {seconds:g} s, to find out "
            "which inputs and outputs it has; if it does not return from that, list both in its "
            f'configuration and set its parameter WARMUP to "false"; {_LIMIT}'
        )
    if purpose is Purpose.COMPILING:
        return logging.INFO, (
            f"the first calls of model '{name}', in which 'torch.compile' works, have taken "
            f"{seconds:g} s; that may go on for minutes; {_LIMIT}"
        )
    return logging.WARNING, (
        f"model '{name}' has been running on made-up inputs for {seconds:g} s, to be warm when "
        'clients call; if it does not return from that, set its parameter WARMUP to "false"; '
        f"{_LIMIT}"
    )


def told_after(config: ModelConfig, patience: float) -> float:
    """When to tell: before the end of a load that the model's parameter limits."""
    try:
        limit = float(config.parameter(_TIMEOUT, "0"))
    except ValueError:
        return patience  # the server refuses it
    return min(patience, limit / 2) if limit > 0 else patience


@contextlib.contextmanager
def told_when_long(
    config: ModelConfig, purpose: Purpose, patience: float = PATIENCE
) -> Iterator[None]:
    """While the block lasts, a thread waits to tell once that it has lasted for the seconds of
    `patience`, or for less where the load has not as long."""
    seconds = told_after(config, patience)
    timer = threading.Timer(seconds, lambda: logger.log(*notice(config.name, purpose, seconds)))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
