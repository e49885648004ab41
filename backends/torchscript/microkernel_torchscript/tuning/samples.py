"""Random inputs to try a model with, of any batch size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from microkernel import ModelConfig
from microkernel_torchscript.conversion import STRING, TORCH_TYPES
from microkernel_torchscript.failures import first_line
from microkernel_torchscript.inputs import InputPlan
from microkernel_torchscript.probing.examples import Example, configured_examples, is_ragged
from microkernel_torchscript.signature import SCALARS

_HIGHEST = (100, 2)
"""What random whole numbers stay below; the second where the first is refused, as by a table of two
rows that they are to index."""

_WORDS = ("", "a", "some words", "other")
_MOST_BYTES = 256 * 1024 * 1024
"""Of the inputs of one batch."""

Arguments = Sequence[Any]


class NoSample(Exception):
    """The model runs on no inputs made here; the text is its last complaint."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """Makes the arguments of `forward` for batches of one set of examples."""

    plan: InputPlan
    examples: tuple[Example, ...]
    highest: int
    batches: bool

    def arguments(self, batch: int, seed: int) -> Arguments:
        """Arguments for a batch, the same for the same seed."""
        source = torch.Generator().manual_seed(seed)
        sized = (e.grown(0, batch) if self.batches else e for e in self.examples)
        return self.plan.lay_out({e.name: self._value(e, source) for e in sized})

    def rows(self, arguments: Arguments, index: int) -> Arguments:
        """One item of a batch's arguments, as a batch of one."""
        return [_row(argument, index) for argument in arguments]

    def fits(self, batch: int) -> bool:
        """Whether inputs of that size are small enough to be made up."""
        return sum(example.nbytes for example in self.examples) * batch <= _MOST_BYTES

    def _value(self, example: Example, source: torch.Generator) -> Any:
        if example.kind in SCALARS:
            return example.value(other=False)
        if example.data_type == STRING:
            count = torch.Size(example.shape).numel()
            drawn = torch.randint(len(_WORDS), (count,), generator=source)
            return [_WORDS[int(index)] for index in drawn]
        dtype = TORCH_TYPES[example.data_type]
        if dtype.is_floating_point:
            return torch.randn(example.shape, generator=source).to(dtype)
        highest = 2 if dtype is torch.bool else self.highest
        return torch.randint(highest, example.shape, generator=source).to(dtype)


def find_sampler(config: ModelConfig, plan: InputPlan, call: Callable[..., Any]) -> Sampler:
    """The first kind of random inputs that the model runs on. Raises NoSample where there is
    none."""
    said = "its inputs cannot be made up"
    if is_ragged(config):
        raise NoSample("a ragged batch cannot be made up")
    for sampler in _samplers(config, plan):
        if not sampler.fits(1):
            said = "the inputs of one item are too large"
            continue
        try:
            call(*sampler.arguments(1, seed=0))
        except Exception as error:  # noqa: BLE001 - whatever a model raises
            said = complaint(error)
        else:
            return sampler
    raise NoSample(said)


def complaint(error: Exception) -> str:
    """What a model or torch raised, in one line."""
    return first_line(error)[:200]


def _samplers(config: ModelConfig, plan: InputPlan) -> Iterator[Sampler]:
    for examples in configured_examples(config, plan.kinds):
        for highest in _HIGHEST:
            yield Sampler(plan, examples, highest, config.max_batch_size > 0)


def _row(argument: Any, index: int) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument[index : index + 1]
    if isinstance(argument, dict):
        return {name: _row(value, index) for name, value in argument.items()}
    if isinstance(argument, list):
        return argument[index : index + 1]
    return argument
