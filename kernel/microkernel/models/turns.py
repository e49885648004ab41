"""Where a crew meets the rate limiter."""

import asyncio
from collections.abc import Callable, Sequence

from microkernel.backend import Placement
from microkernel.config.model import ModelConfig
from microkernel.scheduling.rate_limiter import RateLimiter, Turn
from microkernel.scheduling.resources import Need, need_of


def enrol(
    limiter: RateLimiter | None,
    config: ModelConfig,
    seats: Sequence[Sequence[Placement]],
    wake: Callable[[], None],
) -> list[list[Turn | None]]:
    """A turn for every instance of every seat, None for passive ones and without a limiter. Raises
    InvalidArgument where one could never run."""
    if limiter is None:
        return [[None for _ in seat] for seat in seats]
    active = [place for seat in seats for place in seat if not place.passive]
    turns = iter(limiter.enrol([_demand(config, place) for place in active], wake))
    return [[None if place.passive else next(turns) for place in seat] for seat in seats]


def _demand(config: ModelConfig, place: Placement) -> tuple[Need, int]:
    limits = config.instance_group[place.group].rate_limiter
    return need_of(limits, place.device_id), limits.priority if limits else 1


async def granted(limiter: RateLimiter, turn: Turn) -> None:
    """Wait until it is the turn of an instance that does not serve yet, and let it `start`."""
    started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start() -> None:
        if not started.done() and limiter.claim([turn]) is not None:
            limiter.start(turn)
            started.set_result(None)

    usual, turn.wake, turn.free = turn.wake, start, True
    try:
        start()
        await started
    except asyncio.CancelledError:
        if started.cancelled():
            limiter.withdraw(turn)
        else:
            limiter.finish(turn, free=False)
        limiter.serve()
        raise
    finally:
        turn.wake = usual
