"""How long and how many requests may wait, by their priority: Triton's queue policies."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from microkernel.config.model import DynamicBatching, ModelConfig, QueuePolicy
from microkernel.request import InferRequest


@dataclass(frozen=True, slots=True)
class LevelLimits:
    """What holds for the requests of one priority level.

    `timeout` is in seconds, infinity for none; a request may ask for a shorter one where that is
    `overridable`. One that has waited so long is refused, or where it `delays`, runs after all
    others of its level. At most `most` wait, 0 for any number.
    """

    timeout: float = inf
    overridable: bool = False
    delays: bool = False
    most: int = 0

    @classmethod
    def of(cls, policy: QueuePolicy | None) -> "LevelLimits":
        """Those of a policy as the configuration has it, none where there is no policy."""
        if policy is None:
            return cls()
        return cls(
            policy.default_timeout_microseconds / 1e6 or inf,
            policy.allow_timeout_override,
            policy.timeout_action == "DELAY",
            policy.max_queue_size,
        )

    def deadline(self, arrived: float, timeout_us: int) -> float:
        """When a request that came then, and asks for that timeout, has waited for too long."""
        timeout = self.timeout
        if self.overridable and 0 < timeout_us / 1e6 < timeout < inf:
            timeout = timeout_us / 1e6
        return arrived + timeout


_NONE = LevelLimits()


@dataclass(frozen=True, slots=True)
class Limits:
    """The priority levels of a model, the most urgent one being 1, and what holds for each. Without
    levels there is only level 0."""

    levels: int = 0
    usual: int = 0
    by_level: Mapping[int, LevelLimits] = field(default_factory=dict)
    otherwise: LevelLimits = _NONE

    @classmethod
    def of(cls, config: ModelConfig) -> "Limits":
        """Those of a configuration, whatever its scheduler."""
        dynamic = config.dynamic_batching or DynamicBatching()
        return cls(
            dynamic.priority_levels,
            dynamic.default_priority_level if dynamic.priority_levels else 0,
            {level: LevelLimits.of(p) for level, p in dynamic.priority_queue_policy.items()},
            LevelLimits.of(dynamic.default_queue_policy),
        )

    @property
    def none(self) -> bool:
        """Whether they come to nothing, so that a plain queue does."""
        return self.levels == 0 and self.otherwise == _NONE

    @property
    def timed(self) -> bool:
        """Whether a request may have a deadline."""
        return any(limits.timeout < inf for limits in (self.otherwise, *self.by_level.values()))

    def level(self, request: InferRequest) -> int:
        """The level of a request: its priority, unless there is no such level."""
        return request.priority if 0 < request.priority <= self.levels else self.usual

    def at(self, level: int) -> LevelLimits:
        """What holds at a level."""
        return self.by_level.get(level, self.otherwise)
