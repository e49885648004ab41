"""What every kind of PyTorch model is to the rest of the backend."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import torch

from microkernel import Placement
from microkernel_torchscript.inputs import InputPlan
from microkernel_torchscript.outputs import OutputPlan

Forward: TypeAlias = Callable[..., Any]
"""Runs a model: takes what `InputPlan.lay_out` gives, on the instance's device, and returns what
`OutputPlan.tensors` reads."""


@dataclass(frozen=True, slots=True)
class Warmth:
    """What the first calls of a callable showed: the seconds that they took altogether, and the
    first and the last one with the smallest batch; the sizes of batches that were run, and those
    that would have taken too long or too much memory.

    `keeps_state` says that equal calls gave different results, `failure` why none succeeded.
    """

    seconds: float = 0.0
    first: float = 0.0
    steady: float = 0.0
    sizes: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()
    keeps_state: bool = False
    failure: str = ""

    @property
    def is_warm(self) -> bool:
        """Whether calls succeeded, so that those of clients are not the first."""
        return bool(self.sizes)


COLD = Warmth()
"""That of a callable which nobody tried."""


class Warm(Protocol):
    """Makes the first calls of what instances call; never raises for what the model does."""

    def first_calls(self, forward: Forward) -> Warmth:
        """Call it until it is as fast as it will be, under the flags of the model."""
        ...

    def touch(self, forward: Forward) -> None:
        """Call it once for each size of batch, as what it shares its code with was: what the
        calling thread keeps for itself is made then."""
        ...


@dataclass(frozen=True, slots=True)
class Ready:
    """What an instance calls, and what its first calls showed."""

    forward: Forward
    warmth: Warmth


class Source(ABC):
    """A version's files, loaded in a worker once. `inputs` and `outputs` say how the tensors of the
    configuration become arguments, and results become tensors. `warming_seconds` is how long the
    first calls may take before the rest of them is left out, `compiles` whether a compiler may work
    in them."""

    inputs: InputPlan
    outputs: OutputPlan
    warming_seconds: ClassVar[float] = 10.0
    compiles: bool = False

    @abstractmethod
    def forward(self, placement: Placement, device: torch.device | None) -> Forward:
        """What one instance calls, on its device; None where each tensor stays where it was saved.
        Called on the instance's thread, in the modes that it will run in. Raises to fail the load.
        """

    def prepare(self, placement: Placement, device: torch.device | None, warm: Warm) -> Ready:
        """What one instance calls, after its first calls, of which it keeps nothing; see
        `forward`."""
        forward = self.forward(placement, device)
        warmth = warm.first_calls(forward)
        if warmth.keeps_state:
            forward = self.forward(placement, device)
        return Ready(forward, warmth)

    def close(self) -> None:  # noqa: B027 - most sources have nothing to give back
        """Every instance is closed."""
