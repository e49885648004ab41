"""The results of a `.pt2`, one by one."""

from collections.abc import Sequence
from typing import Any

import torch


def apart(results: Sequence[Any], leaves: Sequence[Any]) -> tuple[Any, ...]:
    """The results, with copies in place of those that lie in the memory of an argument: that is
    written to again for the next batch while the results may still be read."""
    given = {_memory(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)}
    return tuple(
        result.clone() if isinstance(result, torch.Tensor) and _memory(result) in given else result
        for result in results
    )


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
