"""How long the worker of a model may take, by parameters of the model."""

from dataclasses import dataclass

from microkernel.config.model import ModelConfig
from microkernel.errors import InvalidArgument
from microkernel.workers.limits import needs_process

EXECUTION, LOAD = "EXECUTION_TIMEOUT_SECS", "LOAD_TIMEOUT_SECS"
"""The parameters."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The seconds that one execution may take, and a worker until its instances are made; 0 for
    ever."""

    execution: float = 0.0
    load: float = 0.0


NO_TIMEOUTS = Timeouts()


def parse_timeouts(config: ModelConfig) -> Timeouts:
    """The limits that a model's parameters ask for. Raises InvalidArgument for a value that is no
    number of seconds."""
    return Timeouts(_seconds(config, EXECUTION), _seconds(config, LOAD))


def refuse_load_timeout(config: ModelConfig, timeouts: Timeouts) -> None:
    """Raise InvalidArgument where a model that runs in the server's process has a limit for its
    load: nothing can end a thread."""
    if timeouts.load:
        raise needs_process(config.name, [LOAD])


def _seconds(config: ModelConfig, key: str) -> float:
    text = config.parameter(key, "0")
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise InvalidArgument(
            f"parameter '{key}' of model '{config.name}' must be a number of seconds, 0 for no "
            f"limit, got '{text}'"
        )
    return limit
