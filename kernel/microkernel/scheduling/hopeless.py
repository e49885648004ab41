"""Refusing at once what would only wait in vain: requests whose deadline comes before their turn.

It judges with hope: by the time that batches have taken lately, and as if all that waits went in
full batches, one instance were just becoming free, and the others in equal distances after it. So
what is refused could not have run in time unless the model becomes faster. What finds the queue
shorter than a batch is never refused, so the model goes on being measured.
"""

import asyncio
from dataclasses import dataclass
from math import inf

from microkernel.config.model import ModelConfig
from microkernel.config.queue_rules import HOPELESS
from microkernel.errors import Unavailable
from microkernel.scheduling.pending import Pending
from microkernel.scheduling.service import ServiceTimes


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many items a batch holds at most, and how many batches run at the same time."""

    largest: int
    instances: int

    @classmethod
    def of(cls, config: ModelConfig) -> "Capacity":
        """That of a normalised configuration."""
        largest = config.max_batch_size if config.dynamic_batching is not None else 1
        serving = (group for group in config.instance_group if not group.passive)
        count = sum(group.count * max(len(group.gpus), 1) for group in serving)
        return cls(max(largest, 1), max(count, 1))

    def wait(self, ahead: int, seconds: float) -> float:
        """The seconds until a request runs that finds `ahead` items before it, where a full batch
        takes that many seconds."""
        return ahead // self.largest * seconds / self.instances


class Prospects:
    """Learns how long batches take, and refuses what has no chance."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._service = ServiceTimes()
        self._loop = asyncio.get_running_loop()

    @classmethod
    def of(cls, config: ModelConfig) -> "Prospects | None":
        """What a model's parameter asks for, None where it does not."""
        return cls(Capacity.of(config)) if config.switch(HOPELESS) else None

    def executed(self, size: int, seconds: float) -> None:
        """A batch of that size took so long."""
        self._service.observe(size, seconds)

    def admit(self, pending: Pending, ahead: int) -> None:
        """Raise Unavailable for a request whose turn would come after its deadline, `ahead` items
        being before it."""
        if pending.deadline == inf or not self._service.known:
            return
        wait = self._capacity.wait(ahead, self._service.expected(self._capacity.largest))
        now = self._loop.time()
        if now + wait > pending.deadline:
            raise Unavailable(
                f"{pending.request.tag()}Request would time out before its turn: that comes in "
                f"about {wait:.3g} s, the timeout in {pending.deadline - now:.3g} s"
            )
