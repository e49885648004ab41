"""From names in a configuration to the tensors of a `.pt2`.

Triton calls a tensor by its path (`ARGS[0]`, `KWARGS[mask]`, `RESULT[1]`) or its ordinal
(`INPUT__0`, `OUTPUT__1`). Here the names that the program itself tells do as well, and so do the
conventions of TorchScript, so that the configuration of a `.pt` serves its `.pt2`.
"""

import re
from collections.abc import Sequence

from microkernel_torchscript.exported.leaves import Leaves
from microkernel_torchscript.naming import index_of, output_positions

_PATH = re.compile(r"(ARGS|KWARGS|RESULT)(\[|$)")


class NotFound(Exception):
    """A name that no tensor has; the text is the name."""


def alias_map(leaves: Leaves, prefix: str) -> dict[str, int]:
    """The places of the tensors by every name that only one of them has; `prefix` is that of the
    ordinals, `INPUT` or `OUTPUT`. Constants have no names, but are counted."""
    found: dict[str, int] = {}
    doubtful: set[str] = set()
    for place, leaf in enumerate(leaves):
        for name in leaf.names if leaf.kind != "constant" else ():
            if found.setdefault(name, place) != place:
                doubtful.add(name)
    for name in doubtful:
        del found[name]
    for place, leaf in enumerate(leaves):
        if leaf.kind != "constant":
            found.setdefault(f"{prefix}__{place}", place)
    return found


def is_keyed(outputs: Leaves) -> bool:
    """Whether results lie in a dictionary, so that they have names besides their paths."""
    return any(not _PATH.match(name) for leaf in outputs for name in leaf.names)


def leaf_places(names: Sequence[str], known: dict[str, int], *, keyed: bool = False) -> list[int]:
    """The places of the tensors that a configuration lists.

    One convention holds for the list: names of `alias_map`, else `<text>__<index>`, else the order
    of the configuration, though not where tensors are `keyed`. Raises NotFound where some names are
    of the first kind and one is not, the order does not hold, or a place does not exist.
    """
    if all(name in known for name in names):
        return [known[name] for name in names]
    indexed = all(index_of(name) is not None for name in names)
    if not indexed:
        strange = next(name for name in names if name not in known)
        if keyed or any(name in known or _PATH.match(name) for name in names):
            raise NotFound(strange)
    free = sorted(set(known.values()))
    places = output_positions(names)
    for name, place in zip(names, places, strict=True):
        if place not in free if indexed else place >= len(free):
            raise NotFound(name)
    return places if indexed else [free[place] for place in places]


def placed(name: str, known: dict[str, int]) -> int | None:
    """The place of a control or a state, by a name of its own or `<text>__<index>`; None where the
    name does not tell."""
    if name in known:
        return known[name]
    index = index_of(name)
    return index if index in known.values() else None
