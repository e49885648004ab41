"""What a model's parameters say of its queue, and what they must obey; but for one, Triton has
nothing like them.

`FAIR_QUEUE_KEY` tells clients apart that take turns, of whom `FAIR_QUEUE_MAX_PER_KEY` requests may
wait; `REJECT_HOPELESS` refuses what would come too late, `ADAPTIVE_QUEUE_DELAY` finds the delay of
the dynamic batcher, and `BATCH_STRATEGY` or `TRITON_BATCH_STRATEGY_PATH` says what else it asks.
"""

from collections.abc import Iterator
from itertools import chain

from microkernel.config.ensemble_rules import ENSEMBLE
from microkernel.config.model import DynamicBatching, ModelConfig

FAIR_KEY, FAIR_MOST = "FAIR_QUEUE_KEY", "FAIR_QUEUE_MAX_PER_KEY"
HOPELESS, ADAPTIVE = "REJECT_HOPELESS", "ADAPTIVE_QUEUE_DELAY"
STRATEGY, STRATEGY_PATH = "BATCH_STRATEGY", "TRITON_BATCH_STRATEGY_PATH"
HEADER = "header:"
"""What stands before the name of a header where a parameter may stand."""

_RESERVED = frozenset(
    {
        *("sequence_id", "sequence_start", "sequence_end"),
        *("priority", "timeout", "binary_data_output"),
    }
)
"""What requests carry beside their parameters, so that no parameter has such a name."""


def queue_parameters(config: ModelConfig) -> Iterator[str]:
    """The faults of the parameters. Ensembles have no queue, and the sequence batcher looks at
    none of them; but a batching strategy would be lost on it without a word."""
    if config.platform == ENSEMBLE:
        return
    faults = _strategy(config)
    if config.sequence_batching is None:
        faults = chain(faults, _fair(config), _hopeless(config), _adaptive(config))
    for name, what in faults:
        yield f"parameter '{name}' of model '{config.name}' {what}"


_Faults = Iterator[tuple[str, str]]


def _strategy(config: ModelConfig) -> _Faults:
    for name in (STRATEGY, STRATEGY_PATH):
        if name in config.parameters and config.dynamic_batching is None:
            yield name, "needs 'dynamic_batching'"


def _fair(config: ModelConfig) -> _Faults:
    key, most = config.parameter(FAIR_KEY), config.parameter(FAIR_MOST, "0")
    if not (most.isascii() and most.isdigit()):
        yield FAIR_MOST, f"must be a number of requests, 0 for no limit, got '{most}'"
    if not key and FAIR_MOST in config.parameters:
        yield FAIR_MOST, f"needs '{FAIR_KEY}' beside it"
    if key == HEADER:
        yield FAIR_KEY, f"must name a header after '{HEADER}'"
    if key in _RESERVED or key.startswith("triton_"):
        yield (
            FAIR_KEY,
            f"names '{key}', which is reserved and never among the parameters of a request",
        )
    dynamic = config.dynamic_batching
    if key and dynamic is not None and dynamic.preserve_ordering:
        yield (
            FAIR_KEY,
            "cannot be set when 'preserve_ordering' is true: who comes first is answered first "
            "then",
        )


def _hopeless(config: ModelConfig) -> _Faults:
    dynamic = config.dynamic_batching or DynamicBatching()
    policies = (dynamic.default_queue_policy, *dynamic.priority_queue_policy.values())
    yield from _switch(config, HOPELESS)
    timed = any(policy is not None and policy.default_timeout_microseconds for policy in policies)
    if config.parameter(HOPELESS) == "true" and not timed:
        yield (
            HOPELESS,
            "needs a queue policy with 'default_timeout_microseconds': without one no request is "
            "ever too late",
        )


def _switch(config: ModelConfig, name: str) -> _Faults:
    given = config.parameter(name, "false")
    if given not in ("true", "false"):
        yield name, f"must be 'true' or 'false', got '{given}'"


def _adaptive(config: ModelConfig) -> _Faults:
    yield from _switch(config, ADAPTIVE)
    if config.parameter(ADAPTIVE) == "true" and config.dynamic_batching is None:
        yield ADAPTIVE, "needs 'dynamic_batching'"
