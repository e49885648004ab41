"""What the figures say: which variant to run, in how many instances, threads and batches. Pure."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from microkernel_torchscript.tuning.trial import AOTI, MODULES, PLAIN, Candidate, Figures, Row

MARGIN = 1.05
"""What a change must gain to be worth it; less is noise."""

QUIET = 0.75
"""The share of a processor that one thread must have had for items per second to mean anything.
Processor time per item does also where other programs had the rest."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to run and why. The gains are factors over the plain module: of processor time per item
    at equal settings, and of items per second over how it is served where nothing is configured:
    one instance with all cores, and requests one by one.
    `difference` is the largest one of the chosen variant's results."""

    choice: Candidate
    reason: str
    cpu_gain: float = 1.0
    throughput_gain: float = 1.0
    difference: float = 0.0


def unchanged(cores: int, reason: str) -> Decision:
    """The plain module as it is served where nothing is configured."""
    return Decision(Candidate(PLAIN, threads=cores), reason)


def cpu_gains(rows: Iterable[Row], variant: str, over: str = PLAIN) -> list[float]:
    """How much less processor time a variant takes than another one, a factor for each candidate
    that was measured for both."""
    measured = _figures(rows)
    return [
        figures.cpu_ms / max(own.cpu_ms, 1e-9)
        for candidate, figures in measured.items()
        if candidate.variant == over
        and (own := measured.get(replace(candidate, variant=variant))) is not None
    ]


def best_variant(rows: Sequence[Row]) -> str:
    """The variant of the clearest gain over all batch sizes. It must gain more than the margin at
    one of them, and lose as much at none; the plain one wins otherwise. Machine code must gain so
    over the best of the others as well, for it costs a file, a compiler and the interpreter."""
    module = best_module(rows)
    compiled = all(_clear(cpu_gains(_accepted(rows), AOTI, over)) for over in (PLAIN, module))
    return AOTI if compiled else module


def best_module(rows: Sequence[Row]) -> str:
    """The same without machine code."""
    scores, accepted = {PLAIN: 1.0}, _accepted(rows)
    for variant in MODULES:
        if _clear(gains := cpu_gains(accepted, variant)):
            scores[variant] = math.exp(sum(map(math.log, gains)) / len(gains))
    return max(scores, key=lambda variant: scores[variant])


def rival(rows: Sequence[Row], variant: str) -> str:
    """The variant that the best one competes with for several instances: the best module with
    machine code, which serves in one only, and "" with a module."""
    return best_module(rows) if variant == AOTI else ""


def _accepted(rows: Sequence[Row]) -> list[Row]:
    refused = {row.candidate.variant for row in rows if row.note}
    return [row for row in rows if row.candidate.variant not in refused]


def _clear(gains: Sequence[float]) -> bool:
    return bool(gains) and max(gains) > MARGIN and min(gains) > 1 / MARGIN


def best_arrangement(rows: Sequence[Row], variant: str, cores: int, instead: str = "") -> Candidate:
    """The fewest instances and the smallest batches that come within the margin of the most items
    per second, if these are a clear gain over one instance with all cores. They may be those of
    the variant `instead`."""
    usual = Candidate(variant, threads=cores)
    own = {c: f for c, f in _figures(rows).items() if c.variant in (variant, instead)}
    if usual not in own:
        return usual
    most = max(figures.items_per_second for figures in own.values())
    least = max(most / MARGIN, MARGIN * own[usual].items_per_second)
    close = [c for c, figures in own.items() if figures.items_per_second > least]

    def cost(candidate: Candidate) -> tuple[int, int, bool, int]:
        other = candidate.variant != variant
        return candidate.instances, candidate.batch, other, candidate.threads

    return min(close, key=cost, default=usual)


def share(rows: Iterable[Row]) -> float:
    """How much of a processor single threads had while they ran; 1 where none was tried."""
    shares = [
        figures.items_per_second * figures.cpu_ms / 1e3
        for candidate, figures in _figures(rows).items()
        if candidate.threads == candidate.instances == 1
    ]
    return statistics.median(shares) if shares else 1.0


def threads_for(rows: Sequence[Row], choice: Candidate, instances: int, usual: int) -> int:
    """Intra-op threads for so many instances of the chosen variant: the best that were tried with
    the chosen batches, if a clear gain over the `usual` number; 0 where they are not."""
    if instances == choice.instances:
        return choice.threads
    tried = {
        c.threads: figures.items_per_second
        for c, figures in _figures(rows).items()
        if (c.variant, c.instances, c.batch) == (choice.variant, instances, choice.batch)
    }
    if usual not in tried:
        return 0
    best = max(tried, key=lambda threads: tried[threads])
    return best if tried[best] > MARGIN * tried[usual] else 0


def decide(variants: Sequence[Row], arranged: Sequence[Row], variant: str, cores: int) -> Decision:
    """The decision from the rows of the variants and from those of the best one's arrangements,
    among which the best module's are where machine code is the best variant."""
    had = share(arranged)
    choice = Candidate(variant, threads=cores)
    if had >= QUIET:
        choice = best_arrangement(arranged, variant, cores, rival(variants, variant))
        variant = choice.variant
    gains = cpu_gains([r for r in variants if r.candidate.batch == choice.batch], variant)
    gains = gains or cpu_gains(variants, variant)
    own = [row for row in variants if row.candidate.variant == variant]
    decision = Decision(
        choice,
        "",
        cpu_gain=max(gains, default=1.0),
        throughput_gain=_throughput_gain(arranged, choice, cores),
        difference=max((row.difference or 0.0 for row in own), default=0.0),
    )
    reason = _reason(decision, cores)
    if had < QUIET:
        reason += (
            f"; instances, threads and batches stay, since other programs had {1 - had:.0%} of the "
            "processor: measure again when it is quiet"
        )
    return replace(decision, reason=reason)


def _reason(decision: Decision, cores: int) -> str:
    choice = decision.choice
    if choice == Candidate(PLAIN, threads=cores):
        return f"nothing tried gains more than {MARGIN - 1:.0%}"
    gained = []
    if choice.variant != PLAIN:
        gained.append(f"{decision.cpu_gain:.2f} x less processor time per item")
    if decision.throughput_gain > MARGIN:
        gained.append(f"{decision.throughput_gain:.2f} x the items per second")
    return " and ".join(gained)


def _throughput_gain(arranged: Sequence[Row], choice: Candidate, cores: int) -> float:
    measured = _figures(arranged)
    before, after = measured.get(Candidate(PLAIN, threads=cores)), measured.get(choice)
    if before is None or after is None:
        return 1.0
    return after.items_per_second / max(before.items_per_second, 1e-9)


def _figures(rows: Iterable[Row]) -> dict[Candidate, Figures]:
    return {row.candidate: row.figures for row in rows if row.figures is not None}
