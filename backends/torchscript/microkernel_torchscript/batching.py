"""The batch dimension in a configuration that is filled in. This module imports no torch."""

import logging

from microkernel import InvalidArgument, ModelConfig, Reshape

logger = logging.getLogger(__name__)

Written = tuple[tuple[int, ...], Reshape | None]
"""The `dims` and the `reshape` of a tensor."""


def written(whole: tuple[int, ...], max_batch_size: int) -> Written:
    """What a configuration writes for a tensor of the model, given with all its dimensions."""
    return shown_to_clients(whole[1:]) if max_batch_size > 0 else (whole, None)


def shown_to_clients(shape: tuple[int, ...]) -> Written:
    """What a configuration writes for a tensor of the model, given without the batch dimension: one
    with no more dimensions needs one of 1 for clients to send."""
    return (shape, None) if shape else ((1,), Reshape(()))


def cannot_batch(name: str) -> InvalidArgument:
    """The error, in Triton's words, where `max_batch_size` asks the model `name` for what it cannot
    do."""
    return InvalidArgument(
        f"autofill failed for model '{name}': model does not support batching while non-zero "
        "max_batch_size is specified"
    )


def suggest_batching(config: ModelConfig, limit: int | None = None) -> None:
    """Log that requests could be batched, `limit` of them at the most."""
    logger.info(
        "model '%s': the first dimension of every tensor varies%s; if its rows do not depend on "
        "each other, set max_batch_size to have requests batched",
        config.name,
        f", up to {limit}" if limit else "",
    )
