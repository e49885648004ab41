"""What instances need to run, and how much of it there is: the pools of the rate limiter. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from microkernel.config.model import RateLimiter
from microkernel.errors import InvalidArgument

Pool: TypeAlias = tuple[str, int | None]
"""A resource of a device, or one of the whole server (None)."""

Need: TypeAlias = Mapping[Pool, int]
"""How much of each pool an instance holds while it runs."""

Sizes: TypeAlias = Mapping[str, Mapping[int | None, int]]
"""How much there is of a resource, by device; None for every device that is not named."""

FLAG = "--rate-limit-resource"


def need_of(limits: RateLimiter | None, device: int) -> Need:
    """What an instance on that device needs; of a resource that is named twice the larger count."""
    need: dict[Pool, int] = {}
    for resource in limits.resources if limits else ():
        pool = (resource.name, None if resource.global_ else device)
        need[pool] = max(need.get(pool, 0), resource.count)
    return {pool: count for pool, count in need.items() if count}


def parse_sizes(entries: Sequence[str]) -> Sizes:
    """The values of the flag, each `name:count` or `name:count:device`; the last one counts. Raises
    InvalidArgument for one of another form."""
    sizes: dict[str, dict[int | None, int]] = {}
    for entry in entries:
        name, _, numbers = entry.partition(":")
        count, _, device = numbers.partition(":")
        if not (name and count.isdecimal() and (device.isdecimal() or numbers == count)):
            raise InvalidArgument(
                f"{FLAG} must be <name>:<count> or <name>:<count>:<device>, got '{entry}'"
            )
        sizes.setdefault(name, {})[int(device) if device else None] = int(count)
    return sizes


class Pools:
    """How much is there and how much is taken. Without sizes that are given a pool holds what the
    neediest instance needs; with any, a resource that they do not name is not there at all."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        self._given = sizes or {}
        self._needs: list[Need] = []
        self._sizes: dict[Pool, int] = {}
        self._taken: Counter[Pool] = Counter()

    def admit(self, needs: Iterable[Need]) -> None:
        """Provide for further instances, all or none. Raises InvalidArgument, in Triton's words,
        where one could never run, and for a resource that is both global and of devices."""
        wanted = [*self._needs, *needs]
        sizes = self._sized(wanted)
        for name, _ in sizes:
            if len({device is None for other, device in sizes if other == name}) > 1:
                raise InvalidArgument(
                    f'Resource "{name}" is present as both global and device-specific resource in '
                    "the model configuration."
                )
        if self._given:
            for pool, least in sizes.items():
                sizes[pool] = self._enough(pool, least)
        self._needs, self._sizes = wanted, sizes

    def _sized(self, needs: Iterable[Need]) -> dict[Pool, int]:
        sizes: dict[Pool, int] = {}
        for need in needs:
            for pool, count in need.items():
                sizes[pool] = max(sizes.get(pool, 0), count)
        return sizes

    def _enough(self, pool: Pool, least: int) -> int:
        """The size that is given for a pool, of which some instance needs `least`."""
        name, device = pool
        given = self._given.get(name, {})
        size = given.get(device, given.get(None, 0))
        if device is None:
            size = max(given.values(), default=0)
        if size < least:
            raise InvalidArgument(
                f'Resource count for "{name}" is limited to {size} which will prevent scheduling '
                f"of one or more model instances, the minimum required count is {least}"
            )
        return size

    def dismiss(self, needs: Iterable[Need]) -> None:
        """Provide for these instances no longer; what they have taken is still to be given back."""
        for need in needs:
            self._needs.remove(need)
        sizes = self._sized(self._needs)
        if self._given:
            sizes = {pool: self._sizes[pool] for pool in sizes}
        self._sizes = sizes

    def fits(self, need: Need) -> bool:
        """Whether there is enough of everything now."""
        sizes, taken = self._sizes, self._taken
        return all(sizes.get(pool, 0) - taken[pool] >= count for pool, count in need.items())

    def take(self, need: Need) -> None:
        """Take what an instance needs; only while it `fits`."""
        if not self.fits(need):
            raise RuntimeError(f"there is not enough to take {dict(need)}")
        self._taken.update(need)

    def give(self, need: Need) -> None:
        """Give back what was taken."""
        self._taken.subtract(need)
