"""Where in shared memory a tensor lies, by its parameters; nothing here knows aiohttp."""

from collections.abc import Mapping
from typing import Any

from microkernel import InvalidArgument, RegionPart
from microkernel_http.document import boolean, text, unsigned

REGION, _SIZE, _OFFSET = (
    "shared_memory_region",
    "shared_memory_byte_size",
    "shared_memory_offset",
)


def part(given: Mapping[str, Any]) -> RegionPart | None:
    """The part of a region that the parameters of a tensor name, None where they name no region. A
    size or an offset that is absent is 0, as in Triton.

    Raises Internal for a value of the wrong kind.
    """
    if REGION not in given:
        return None
    return RegionPart(
        text(given[REGION], REGION),
        unsigned(given.get(_SIZE, 0), _SIZE),
        unsigned(given.get(_OFFSET, 0), _OFFSET),
    )


def output_part(name: str, given: Mapping[str, Any]) -> RegionPart | None:
    """The part that an output is to be written to, None for none. Raises as `part`, and
    InvalidArgument where the same parameters ask for its classes or for raw bytes."""
    found = part(given)
    if found is None:
        return None
    if "classification" in given:
        raise _both(name, "classification")
    if boolean(given.get("binary_data", False), "binary_data"):
        raise _both(name, "binary_data")
    return found


def _both(name: str, other: str) -> InvalidArgument:
    return InvalidArgument(f"Output can't set both '{REGION}' and '{other}', output '{name}' does")
