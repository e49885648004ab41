"""The model under trial: its plain module, its variants, and whether they answer alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from microkernel_torchscript.script.state import kept_state
from microkernel_torchscript.tuning.closeness import Comparison, compare, rows_of
from microkernel_torchscript.tuning.samples import Sampler, complaint
from microkernel_torchscript.tuning.trial import MODULES, PLAIN
from microkernel_torchscript.tuning.variants import as_variant

_SEEDS = (1, 2, 3)
"""Of the random inputs that results are compared for. The first two calls of a module profile and
optimise it, so the third is the one that serves."""

_ROWS = 3
"""Items of a batch that are compared with calls of one item."""


class Callee(Protocol):
    """What is measured: a module, or something that is called like one."""

    @property
    def forward(self) -> Any:
        """Takes the arguments, by position, and returns the result."""
        ...


@dataclass(frozen=True, slots=True)
class Tried:
    """A variant and how its results compare; `module` is None where it cannot run."""

    variant: str
    module: Callee | None
    comparison: Comparison

    @property
    def difference(self) -> float | None:
        """The largest difference of its results, None where there were none."""
        compared = self.module is not None or self.comparison.difference > 0
        return self.comparison.difference if compared else None


def unsteady(module: torch.jit.ScriptModule, sampler: Sampler) -> str:
    """Why the plain module's results are no measure for those of others: "" where they depend on
    nothing but the inputs."""
    if state := kept_state(module):
        return f"the model keeps state: {state}"
    first = _call(module, sampler, 1, _SEEDS[0])
    for seed in _SEEDS[1:]:
        _call(module, sampler, 1, seed)
    if compare(first, _call(module, sampler, 1, _SEEDS[0])).fault:
        return "equal inputs give different results, as where random numbers are drawn"
    return ""


def unbatchable(module: torch.jit.ScriptModule, sampler: Sampler, batch: int) -> str:
    """Why the model must not be given larger batches than it is asked for: "" where each item of a
    batch gets the result that it gets alone."""
    try:
        whole = module.forward(*sampler.arguments(batch, _SEEDS[0]))
        for index in range(min(_ROWS, batch)):
            arguments = sampler.rows(sampler.arguments(batch, _SEEDS[0]), index)
            found = compare(module.forward(*arguments), rows_of(whole, index))
            if found.fault:
                return f"an item of a batch gets another result than alone: {found.fault}"
    except Exception as error:  # noqa: BLE001 - whatever a model raises
        return f"a batch of {batch} fails: {complaint(error)}"
    return ""


def try_variants(
    module: torch.jit.ScriptModule, sampler: Sampler, sizes: Sequence[int]
) -> Iterator[Tried]:
    """Each variant of a module, the plain one first, compared with that on random inputs of each
    batch size, which warms it up as well."""
    for variant in MODULES:
        try:
            made = as_variant(module, variant)
            found = compared(module, made, sampler, sizes) if variant != PLAIN else Comparison()
        except Exception as error:  # noqa: BLE001 - torch raises several kinds
            yield Tried(variant, None, Comparison(complaint(error)))
        else:
            yield Tried(variant, made, found)


def compared(plain: Callee, made: Callee, sampler: Sampler, sizes: Sequence[int]) -> Comparison:
    """How the results of what was made of a module differ from its own, for random inputs of each
    batch size. Raises what either raises."""
    largest = 0.0
    for size in sizes:
        for seed in _SEEDS if size == sizes[0] else _SEEDS[:2]:
            found = compare(_call(plain, sampler, size, seed), _call(made, sampler, size, seed))
            largest = max(largest, found.difference)
            if found.fault:
                return Comparison(f"batch of {size}: {found.fault}", largest)
    return Comparison("", largest)


def _call(module: Callee, sampler: Sampler, batch: int, seed: int) -> Any:
    """A result for inputs made anew, since a model may write into those it is given."""
    return module.forward(*sampler.arguments(batch, seed))
