"""Which combinations are tried, and which of them a time limit leaves room for. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence

from microkernel import ModelConfig
from microkernel_torchscript.tuning.trial import Candidate

_USUAL_BATCH = 8
"""A batch worth trying where a configuration prefers none."""

ROUNDS = 3
"""Rounds without which a median says nothing."""

COMPARING = 4
"""Calls of each variant that comparing its results takes, those of the plain module among them."""

SLICE = 0.1
"""Seconds that one candidate runs in one round, or one call where that takes longer; each time
after one call to warm up."""


def batch_sizes(config: ModelConfig) -> tuple[int, ...]:
    """The batch sizes worth trying, in rising order: 1, what the configuration prefers, and the
    largest. A model that does not batch has calls of one item."""
    largest = config.max_batch_size
    if largest <= 1:
        return (1,)
    batching = config.dynamic_batching
    preferred = batching.preferred_batch_size if batching is not None else ()
    sizes = {1, largest, *(preferred or (_USUAL_BATCH,))}
    return tuple(sorted(size for size in sizes if 1 <= size <= largest))


def arrangements(cores: int) -> tuple[tuple[int, int], ...]:
    """Pairs of instances and intra-op threads that keep no more threads busy than there are cores,
    beginning with what serves where nothing is configured: one instance with all cores."""
    threads = sorted({1, max(1, cores // 2), cores}, reverse=True)
    return tuple(
        (instances, count)
        for instances in _doubling(cores)
        for count in threads
        if instances * count <= cores
    )


def _doubling(cores: int) -> Sequence[int]:
    counts = [1]
    while counts[-1] * 2 <= cores:
        counts.append(counts[-1] * 2)
    return counts if counts[-1] == cores else [*counts, cores]


def by_importance(sizes: Sequence[int]) -> list[int]:
    """The order in which batch sizes are given up last: single items, then the largest batch."""
    rest = sizes[1:-1]
    return list(dict.fromkeys((sizes[0], sizes[-1], *rest)))


def affordable(
    sizes: Sequence[int], per_item: float, variants: int, seconds: float
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The batch sizes that `variants` can be measured with in so many seconds, and those left out.
    `per_item` is the time of one item in a plain call, which a batch multiplies at worst. Where
    none but single items fits, the largest half, quarter and so on of a batch that does joins."""
    kept: list[int] = []
    wanted = by_importance(sizes)
    for size in (*wanted, *_halves(min(sizes[1:], default=1))):
        cost = variants * _cost(per_item * size, COMPARING)
        if cost <= seconds and (size in wanted or len(kept) == 1):
            seconds -= cost
            kept.append(size)
    return tuple(sorted(kept)), tuple(size for size in sizes if size not in kept)


def _halves(size: int) -> Iterator[int]:
    while size > 3:
        size //= 2
        yield size


def _cost(call: float, more_calls: int) -> float:
    """Seconds that the rounds of a candidate take, and some calls beside them."""
    return more_calls * call + ROUNDS * (call + max(SLICE, call))


def arranged(
    variant: str, cores: int, sizes: Sequence[int], plain: str, instead: str = ""
) -> Iterator[Candidate]:
    """The candidates of one variant in every arrangement, the likeliest to win first, after the
    plain variant as it serves where nothing is configured. Where `instead` names another variant,
    the first runs in one instance only, and has that one in every arrangement to compete with."""
    usual = Candidate(plain, threads=cores)
    yield usual
    for batch in by_importance(sizes):
        for instances, threads in arrangements(cores):
            alone = bool(instead) and instances > 1
            for one in (instead,) if alone else (variant, *filter(None, (instead,))):
                candidate = Candidate(one, threads, instances, batch)
                if candidate != usual:
                    yield candidate


def affordable_candidates(
    candidates: Sequence[Candidate], calls: Mapping[int, float], seconds: float
) -> tuple[list[Candidate], list[Candidate]]:
    """The candidates, taken in order, that can be measured in so many seconds, and the others.
    `calls` are the seconds of a call by batch size, which instances may stretch by their number;
    sizes without one are left out."""
    kept: list[Candidate] = []
    for candidate in candidates:
        call = calls.get(candidate.batch, math.inf) * candidate.instances
        cost = _cost(call, 0)
        if cost <= seconds:
            seconds -= cost
            kept.append(candidate)
    return kept, [candidate for candidate in candidates if candidate not in kept]
