"""Settings of torch that a model's parameters change, each where it belongs: in a thread, around a
module's first calls, or in the process."""

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from microkernel_torchscript.options import Options
from microkernel_torchscript.source import Forward

logger = logging.getLogger(__name__)

FIRST_CALLS = 3
"""Calls of a module after which TorchScript compiles nothing more: it profiles in the first and
optimises in the second."""

_COMPILING = threading.RLock()
"""Held while the flags of the process are those of one model."""


def enter_modes(modes: contextlib.ExitStack, options: Options) -> None:
    """Enter the calling thread's modes, once: entering them per call costs as much as a small
    model."""
    modes.enter_context(torch.inference_mode() if options.inference_mode else torch.no_grad())
    optimized = torch.jit.optimized_execution  # type: ignore[attr-defined]  # not annotated
    modes.enter_context(optimized(options.optimized_execution))


def set_threads(count: int) -> None:
    """Give the calling thread its number of threads within an operation; others keep theirs."""
    # A thread takes the number that was set last by any thread when it first asks for it.
    torch.get_num_threads()
    torch.set_num_threads(count)


@contextlib.contextmanager
def compiling(options: Options) -> Iterator[None]:
    """Let the process have the model's flags of TorchScript, and nobody else's; afterwards they are
    as they were found. A module keeps those that were set in its first calls."""
    with _COMPILING, contextlib.ExitStack() as found:
        for flag, wanted in _flags(options):
            if wanted is not None:
                found.callback(flag, flag(wanted))
        yield


def _flags(options: Options) -> tuple[tuple[Any, bool | None], ...]:
    """How to set each flag, which gives what it was before; torch has no public way."""
    return (
        (torch._C._jit_set_profiling_executor, options.jit_executor),  # noqa: SLF001
        (torch._C._jit_set_profiling_mode, options.jit_profiling),  # noqa: SLF001
        (_set_tensor_fuser, options.tensor_fuser),
    )


def _set_tensor_fuser(on: bool) -> bool:
    before: bool = torch._C._jit_texpr_fuser_enabled()  # noqa: SLF001
    torch._C._jit_set_texpr_fuser_enabled(on)  # noqa: SLF001
    return before


class FirstCalls:
    """A callable that has not been warmed: its first calls run under the flags of its model, one
    at a time in the process, and the others as they are."""

    def __init__(self, forward: Forward, options: Options) -> None:
        self._forward, self._options = forward, options
        self._left = FIRST_CALLS

    def __call__(self, *arguments: Any) -> Any:
        """Call it; a call that raises does not count."""
        if not self._left:
            return self._forward(*arguments)
        with compiling(self._options):
            result = self._forward(*arguments)
        self._left -= 1
        return result


class _Cudnn:
    """Whether the process uses cuDNN: as the first of the models that it hosts wants it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a model may be collected while another one is loaded
        self._wishes: list[_Wish] = []
        self._found = True

    def claim(self, wish: "_Wish") -> "_Wish":
        """Add a wish; the one that is heeded."""
        with self._lock:
            if not self._wishes:
                self._found = torch.backends.cudnn.enabled
                torch.backends.cudnn.enabled = wish.wanted
            self._wishes = [*self._wishes, wish]
            return self._wishes[0]

    def release(self, wish: "_Wish") -> None:
        with self._lock:
            self._wishes = [other for other in self._wishes if other is not wish]
            wanted = self._wishes[0].wanted if self._wishes else self._found
            torch.backends.cudnn.enabled = wanted


@dataclass(frozen=True, slots=True, eq=False)
class _Wish:
    model: str
    wanted: bool


_CUDNN = _Cudnn()


def claim_cudnn(owner: object, name: str, *, wanted: bool) -> Callable[[], object]:
    """Say whether a model wants cuDNN, a setting of the process. The first model that the process
    hosts decides; another that wants it otherwise is told so in a warning.

    To be called when the model is unloaded is what this returns: the next model decides then, and
    after the last the setting is as it was. The end of the `owner` does the same.
    """
    wish = _Wish(name, wanted)
    heeded = _CUDNN.claim(wish)
    if heeded.wanted is not wanted:
        logger.warning(
            "model '%s' wants cuDNN %s, but it is %s in this process for model '%s', which came "
            "first; a model that needs it otherwise needs its own worker",
            name,
            _state(wanted),
            _state(heeded.wanted),
            heeded.model,
        )
    finalizer = weakref.finalize(owner, _CUDNN.release, wish)
    finalizer.atexit = False
    return finalizer


def _state(on: bool) -> str:
    return "enabled" if on else "disabled"
