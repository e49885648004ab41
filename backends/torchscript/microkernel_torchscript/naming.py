"""From names in the configuration to positions in `forward`: Triton's three conventions."""

import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)


def index_of(name: str) -> int | None:
    """The number in `<anything>__<number>`, split at the first `__`; None for other names."""
    digits = name.partition("__")[2]
    return int(digits) if digits.isascii() and digits.isdecimal() else None


def input_positions(names: Sequence[str], arguments: Sequence[str]) -> list[int]:
    """The position of each input among the arguments of `forward`.

    One convention holds for the whole list: names of arguments, else `<text>__<index>`, else the
    order of the configuration.
    """
    if all(name in arguments for name in names):
        return [arguments.index(name) for name in names]
    return output_positions(names)


def output_positions(names: Sequence[str]) -> list[int]:
    """The position of each output among the results: `<text>__<index>` where every name is of that
    form, else the order of the configuration."""
    indices = [index_of(name) for name in names]
    if None not in indices:
        return [index for index in indices if index is not None]
    for name, index in zip(names, indices, strict=True):
        if index is None and "__" in name:
            logger.warning(
                "tensor '%s' has '__' in its name but no number after it; tensors are taken in the "
                "order of the configuration",
                name,
            )
    return list(range(len(names)))
